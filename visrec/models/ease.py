"""EASE (Steck 2019, arXiv 1905.03375): linear weights between items, in closed form.

Let X be the users' taken items, one row of zeros and ones for each user, and lambda the
regularization. Then (equation 8 of the paper)

    P = (X^T X + lambda I)^-1      B_ij = -P_ij / P_jj, B_jj = 0      x_ui = sum of B_pi over the
                                                                      items p of the profile

There are no parameters per user, so new users are scored without retraining. New items have no
weights and are not recommended. Time grows with the third power of the number of items, memory with
the second.

Shapes: I items of training, N items of the catalogue, B users, T items of a tile.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from visrec.config import check_fields
from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelConfig, ModelTraits, Sizes
from visrec.models.embeddings import embedding_rows
from visrec.models.inputs import JaggedTensor
from visrec.models.pooling import pool
from visrec.models.scorers import TiledScorer
from visrec.scratch import row_blocks

# The fit takes 12 bytes for each pair of items, 8 for the inverse and 4 for the weights: 5 GB for
# this many items, and some minutes.
MAX_ITEMS = 20_000
_USERS = 4096  # rows of X at a time
_ROWS = 256  # rows of the (I, I) matrices at a time, where they are computed from others


@dataclass(frozen=True, kw_only=True)
class EaseConfig(ModelConfig):
    """The regularization.

    Attributes:
        penalty: lambda; higher values trust rare items less.
    """

    penalty: float = 200.0

    def __post_init__(self) -> None:
        check_fields(self, "model", penalty="(0, 1000000000]")


class Ease(Model):
    """See the module's docstring."""

    Config = EaseConfig
    traits = ModelTraits(supports_new_items=False)
    trains_on = "nothing"
    item_tables = ("weight_II",)
    weight_II: Tensor

    def __init__(self, config: EaseConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        if sizes.items > MAX_ITEMS:
            raise InputError(
                f"Found {sizes.items} items; ease holds a weight for each pair of items and takes "
                f"at most {MAX_ITEMS}. Choose another --model.name."
            )
        self._penalty = config.penalty
        self.register_buffer("weight_II", torch.zeros(sizes.items, sizes.items))

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Computes the weights."""
        del catalogue
        compute_weights(train, self._penalty, self.weight_II.numpy())

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`weights`: (N, I) float32, of an item of a profile; `trained`: (N,) rows of training."""
        row_N = catalogue.trained_N
        return {"weights": embedding_rows(self.weight_II, row_N), "trained": row_N}

    def scorer(self, arrays: ItemArrays) -> TiledScorer:
        return _ProfileSums(*(zero_copy_tensor(arrays[name]) for name in ("weights", "trained")))


class _ProfileSums(TiledScorer):
    """Sums of the weights of a profile's items; the state is (B, I + 1), with a 0 for new items."""

    def __init__(self, weight_NI: Tensor, trained_N: Tensor) -> None:
        self.num_items, self.device = len(weight_NI), weight_NI.device
        self.space_Nd = None
        self._weight_NI, self._trained_N = weight_NI, trained_N

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        del user_B
        return functional.pad(pool(self._weight_NI, profiles, "sum"), (0, 1))

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        return state[:, self._trained_N[start:stop]]


def compute_weights(train: Jagged, penalty: float, weight_II: npt.NDArray[np.float32]) -> None:
    """Computes B of the module's docstring. There is never a second matrix in float64.

    Args:
        train: U lists of items.
        penalty: lambda.
        weight_II: where B goes.
    """
    inverse_II = _gram(train, len(weight_II))
    inverse_II[np.diag_indices(len(weight_II))] += penalty
    _invert(inverse_II)
    divisor_I = -np.diag(inverse_II)
    for rows in row_blocks(len(weight_II), _ROWS):
        weight_II[rows] = inverse_II[rows] / divisor_I
    np.fill_diagonal(weight_II, 0)


def _gram(train: Jagged, items: int) -> npt.NDArray[np.float64]:
    """X^T X, whose entries are whole numbers and so exact."""
    gram_II = np.zeros((items, items))
    for start in range(0, len(train), _USERS):
        part = train.slice(start, min(start + _USERS, len(train)))
        taken_BI = np.zeros((len(part), items), np.float32)
        taken_BI[part.row_ids, part.values] = 1
        for rows in row_blocks(items, _ROWS):
            gram_II[rows] += taken_BI[:, rows].T @ taken_BI
    return gram_II


def _invert(matrix_II: npt.NDArray[np.float64]) -> None:
    """Inverts a symmetric positive definite matrix in place, by its Cholesky factor."""
    # Imported here: every job imports this module, and few jobs need SciPy.
    from scipy.linalg import lapack

    # LAPACK reads columns first: its lower triangle is the upper one here. It computes only that.
    factor_II, _ = lapack.dpotrf(matrix_II.T, lower=1, clean=0, overwrite_a=1)
    lapack.dpotri(factor_II, lower=1, overwrite_c=1)
    for rows in row_blocks(len(matrix_II), _ROWS):
        matrix_II[rows, : rows.start] = matrix_II[: rows.start, rows].T
        block = matrix_II[rows, rows]
        block[:] = np.triu(block) + np.triu(block, 1).T
