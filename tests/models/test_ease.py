"""EASE against the paper's formula, solved item by item."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.training import jagged_lists
from visrec.errors import InputError
from visrec.models.base import Catalogue, Sizes
from visrec.models.ease import MAX_ITEMS, Ease, EaseConfig
from visrec.models.inputs import JaggedTensor

ITEMS = 7
TRAIN = [[0, 1, 2], [1, 2], [0, 3, 4], [2, 4], [], [1], [0, 1, 5]]


def _weights(penalty: float) -> npt.NDArray[np.float64]:
    """Each column minimizes |X_j - X b|^2 + penalty |b|^2 with b_j = 0 (equation 4)."""
    taken = np.zeros((len(TRAIN), ITEMS))
    for user, items in enumerate(TRAIN):
        taken[user, items] = 1
    weights = np.zeros((ITEMS, ITEMS))
    for j in range(ITEMS):
        rest = [i for i in range(ITEMS) if i != j]
        gram = taken[:, rest].T @ taken[:, rest] + penalty * np.eye(ITEMS - 1)
        weights[rest, j] = np.linalg.solve(gram, taken[:, rest].T @ taken[:, j])
    return weights


@pytest.mark.parametrize("penalty", [0.5, 20.0])
def test_scores_are_sums_of_least_squares_weights(penalty: float) -> None:
    model = Ease(EaseConfig(penalty=penalty), Sizes(items=ITEMS, users=7, feature_dim=1))
    order = np.array([3, -1, 0, 6, 1, 5, 2, 4])  # of the catalogue; -1 is a new item
    model.fit(Catalogue(np.zeros((ITEMS, 1)), np.arange(ITEMS)), jagged_lists(TRAIN))
    scorer = model.scorer(model.item_arrays(Catalogue(np.zeros((8, 1)), order)))
    lists = jagged_lists([[0, 2], [], [1, 4]])
    state = scorer.prepare(JaggedTensor.from_jagged(lists), torch.tensor([-1, -1, 0]))
    weights = _weights(penalty)
    expected = [
        [sum(weights[order[p], i] for p in taken if order[p] >= 0) if i >= 0 else 0 for i in order]
        for taken in ([0, 2], [], [1, 4])
    ]
    np.testing.assert_allclose(scorer.tile(state, 0, 8), expected, atol=1e-6)


def test_too_many_items_are_refused() -> None:
    with pytest.raises(InputError, match=f"at most {MAX_ITEMS}"):
        Ease(EaseConfig(), Sizes(items=MAX_ITEMS + 1, users=1, feature_dim=1))
