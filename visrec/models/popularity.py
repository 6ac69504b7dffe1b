"""Popularity: an item's score is the number of users who took it in training. A baseline."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelConfig, ModelTraits, Sizes
from visrec.models.scorers import DotScorer, same_for_all


@dataclass(frozen=True, kw_only=True)
class PopularityConfig(ModelConfig):
    """Popularity has no settings."""


class Popularity(Model):
    """See the module's docstring. The score of an item that training has not seen is 0."""

    Config = PopularityConfig
    traits = ModelTraits(supports_new_items=False, personalized=False)
    trains_on = "nothing"
    item_tables = ("count_I",)
    count_I: Tensor

    def __init__(self, config: PopularityConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.register_buffer("count_I", torch.zeros(sizes.items))

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Counts the users of each item."""
        del catalogue
        counts = np.bincount(train.values, minlength=len(self.count_I))
        self.count_I.copy_(torch.from_numpy(counts))

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`counts`: (N, 1) float32."""
        counts = np.append(self.count_I.numpy(), np.float32(0))[catalogue.trained_N]
        return {"counts": counts[:, None]}

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        return same_for_all(zero_copy_tensor(arrays["counts"]))
