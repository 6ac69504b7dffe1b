"""What a step trains on: one source of batches for each kind that a model can train on."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.interactions.triples import SamplingConfig, Triples, TripleSampler
from visrec.models.contract import Bags, TripleBatch
from visrec.training.data import TrainingData


class BatchSource(Protocol):
    """Batches by epoch and step, of the same examples however many workers share them."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how batches are made from these data."""

    def start_epoch(self, epoch: int, examples: int) -> None:
        """Begins an epoch of so many examples."""

    def batch(self, step: int, size: int, rank: int, workers: int, device: torch.device) -> Any:
        """The share of worker `rank` of a step of `size` examples, a multiple of the workers."""


class TripleSource:
    """Batches of triples; see `visrec.interactions.triples`."""

    def __init__(self, data: TrainingData, sampling: SamplingConfig, seed: int) -> None:
        self._data = data
        self._sampler = TripleSampler(data.facts, sampling, seed)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._sampler.notes

    def start_epoch(self, epoch: int, examples: int) -> None:
        self._sampler.start_epoch(epoch, examples)

    def batch(
        self, step: int, size: int, rank: int, workers: int, device: torch.device
    ) -> TripleBatch:
        return make_batch(self._sampler.step(step, size, rank, workers), self._data, device)


SOURCES: dict[str, Callable[[TrainingData, SamplingConfig, int], BatchSource]] = {
    "triples": TripleSource,
}


def make_batch(triples: Triples, data: TrainingData, device: torch.device) -> TripleBatch:
    """Triples over their distinct items, with features, on the device."""
    parts = [triples.profiles.values, triples.positive_B, triples.negative_BK.reshape(-1)]
    item_V = np.concatenate(parts)
    place_N = np.zeros(len(data.item_ids), np.int64)
    place_N[item_V] = 1
    item_M = np.flatnonzero(place_N)  # a pass over the catalogue takes less than a sort of V
    place_N[item_M] = np.arange(len(item_M))
    edges = np.cumsum([len(part) for part in parts])[:-1]
    profile_V, positive_B, negative_V = np.split(place_N[item_V], edges)

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return TripleBatch(
        item_M=tensor(item_M),
        feature_MD=tensor(data.feature_ND[item_M]).float(),
        user_B=tensor(triples.user_B),
        profiles=Bags(tensor(profile_V), tensor(triples.profiles.offsets)),
        positive_B=tensor(positive_B),
        negative_BK=tensor(negative_V).reshape(triples.negative_BK.shape),
    )
