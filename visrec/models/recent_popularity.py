"""Recent popularity: an item's score is how often it was taken in the last days. A baseline.

It shows how far counting recent interactions gets where demand changes. Training decides nothing,
so items that were added since are scored like all others.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from visrec.config import check_fields
from visrec.interactions.activity import WINDOW_DAYS
from visrec.models.arrays import ACTIVITY, ItemArrays, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelConfig, ModelTraits, Sizes
from visrec.models.scorers import DotScorer, same_for_all


@dataclass(frozen=True, kw_only=True)
class RecentPopularityConfig(ModelConfig):
    """How far back to count.

    Attributes:
        days: 1, 3, 7, 30 or 365, before the midnight of the lists; 100000 means all there are.
    """

    days: Literal[1, 3, 7, 30, 365, 100_000] = 7

    def __post_init__(self) -> None:
        check_fields(self, "model")


class RecentPopularity(Model):
    """See the module's docstring. It has no weights: what it needs is counted where it scores."""

    Config = RecentPopularityConfig
    traits = ModelTraits(personalized=False)
    trains_on = "nothing"

    def __init__(self, config: RecentPopularityConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self._window = WINDOW_DAYS.index(config.days)

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`activity`: (N, A) float32."""
        return {ACTIVITY: catalogue.activity}

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        # The logarithm of 1 + the count, which orders the items as the count does.
        count_N1 = np.ascontiguousarray(arrays[ACTIVITY][:, self._window : self._window + 1])
        return same_for_all(zero_copy_tensor(count_N1))
