"""The embedding MLP against its formula, written out as float64 loops."""

import math

import numpy as np
import pytest
import torch

from tests.models.formulas import (
    SIZES,
    TRAINED,
    affine,
    assert_gradients,
    assert_scores,
    loss_of,
    randomized,
    row_of,
    scores_of,
    weights_of,
)
from visrec.errors import InputError
from visrec.models import embedding_mlp
from visrec.models.base import Sizes
from visrec.models.embedding_mlp import EmbeddingMlp, EmbeddingMlpConfig
from visrec.models.inputs import RatingBatch

# User, item taken, its rating, item not taken.
RATED = [(0, 3, 5.0, 1), (4, 8, 1.0, 3), (0, 1, 2.5, 2), (2, 0, 4.0, 8)]


def _model(untaken: float = 1.0) -> EmbeddingMlp:
    torch.manual_seed(0)
    config = EmbeddingMlpConfig(width=3, hidden=7, untaken=untaken)
    model: EmbeddingMlp = randomized(EmbeddingMlp(config, SIZES))
    with torch.no_grad():  # otherwise the scores would be mostly biases
        model.users.weight.mul_(4)
        model.items.weight.mul_(4)
    return model


def _batch() -> RatingBatch:
    user, item, rating, other = zip(*RATED, strict=True)
    return RatingBatch(
        torch.tensor(user), torch.tensor(item), torch.tensor(rating), torch.tensor(other)
    )


class Formula:
    """x_ui = w . ReLU(W [e_u ; e_i] + b) + c, one matrix W over both vectors."""

    def __init__(self, model: EmbeddingMlp) -> None:
        self.weights = weights_of(model)
        names = ("user_layer.weight", "item_layer.weight")
        self.both = np.concatenate([self.weights[name] for name in names], axis=1)

    def score(self, user: int, profile: list[int], item: int) -> float:
        del profile
        tables = self.weights
        user_vector = [*row_of(tables["users.weight"], user)]
        item_vector = [*row_of(tables["items.weight"], item)]
        hidden = affine(self.both, user_vector + item_vector, tables["user_layer.bias"])
        relu = [max(0.0, h) for h in hidden]
        return affine(tables["rating.weight"], relu, tables["rating.bias"])[0]

    def loss(self, untaken: float) -> float:
        terms = [
            (self.score(user, [], item) - rating) ** 2 + untaken * self.score(user, [], other) ** 2
            for user, item, rating, other in RATED
        ]
        return sum(terms) / len(terms)


@pytest.mark.parametrize("items", [512, 5])
def test_scores_equal_the_formula_with_new_users_and_items(
    items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_mlp, "_ITEMS", items)
    model = _model()
    assert_scores(model, Formula(model).score)


def test_scores_are_no_sums_of_a_user_and_an_item_part() -> None:
    # The ReLU cuts off some hidden values for one item and not for another.
    scores = scores_of(_model())[:, :TRAINED]
    difference = scores[2] - scores[0]
    assert float(difference.max() - difference.min()) > 0.1


@pytest.mark.parametrize("untaken", [0.0, 1.0, 0.3])
def test_loss_equals_the_formula(untaken: float) -> None:
    model = _model(untaken)
    expected = Formula(model).loss(untaken)
    assert loss_of(model, _batch()) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    assert_gradients(_model(0.3), _batch())


def test_vectors_start_with_a_deviation_of_a_hundredth() -> None:
    model = EmbeddingMlp(EmbeddingMlpConfig(), Sizes(items=500, users=400, feature_dim=1))
    for embedding in (model.users, model.items):
        weight = embedding.weight.detach()
        assert float(weight.std()) == pytest.approx(0.01, rel=0.05)
        assert abs(float(weight.mean())) < 0.001


@pytest.mark.parametrize("untaken", [-0.1, math.nan])
def test_negative_weight_of_untaken_items_is_refused(untaken: float) -> None:
    with pytest.raises(InputError, match=r"model\.untaken"):
        EmbeddingMlpConfig(untaken=untaken)
