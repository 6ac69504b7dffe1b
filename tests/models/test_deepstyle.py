"""DeepStyle against the paper's formula, written out as float64 loops."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.models.formulas import (
    CATEGORY,
    SIZES,
    TRIPLES,
    WORLD,
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
    unit_z_score,
    weights_of,
)
from visrec.models.base import Sizes
from visrec.models.deepstyle import DeepStyle, DeepStyleConfig


def _model(sizes: Sizes = SIZES) -> DeepStyle:
    torch.manual_seed(0)
    model: DeepStyle = randomized(
        DeepStyle(DeepStyleConfig(width=3, loss="bpr", temperature=1.0), sizes)
    )
    return model


class Paper:
    """x_ui = p_u . (E z_i - l_cat(i) + q_i)."""

    def __init__(self, model: DeepStyle) -> None:
        self.weights = weights_of(model)

    def score(self, user: int, profile: list[int], item: int) -> float:
        del profile
        tables = self.weights
        appearance = affine(tables["visual.weight"], unit_z_score(item))
        category = row_of(tables["categories.weight"], int(CATEGORY[item]))
        own = row_of(tables["items.weight"], item)
        style = [e - c + q for e, c, q in zip(appearance, category, own, strict=True)]
        return dot(row_of(tables["users.weight"], user), style)

    def loss(self, triples: list[Triple]) -> float:
        return bpr([(self.score(u, p, i), self.score(u, p, j)) for u, p, i, (j,) in triples])


def test_scores_equal_the_paper_with_new_users_and_items_and_no_category() -> None:
    model = _model()
    assert_scores(model, Paper(model).score)


def test_loss_equals_the_paper() -> None:
    # Items 2 and 6 have no category; one is a positive, the other a negative.
    assert {int(CATEGORY[i]) for _, _, i, _ in TRIPLES} >= {-1, 1}
    model = _model()
    assert loss_of(model, batch_of(TRIPLES)) == pytest.approx(Paper(model).loss(TRIPLES), rel=1e-5)


def test_catalogue_without_categories_equals_one_whose_items_have_none() -> None:
    model = _model()
    none = np.full(len(WORLD), -1)
    absent, empty = (
        model.item_arrays(dataclasses.replace(WORLD, category_N=codes))["vectors"]
        for codes in (None, none)
    )
    np.testing.assert_array_equal(absent, empty)
    assert not np.allclose(absent, model.item_arrays(WORLD)["vectors"])


def test_model_trains_without_categories() -> None:
    model = _model(dataclasses.replace(SIZES, categories=0))
    batch = batch_of(TRIPLES)
    batch = dataclasses.replace(batch, category_M=torch.full_like(batch.category_M, -1))
    model(batch).backward()
    gradient = model.categories.weight.grad
    assert gradient is not None
    assert not gradient.to_dense().any()


def test_gradients_are_those_of_finite_differences() -> None:
    assert_gradients(_model(), batch_of(TRIPLES))
