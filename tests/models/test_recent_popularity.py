"""Recent popularity orders items by how often they were taken in the last days."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.interactions import features_at
from tests.training import jagged_lists
from visrec.interactions.activity import DAY, Activity
from visrec.models.base import Catalogue, Sizes
from visrec.models.inputs import JaggedTensor
from visrec.models.recent_popularity import RecentPopularity, RecentPopularityConfig
from visrec.retrieval.topk import top_k

NOW = 100 * DAY
# Item 0 was taken once yesterday, item 1 twice last week, item 2 three times long ago.
ACTIVITY = Activity.from_rows(
    np.array([0, 1, 1, 2, 2, 2]), NOW - DAY * np.array([1, 5, 6, 60, 70, 80]), 4
)


@pytest.mark.parametrize(
    ("days", "counts"), [(1, [1, 0, 0, 0]), (7, [1, 2, 0, 0]), (100_000, [1, 2, 3, 0])]
)
def test_scores_are_logarithms_of_counts(days: int, counts: list[int]) -> None:
    config = RecentPopularityConfig(days=days)  # type: ignore[arg-type]
    model = RecentPopularity(config, Sizes(items=4, users=2, feature_dim=1))
    catalogue = replace(
        Catalogue(np.zeros((4, 1)), np.arange(4)), activity_NA=features_at(ACTIVITY, NOW)
    )
    scorer = model.scorer(model.item_arrays(catalogue))
    lists = JaggedTensor.from_jagged(jagged_lists([[0], []]))
    state = scorer.prepare(lists, torch.tensor([0, -1]))
    expected = np.tile(np.log1p(counts), (2, 1))
    np.testing.assert_allclose(scorer.tile(state, 0, 4), expected, rtol=1e-6)


def test_item_that_was_added_since_training_leads_if_most_took_it_lately() -> None:
    model = RecentPopularity(RecentPopularityConfig(), Sizes(items=3, users=2, feature_dim=1))
    assert model.traits.supports_new_items
    catalogue = replace(
        Catalogue(np.zeros((4, 1)), np.array([0, -1, 1, 2])), activity_NA=features_at(ACTIVITY, NOW)
    )
    scorer, nobody = model.scorer(model.item_arrays(catalogue)), jagged_lists([[]])
    lists = top_k(scorer, nobody, np.array([-1]), nobody, None, 2)
    assert lists.row_BK.tolist() == [[1, 0]]
