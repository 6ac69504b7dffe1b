"""Popularity: an item's score is how many users took it in training. A floor every table needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.scorers import DotScorer


@dataclass(frozen=True, kw_only=True)
class PopularityConfig:
    """Nothing to set."""


class Popularity(nn.Module):
    """See the module's docstring. An item that training has not seen counts zero."""

    Config = PopularityConfig
    needs = Needs(supports_new_items=False, personal=False)
    default_overrides: ClassVar[Mapping[str, Any]] = {}
    trains_on: Literal["nothing"] = "nothing"
    count_I: Tensor

    def __init__(self, config: PopularityConfig, sizes: Sizes) -> None:
        del config
        super().__init__()
        self.register_buffer("count_I", torch.zeros(sizes.items))

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Counts the users of each item."""
        del catalogue
        counts = np.bincount(train.values, minlength=len(self.count_I))
        self.count_I.copy_(torch.from_numpy(counts))

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`counts`: (N, 1) float32."""
        counts = np.append(self.count_I.numpy(), np.float32(0))[catalogue.trained_N]
        return {"counts": counts[:, None]}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        counts_N1 = zero_copy_tensor(arrays["counts"])
        # The same for all users.
        return DotScorer(counts_N1, lambda profiles, _: counts_N1.new_ones(len(profiles), 1))
