"""Popularity counts users; the scores are the same for everyone."""

import numpy as np
import torch

from tests.training import jagged_lists
from visrec.models.base import Catalogue, Sizes
from visrec.models.inputs import JaggedTensor
from visrec.models.popularity import Popularity, PopularityConfig


def _fitted() -> Popularity:
    model = Popularity(PopularityConfig(), Sizes(items=4, users=3, feature_dim=2))
    catalogue = Catalogue(np.zeros((4, 2), np.float16), np.arange(4))
    model.fit(catalogue, jagged_lists([[0, 2], [2], [2, 3]]))
    return model


def test_scores_are_counts_of_users() -> None:
    model = _fitted()
    arrays = model.item_arrays(Catalogue(np.zeros((4, 2), np.float16), np.arange(4)))
    scorer = model.scorer(arrays)
    state = scorer.prepare(JaggedTensor.from_jagged(jagged_lists([[0], []])), torch.tensor([0, -1]))
    assert scorer.tile(state, 0, 4).tolist() == [[1, 0, 3, 1], [1, 0, 3, 1]]


def test_counts_follow_the_order_of_the_catalogue() -> None:
    model = _fitted()
    catalogue = Catalogue(np.zeros((3, 2), np.float16), np.array([-1, 2, 0]))
    assert model.item_arrays(catalogue)["counts"].tolist() == [[0], [3], [1]]
