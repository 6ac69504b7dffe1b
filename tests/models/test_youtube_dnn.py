"""The YouTube retrieval network against the paper's formula, written out as float64 loops."""

import pytest
import torch

from tests.models.formulas import (
    SIZES,
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
    weights_of,
)
from visrec.models.youtube_dnn import YoutubeDnn, YoutubeDnnConfig


def _model() -> YoutubeDnn:
    torch.manual_seed(0)
    config = YoutubeDnnConfig(width=3, hidden=5, loss="bpr", temperature=1.0)
    model: YoutubeDnn = randomized(YoutubeDnn(config, SIZES))
    return model


class Paper:
    """u = W2 ReLU(W1 mean(e_p) + b1) + b2, and x_ui = u . v_i.

    Items that training has not seen have the zero vector, like values outside the paper's
    vocabulary (section 4.1).
    """

    def __init__(self, model: YoutubeDnn) -> None:
        self.weights = weights_of(model)

    def user(self, profile: list[int]) -> list[float]:
        tables = self.weights
        rows = [row_of(tables["taken.weight"], item) for item in profile]
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)] or [0.0] * 3
        hidden = affine(tables["tower.0.weight"], mean, tables["tower.0.bias"])
        relu = [max(0.0, h) for h in hidden]
        return affine(tables["tower.2.weight"], relu, tables["tower.2.bias"])

    def score(self, user: int, profile: list[int], item: int) -> float:
        del user
        return dot(self.user(profile), row_of(self.weights["items.weight"], item))

    def loss(self, triples: list[Triple]) -> float:
        return bpr([(self.score(u, p, i), self.score(u, p, j)) for u, p, i, (j,) in triples])


def test_scores_equal_the_paper_with_new_users_items_and_empty_profiles() -> None:
    model = _model()
    assert_scores(model, Paper(model).score)


def test_loss_equals_the_paper() -> None:
    model = _model()
    assert loss_of(model, batch_of(TRIPLES)) == pytest.approx(Paper(model).loss(TRIPLES), rel=1e-5)


def test_relu_cuts_off_some_hidden_values() -> None:
    # Otherwise the tests above would pass without the ReLU.
    model = _model()
    hidden = model.tower[0](model.taken.weight).detach()
    assert 0.2 < float((hidden > 0).double().mean()) < 0.8


def test_gradients_are_those_of_finite_differences() -> None:
    assert_gradients(_model(), batch_of(TRIPLES))
