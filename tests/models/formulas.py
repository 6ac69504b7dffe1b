"""A small world for comparing models with their formulas, and the comparison.

Items of the world are 0 to 11; training saw the first `TRAINED`. Catalogue and batches have them in
other orders, so that an item, its row in the catalogue and its position in a batch differ.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call

from tests.training import jagged_lists
from visrec.models.base import Catalogue, Sizes
from visrec.models.inputs import JaggedTensor, TripleBatch

ITEMS, TRAINED, USERS, DIM = 12, 9, 5, 4
_RANDOM = np.random.default_rng(0)
FEATURES = (_RANDOM.normal(size=(ITEMS, DIM)) * 2 + 1).astype(np.float16)
CATEGORY = np.array([0, 2, -1, 1, 1, 0, -1, 2, 0, 1, -1, 2])  # new items may have one or none
SIZES = Sizes(items=TRAINED, users=USERS, feature_dim=DIM, categories=3)
SEEN = Catalogue(FEATURES[:TRAINED], np.arange(TRAINED), CATEGORY[:TRAINED])

ORDER = _RANDOM.permutation(ITEMS)  # the item at each row of the catalogue
ROW = np.argsort(ORDER)  # the row of each item
WORLD = Catalogue(FEATURES[ORDER], np.where(ORDER < TRAINED, ORDER, -1), CATEGORY[ORDER])

# Users to score: their rows in training, -1 for new ones; and their profiles, with new items or
# empty.
USER_ROWS = [3, -1, 0, 4, -1]
PROFILES = [[0, 5, 8], [2], [1, 11, 7, 3], [], [10, 9, 4]]

# User, profile, positive, negatives. An item may be each of these for different users.
Triple = tuple[int, list[int], int, list[int]]
TRIPLES: list[Triple] = [
    (0, [1, 2], 3, [4]),
    (4, [3], 1, [2]),
    (0, [2, 3, 8], 6, [3]),
    (2, [7, 5, 0, 1], 4, [8]),
]

Vector = Sequence[float]
Weights = Mapping[str, npt.NDArray[np.float64]]


def randomized(model: Any, train: list[list[int]] | None = None) -> Any:
    """The model, fitted, with random changes to its weights: none is zero, no two are equal."""
    model.fit(SEEN, jagged_lists(train or [[0]] * USERS))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model


def weights_of(model: nn.Module) -> Weights:
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def dot(one: Vector, other: Vector) -> float:
    return sum(float(a) * float(b) for a, b in zip(one, other, strict=True))


def affine(weight: npt.NDArray[np.float64], x: Vector, bias: Vector | None = None) -> list[float]:
    """W x + b."""
    sums = [dot(row, x) for row in weight]
    return sums if bias is None else [s + float(b) for s, b in zip(sums, bias, strict=True)]


def row_of(matrix: npt.NDArray[np.float64], row: int) -> Vector:
    """A row of a matrix; zeros for a user or item that training has not seen."""
    return [float(v) for v in matrix[row]] if 0 <= row < len(matrix) else [0.0] * matrix.shape[1]


def z_score(item: int) -> list[float]:
    """The item's feature, z-scored by those that training saw."""
    exact = FEATURES.astype(np.float64)
    seen = exact[:TRAINED]
    return [float(z) for z in (exact[item] - seen.mean(axis=0)) / seen.std(axis=0)]


def unit_z_score(item: int) -> list[float]:
    """The item's z-scored feature, scaled to length 1."""
    z = z_score(item)
    length = math.sqrt(sum(value * value for value in z))
    return [value / length for value in z]


def bpr(pairs: list[tuple[float, float]], temperature: float = 1.0) -> float:
    """The mean of -log sigmoid(x_i - x_j) over scores (x_i, x_j)."""
    terms = [math.log(1 + math.exp((below - above) / temperature)) for above, below in pairs]
    return sum(terms) / len(terms)


def batch_of(triples: list[Triple]) -> TripleBatch:
    """Triples over all trained items in shuffled order."""
    order = np.random.default_rng(2).permutation(TRAINED)
    position = np.argsort(order)
    users, profiles, positives, negatives = zip(*triples, strict=True)
    return TripleBatch(
        item_M=torch.from_numpy(order),
        feature_MD=torch.from_numpy(FEATURES[order]),
        category_M=torch.from_numpy(CATEGORY[order]),
        user_B=torch.tensor(users),
        profiles=JaggedTensor.from_jagged(
            jagged_lists([position[profile].tolist() for profile in profiles])
        ),
        positive_B=torch.from_numpy(position[list(positives)]),
        negative_BK=torch.from_numpy(position[np.array(negatives)]),
    )


def loss_of(model: nn.Module, batch: object) -> float:
    return float(model(batch).detach())


@torch.no_grad()
def scores_of(model: Any, profiles: list[list[int]] = PROFILES) -> npt.NDArray[np.float32]:
    """(users, items of the world) the model's scores, computed in two tiles."""
    scorer = model.eval().scorer(model.item_arrays(WORLD))
    lists = jagged_lists([ROW[profile].tolist() for profile in profiles])
    state = scorer.prepare(JaggedTensor.from_jagged(lists), torch.tensor(USER_ROWS))
    tiles = [scorer.tile(state, start, stop) for start, stop in ((0, 5), (5, ITEMS))]
    return np.asarray(torch.cat(tiles, dim=1).numpy()[:, ROW])


def assert_scores(
    model: Any,
    score: Callable[[int, list[int], int], float],
    profiles: list[list[int]] = PROFILES,
) -> None:
    """The model's scores equal a formula of a user's row, the user's profile and an item."""
    expected = [
        [score(user, profile, item) for item in range(ITEMS)]
        for user, profile in zip(USER_ROWS, profiles, strict=True)
    ]
    np.testing.assert_allclose(scores_of(model, profiles), expected, rtol=1e-5, atol=1e-5)


def assert_gradients(model: Any, batch: object) -> None:
    """The gradients of the loss equal finite differences in float64."""
    model.double()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False
    names = [name for name, _ in model.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def loss(*weights: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(
            model, dict(zip(names, weights, strict=True)), (batch,)
        )
        return found

    assert torch.autograd.gradcheck(loss, values)
