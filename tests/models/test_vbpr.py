"""VBPR against the paper's formula, written out as float64 loops."""

import pytest
import torch

from tests.models.formulas import (
    SIZES,
    TRAINED,
    TRIPLES,
    Triple,
    affine,
    assert_gradients,
    assert_scores,
    batch_of,
    bpr,
    dot,
    loss_of,
    randomized,
    row_of,
    scores_of,
    unit_z_score,
    weights_of,
)
from visrec.models.vbpr import Vbpr, VbprConfig


def _model(width: int = 3) -> Vbpr:
    torch.manual_seed(0)
    model: Vbpr = randomized(
        Vbpr(VbprConfig(width=width, visual_width=2, loss="bpr", temperature=1.0), SIZES)
    )
    return model


class Paper:
    """x_ui = b_i + p_u . q_i + theta_u . (E z_i) + beta . z_i."""

    def __init__(self, model: Vbpr) -> None:
        self.weights = weights_of(model)

    def score(self, user: int, profile: list[int], item: int) -> float:
        del profile
        tables, z = self.weights, unit_z_score(item)
        q = row_of(tables["items.weight"], item)
        both = row_of(tables["users.weight"], user)
        p, theta = both[: len(q)], both[len(q) :]
        bias = row_of(tables["item_bias.weight"], item)[0]
        visual = dot(theta, affine(tables["visual.weight"], z))
        return bias + dot(p, q) + visual + dot(tables["visual_bias.weight"][0], z)

    def loss(self, triples: list[Triple]) -> float:
        return bpr([(self.score(u, p, i), self.score(u, p, j)) for u, p, i, (j,) in triples])


@pytest.mark.parametrize("width", [3, 0])
def test_scores_equal_the_paper_with_new_users_and_items(width: int) -> None:
    model = _model(width)
    assert_scores(model, Paper(model).score)


@pytest.mark.parametrize("width", [3, 0])
def test_loss_equals_the_paper(width: int) -> None:
    model = _model(width)
    assert loss_of(model, batch_of(TRIPLES)) == pytest.approx(Paper(model).loss(TRIPLES), rel=1e-5)


def test_new_items_have_different_scores_for_all_users() -> None:
    scores = scores_of(_model())[:, TRAINED:]
    assert all(len(set(row)) == scores.shape[1] for row in scores.tolist())


def test_gradients_are_those_of_finite_differences() -> None:
    assert_gradients(_model(), batch_of(TRIPLES))
