"""What a step trains on: one source of batches for each kind that a model can train on."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.interactions.triples import SamplingConfig, Triples, TripleSampler
from visrec.models.contract import Bags, TripleBatch
from visrec.training.data import TrainingData


class BatchSource(Protocol):
    """Batches by epoch, step and stream, the same however many workers share the streams."""

    def start_epoch(self, epoch: int) -> None: ...

    def batch(self, step: int, size: int, streams: Iterable[int], device: torch.device) -> Any:
        """The batch of some streams of one step, `size` examples from each."""


class TripleSource:
    """Batches of triples; see `visrec.interactions.triples`."""

    def __init__(self, data: TrainingData, sampling: SamplingConfig, seed: int) -> None:
        self._data = data
        self._sampler = TripleSampler(data.train, len(data.item_ids), sampling, seed)

    def start_epoch(self, epoch: int) -> None:
        self._sampler.start_epoch(epoch)

    def batch(
        self, step: int, size: int, streams: Iterable[int], device: torch.device
    ) -> TripleBatch:
        return make_batch(self._sampler.step(step, size, streams), self._data, device)


SOURCES: dict[str, Callable[[TrainingData, SamplingConfig, int], BatchSource]] = {
    "triples": TripleSource,
}


def make_batch(triples: Triples, data: TrainingData, device: torch.device) -> TripleBatch:
    """Triples over their distinct items, with features, on the device."""
    parts = [triples.profiles.values, triples.positive_B, triples.negative_B]
    item_M, place = np.unique(np.concatenate(parts), return_inverse=True)
    profile_V, positive_B, negative_B = np.split(place, np.cumsum([len(p) for p in parts])[:-1])

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return TripleBatch(
        item_M=tensor(item_M),
        feature_MD=tensor(data.feature_ND[item_M]).float(),
        user_B=tensor(triples.user_B),
        profiles=Bags(tensor(profile_V), tensor(triples.profiles.offsets)),
        positive_B=tensor(positive_B),
        negative_BK=tensor(negative_B).reshape(len(triples.positive_B), -1),
    )
