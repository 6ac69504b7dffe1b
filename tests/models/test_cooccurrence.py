"""Item co-occurrence against the sum over all pairs of items, with X as a dense matrix."""

import numpy as np
import pytest
import torch

from tests.models.formulas import (
    SIZES,
    TRAINED,
    USERS,
    assert_gradients,
    assert_scores,
    dot,
    loss_of,
    randomized,
    row_of,
    weights_of,
)
from tests.training import jagged_lists
from visrec.models.cooccurrence import Cooccurrence, CooccurrenceConfig
from visrec.models.inputs import JaggedTensor, UserBatch

# One user took nothing, one took a single item, one took all but item 7, which nobody took.
TAKEN = [[0, 3, 5], [], [2], [5, 0, 1, 2, 3, 4, 6, 8], [3, 0]]
ACTIVE = [user for user, items in enumerate(TAKEN) if items]


def _model() -> Cooccurrence:
    torch.manual_seed(0)
    model: Cooccurrence = randomized(Cooccurrence(CooccurrenceConfig(width=3), SIZES), TAKEN)
    return model


def _batch(users: list[int]) -> UserBatch:
    return UserBatch(
        JaggedTensor.from_jagged(jagged_lists([TAKEN[user] for user in users])), 0, len(users)
    )


class Formula:
    """The sum over i != j of (v_i . v_j - X_ij)^2, X = S^T S."""

    def __init__(self, model: Cooccurrence) -> None:
        self.table = weights_of(model)["vectors"]

    @staticmethod
    def cooccurrences() -> np.ndarray:
        taken = np.zeros((USERS, TRAINED))
        for user, items in enumerate(TAKEN):
            taken[user, items] = 1
        return np.asarray(taken.T @ taken)

    def loss(self) -> float:
        counts = self.cooccurrences()
        pairs = [(i, j) for i in range(TRAINED) for j in range(TRAINED) if i != j]
        return sum((dot(self.table[i], self.table[j]) - counts[i, j]) ** 2 for i, j in pairs)

    def constant(self) -> float:
        counts = self.cooccurrences()
        return float((counts**2).sum() - (np.diag(counts) ** 2).sum())

    def score(self, user: int, profile: list[int], item: int) -> float:
        del user
        rows = [row_of(self.table, other) for other in profile]
        vector = row_of(self.table, item)
        return sum(dot(row, vector) for row in rows) / max(1, len(rows))


def test_scores_are_mean_products_with_the_profile() -> None:
    model = _model()
    assert_scores(model, Formula(model).score)


def test_loss_over_all_users_is_the_dense_sum_up_to_a_constant() -> None:
    model, formula = _model(), Formula(_model())
    assert formula.constant() > 50  # large enough to be missed
    found = loss_of(model, _batch(ACTIVE)) * len(ACTIVE) + formula.constant()
    assert found == pytest.approx(formula.loss(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_mean_loss_of_equal_batches_is_that_of_all_users(size: int) -> None:
    model = _model()
    parts = [ACTIVE[i : i + size] for i in range(0, len(ACTIVE), size)]
    found = sum(loss_of(model, _batch(part)) for part in parts) / len(parts)
    assert found == pytest.approx(loss_of(model, _batch(ACTIVE)), rel=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    assert_gradients(_model(), _batch(ACTIVE[:3]))


def test_gradient_over_all_users_is_that_of_the_dense_sum() -> None:
    model = _model().double()
    (model(_batch(ACTIVE)) * len(ACTIVE)).backward()
    vectors = model.vectors.detach().clone().requires_grad_()
    is_pair = ~torch.eye(TRAINED, dtype=torch.bool)
    counts = torch.from_numpy(Formula.cooccurrences())
    ((vectors @ vectors.T - counts)[is_pair] ** 2).sum().backward()
    torch.testing.assert_close(model.vectors.grad, vectors.grad)
