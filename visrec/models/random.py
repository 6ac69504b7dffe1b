"""Random: a seeded score per user and item, the other floor every table needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from visrec.config import SEEDS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.inputs import JaggedTensor
from visrec.models.splitmix import splitmix64


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    """Where the noise begins.

    Attributes:
        seed: another seed, another order.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "model", seed=SEEDS)


class Random(nn.Module):
    """See the module's docstring."""

    Config = RandomConfig
    needs = Needs(interactions=False)
    default_overrides: ClassVar[Mapping[str, Any]] = {}
    trains_on: Literal["nothing"] = "nothing"

    def __init__(self, config: RandomConfig, sizes: Sizes) -> None:
        del sizes
        super().__init__()
        self._seed = config.seed

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """There is nothing to take."""

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`rows`: (N,) the items' own numbers."""
        return {"rows": np.arange(len(catalogue))}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> "_NoiseScorer":
        return _NoiseScorer(zero_copy_tensor(arrays["rows"]), self._seed)


class _NoiseScorer:
    """A hash of (seed, user, item) in [0, 1), so that no score depends on tiles or workers.

    A user is the hash of the profile: it is the same wherever the user is scored.
    """

    space_Nd = None
    device = torch.device("cpu")

    def __init__(self, row_N: Tensor, seed: int) -> None:
        self.num_items = len(row_N)
        self._row_N, self._seed = row_N, seed

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        del user_B
        noise_V = splitmix64(self._row_N[profiles.values] + 1)
        owner_V = torch.repeat_interleave(torch.arange(len(profiles)), profiles.lengths)
        sums_B = torch.zeros(len(profiles), dtype=torch.int64).index_add_(0, owner_V, noise_V)
        return splitmix64(sums_B + self._seed)

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        noise_BT = splitmix64(state[:, None] ^ splitmix64(self._row_N[start:stop] + 1)[None, :])
        return (noise_BT & 0xFFFFFF).float() / 2**24
