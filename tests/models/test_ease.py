"""EASE against the paper's formula, solved item by item."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.memory import peak_memory
from tests.training import jagged_lists
from visrec.errors import InputError
from visrec.jagged import Jagged
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


def _fitted(train: Jagged, items: int, penalty: float) -> npt.NDArray[np.float32]:
    model = Ease(EaseConfig(penalty=penalty), Sizes(items=items, users=len(train), feature_dim=1))
    model.fit(Catalogue(np.zeros((items, 1)), np.arange(items)), train)
    return model.weight_II.numpy()


@pytest.mark.parametrize("items", [200, 256, 257, 600])
def test_weights_and_lists_equal_the_plain_formula(items: int) -> None:
    taken_UI = np.random.default_rng(items).random((500, items)) < 0.03
    weight_II = _fitted(jagged_lists([np.flatnonzero(row).tolist() for row in taken_UI]), items, 20)
    inverse_II = np.linalg.inv(taken_UI.T.astype(float) @ taken_UI + 20 * np.eye(items))
    expected_II = inverse_II / -np.diag(inverse_II)
    np.fill_diagonal(expected_II, 0)
    np.testing.assert_allclose(weight_II, expected_II, rtol=1e-6, atol=1e-12)
    found, expected = (
        np.argsort(-(taken_UI.astype(np.float32) @ weights_II), kind="stable")[:, :50]
        for weights_II in (weight_II, expected_II.astype(np.float32))
    )
    np.testing.assert_array_equal(found, expected)


def test_fit_takes_twelve_bytes_for_each_pair_of_items() -> None:
    train = jagged_lists([[user, user + 1, 2 * user] for user in range(300)])
    items = 3000  # beside which the megabytes that other threads of this process need are few
    _fitted(train, items, 20)  # scipy is imported here, and OpenBLAS has its buffers
    with peak_memory() as peak:
        _fitted(train, items, 20)
    assert peak.grown < 15 * items**2


def test_too_many_items_are_refused() -> None:
    with pytest.raises(InputError, match=f"at most {MAX_ITEMS}"):
        Ease(EaseConfig(), Sizes(items=MAX_ITEMS + 1, users=1, feature_dim=1))
