"""Random: a score that is a hash of the seed, the user and the item. A baseline."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visrec.config import SEEDS, check_fields
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelConfig, ModelTraits, Sizes
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import TiledScorer
from visrec.models.splitmix import splitmix64


@dataclass(frozen=True, kw_only=True)
class RandomConfig(ModelConfig):
    """The seed of the scores.

    Attributes:
        seed: determines all scores.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "model", seed=SEEDS)


class Random(Model):
    """See the module's docstring."""

    Config = RandomConfig
    traits = ModelTraits(requires_interactions=False)
    trains_on = "nothing"

    def __init__(self, config: RandomConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self._seed = config.seed

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`rows`: (N,) each item's row."""
        return {"rows": np.arange(len(catalogue))}

    def scorer(self, arrays: ItemArrays) -> "_HashScorer":
        return _HashScorer(zero_copy_tensor(arrays["rows"]), self._seed)


class _HashScorer(TiledScorer):
    """A hash of (seed, user, item) in [0, 1), the same for any tiles and workers.

    A user is a hash of the profile, so it does not matter where the user is scored.
    """

    def __init__(self, row_N: Tensor, seed: int) -> None:
        self.num_items, self.device, self.space_Nd = len(row_N), torch.device("cpu"), None
        self._row_N, self._seed = row_N, seed

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        del user_B
        hash_V = splitmix64(self._row_N[profiles.values] + 1)
        list_V = torch.repeat_interleave(torch.arange(len(profiles)), profiles.lengths)
        sum_B = torch.zeros(len(profiles), dtype=torch.int64).index_add_(0, list_V, hash_V)
        return splitmix64(sum_B + self._seed)

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        hash_BT = splitmix64(state[:, None] ^ splitmix64(self._row_N[start:stop] + 1)[None, :])
        return (hash_BT & 0xFFFFFF).float() / 2**24
