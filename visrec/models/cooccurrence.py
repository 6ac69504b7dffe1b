"""Item co-occurrence: items are near one another when the same users took them.

Item vectors v that minimise, over all pairs of different items,

    sum over i != j of (v_i . v_j - X_ij)^2       X = S^T S, how many users took both

for S the users' rows of zeros and ones. X is never built: with s_u the sum of the vectors of what u
took, and n_i the takers of i, the sum is, but for a constant,

    |V^T V|^2 - sum_i |v_i|^4 - 2 sum_u (|s_u|^2 - sum over i of u of |v_i|^2)

whose first two terms take N d^2 steps and whose last is a sum over users, of whom each step takes
some. A user's score of an item is the mean of the consumed items' v . v_i. New users are scored by
their profile; new items have no vector and are not recommended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.embeddings import of_items
from visrec.models.inputs import UserBatch
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer


@dataclass(frozen=True, kw_only=True)
class CooccurrenceConfig:
    """The size of the vectors.

    Attributes:
        width: of the items' vectors.
    """

    width: int = 64

    def __post_init__(self) -> None:
        check_fields(self, "model", width=WIDTHS)


class Cooccurrence(nn.Module):
    """See the module's docstring."""

    Config = CooccurrenceConfig
    needs = Needs(supports_new_items=False)
    default_overrides: ClassVar[Mapping[str, Any]] = {
        "train.learning_rate": 1e-2,
        "train.weight_decay": 1e-2,
    }
    trains_on: Literal["users"] = "users"
    users: Tensor

    def __init__(self, config: CooccurrenceConfig, sizes: Sizes) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(sizes.items, config.width))
        nn.init.normal_(self.vectors, std=0.1)
        self.register_buffer("users", torch.zeros(()))

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Counts the users who took anything."""
        del catalogue
        self.users.fill_(float((train.lengths > 0).sum()))

    def forward(self, batch: UserBatch) -> Tensor:
        """The sum over all pairs by the B users' shares in it, over the number of users."""
        square_I = (self.vectors**2).sum(dim=1)
        apart = (self.vectors.T @ self.vectors).square().sum() - square_I.square().sum()
        items = batch.items
        sum_Bd = pool(self.vectors, items, "sum")
        count_same_code = (sum_Bd**2).sum() - square_I[items.values].sum()
        return apart / self.users - 2 * count_same_code / len(items)

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`vectors`: (N, width) float32; zeros for unseen items."""
        return {"vectors": of_items(self.vectors, catalogue)}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.vectors.device)
        return DotScorer(vectors_Nd, lambda bags, _: pool(vectors_Nd, bags, "mean"), vectors_Nd)
