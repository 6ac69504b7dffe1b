"""BPR-MF against the paper's formula, written out as float64 loops."""

import pytest
import torch

from tests.models.formulas import (
    SIZES,
    TRIPLES,
    Triple,
    assert_gradients,
    assert_scores,
    batch_of,
    bpr,
    dot,
    loss_of,
    randomized,
    row_of,
    weights_of,
)
from visrec.models.bpr_mf import BprMf, BprMfConfig


def _model(**settings: float) -> BprMf:
    torch.manual_seed(0)
    model: BprMf = randomized(BprMf(BprMfConfig(width=3, loss="bpr", **settings), SIZES))
    return model


class Paper:
    """x_ui = b_i + p_u . q_i."""

    def __init__(self, model: BprMf) -> None:
        self.weights = weights_of(model)

    def score(self, user: int, profile: list[int], item: int) -> float:
        del profile
        tables = self.weights
        bias = row_of(tables["item_bias.weight"], item)[0]
        return bias + dot(
            row_of(tables["users.weight"], user), row_of(tables["items.weight"], item)
        )

    def loss(self, triples: list[Triple], temperature: float) -> float:
        pairs = [(self.score(u, p, i), self.score(u, p, j)) for u, p, i, (j,) in triples]
        return bpr(pairs, temperature)


def test_scores_equal_the_paper_with_new_users_and_items() -> None:
    model = _model()
    assert_scores(model, Paper(model).score)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_loss_equals_the_paper(temperature: float) -> None:
    model = _model(temperature=temperature)
    expected = Paper(model).loss(TRIPLES, temperature)
    assert loss_of(model, batch_of(TRIPLES)) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    assert_gradients(_model(), batch_of(TRIPLES))


def test_gradients_have_only_the_rows_of_the_batch() -> None:
    model = _model()
    model(batch_of([(1, [], 2, [7]), (4, [], 3, [2])])).backward()
    gradient = model.users.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    assert sorted(gradient.coalesce().indices()[0].tolist()) == [1, 4]


def test_biases_start_at_zero_and_vectors_small() -> None:
    model = BprMf(BprMfConfig(), SIZES)
    assert not model.item_bias.weight.any()
    assert float(model.items.weight.detach().std()) == pytest.approx(0.1, rel=0.2)
