"""What a step trains on: one source of batches for each kind that a model can train on."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.interactions.triples import SamplingConfig, Triples, TripleSampler
from visrec.models.contract import Bags, Candidates, TripleBatch
from visrec.training.candidates import CandidateSampler, Drawn, taken_mask
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
    """Batches of triples, or of positives and candidates; see `visrec.interactions.triples`."""

    def __init__(self, data: TrainingData, sampling: SamplingConfig, seed: int) -> None:
        self._data, self._epoch = data, 0
        self._sampler = TripleSampler(data.facts, sampling, seed)
        self._candidates = (
            CandidateSampler(data.train, len(data.item_ids), sampling, seed)
            if sampling.negatives == "catalogue"
            else None
        )

    @property
    def notes(self) -> tuple[str, ...]:
        return self._sampler.notes

    def start_epoch(self, epoch: int, examples: int) -> None:
        self._epoch = epoch
        self._sampler.start_epoch(epoch, examples)

    def batch(
        self, step: int, size: int, rank: int, workers: int, device: torch.device
    ) -> TripleBatch:
        triples = self._sampler.step(step, size, rank, workers)
        drawn = self._candidates.step((self._epoch, step)) if self._candidates else None
        return make_batch(triples, drawn, self._data, device)


SOURCES: dict[str, Callable[[TrainingData, SamplingConfig, int], BatchSource]] = {
    "triples": TripleSource,
}


def make_batch(
    triples: Triples, drawn: Drawn | None, data: TrainingData, device: torch.device
) -> TripleBatch:
    """Triples over their distinct items, with features, on the device.

    Args:
        triples: the examples.
        drawn: the candidates of the step, or None where the triples have negatives of their own.
        data: features, and what each user took.
        device: where the batch goes.
    """
    parts = [triples.profiles.values, triples.positive_B, triples.negative_BK.reshape(-1)]
    if drawn:
        parts.append(drawn.item_C)
    item_V = np.concatenate(parts)
    place_N = np.zeros(len(data.item_ids), np.int64)
    place_N[item_V] = 1
    item_M = np.flatnonzero(place_N)  # a pass over the catalogue takes less than a sort of V
    place_N[item_M] = np.arange(len(item_M))

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return TripleBatch(
        item_M=tensor(item_M),
        feature_MD=tensor(data.feature_ND[item_M]).float(),
        user_B=tensor(triples.user_B),
        profiles=Bags(tensor(place_N[triples.profiles.values]), tensor(triples.profiles.offsets)),
        positive_B=tensor(place_N[triples.positive_B]),
        negative_BK=tensor(place_N[triples.negative_BK]),
        candidates=Candidates(
            place_C=tensor(place_N[drawn.item_C]),
            taken_BC=tensor(taken_mask(triples, data.train, drawn)),
            log_q_C=tensor(drawn.log_q_N[drawn.item_C]),
        )
        if drawn
        else None,
    )
