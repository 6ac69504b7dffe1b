"""What a step trains on: one source of batches for each kind that a model can train on."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.models.base import Needs
from visrec.models.inputs import Candidates, JaggedTensor, RatingBatch, TripleBatch, UserBatch
from visrec.sampling.candidates import CandidateSampler, InBatch, SampledCandidates, taken_mask
from visrec.sampling.guidelines import ANONYMOUS_PROFILES
from visrec.sampling.triples import SamplingConfig, Triples, TripleSampler
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
    """Batches of triples, or of positives and candidates; see `visrec.sampling.triples`.

    Raises:
        InputError: a guideline draws profiles that are nobody's, for a model that needs users.
    """

    def __init__(
        self, data: TrainingData, sampling: SamplingConfig, seed: int, needs: Needs
    ) -> None:
        nobody = sorted(set(sampling.drawn_by) & ANONYMOUS_PROFILES)
        if nobody and not needs.supports_new_users:
            raise InputError(
                f"Found {nobody[0]} in --sampling.guidelines, which draws profiles that are "
                "nobody's, and the model has a vector for each user; expected other guidelines, or "
                "another --model.name."
            )
        if not needs.supports_new_users:
            sampling = profile_unread(sampling)
        self._data, self._needs, self._config = data, needs, sampling
        self._seed, self._epoch = seed, 0
        self._facts = data.facts
        self._sampler = TripleSampler(self._facts, sampling, seed)
        self._candidates: CandidateSampler | InBatch | None = None
        if sampling.negatives == "catalogue":
            self._candidates = CandidateSampler(data.train, len(data.item_ids), sampling, seed)
        elif sampling.negatives == "in_batch":
            self._candidates = InBatch(data.train, len(data.item_ids), sampling)

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
        drawn: SampledCandidates | None = None
        if isinstance(self._candidates, InBatch):
            drawn = self._candidates.of(self._sampler.positives(step, size, rank, workers))
        elif self._candidates:
            drawn = self._candidates.step((self._epoch, step))
        item_C = drawn.item_C if drawn else None
        batch = make_batch(triples, item_C, self._data, self._needs, device)
        candidates = None
        if drawn:
            taken_BC = taken_mask(triples, self._facts, drawn.item_C)
            candidates = Candidates(_tensor(taken_BC, device), _tensor(drawn.log_q_C, device))
        seed = step_seed(self._seed, self._epoch, step)
        return dataclasses.replace(batch, candidates=candidates, seed=seed)


class DrawnTripleSource(TripleSource):
    """Triples for a model that scores every pair on its own, and so has no candidates in common."""

    def __init__(
        self, data: TrainingData, sampling: SamplingConfig, seed: int, needs: Needs
    ) -> None:
        self._asked = sampling.negatives
        super().__init__(data, drawn_alone(sampling), seed, needs)

    @property
    def notes(self) -> tuple[str, ...]:
        if self._config.negatives == self._asked:
            return self._sampler.notes
        note = f"--sampling.negatives {self._asked} is drawn: the model scores pairs one by one"
        return (note, *self._sampler.notes)


def profile_unread(sampling: SamplingConfig) -> SamplingConfig:
    """The same for a model that looks its users up and does not read their profiles.

    A profile may keep the positive, so that who took one item alone is an example too, and an item
    of it is enough.
    """
    return dataclasses.replace(
        sampling, keep_positive_in_profile=True, max_profile=1, sub_profiles=False
    )


def drawn_alone(sampling: SamplingConfig) -> SamplingConfig:
    """The same with negatives of each triple's own."""
    if sampling.negatives in ("drawn", "hard"):
        return sampling
    return dataclasses.replace(sampling, negatives="drawn")


class UserSource:
    """Users with all of their training items, every user once before any comes again."""

    notes: tuple[str, ...] = ()

    def __init__(
        self, data: TrainingData, sampling: SamplingConfig, seed: int, needs: Needs
    ) -> None:
        del sampling, needs
        self._train, self._seed = data.train, seed
        self._user_T = np.flatnonzero(data.train.lengths > 0)
        if not len(self._user_T):
            raise InputError(
                f"None of the {len(data.train)} users has a training item; expected some. Hold out "
                "less (--split.test, --split.validation), lower --interactions.min_rating, or add "
                "interactions."
            )
        self._order_E, self._epoch = self._user_T, 0

    def start_epoch(self, epoch: int, examples: int) -> None:
        self._epoch = epoch
        random = np.random.default_rng((self._seed, epoch))
        rounds = -(-examples // len(self._user_T))
        orders = [random.permutation(self._user_T) for _ in range(rounds)]
        self._order_E = np.concatenate(orders)[:examples]

    def batch(
        self, step: int, size: int, rank: int, workers: int, device: torch.device
    ) -> UserBatch:
        share = size // workers
        first = step * size + rank * share
        items = self._train.take(self._order_E[first : first + share])
        seed = step_seed(self._seed, self._epoch, step)
        return UserBatch(JaggedTensor.of(items, device), rank * share, size, seed)


class RatingSource:
    """Training items with what the user thought of them, each beside one the user did not take.

    Where nobody rated anything, what was taken counts 1.
    """

    def __init__(
        self, data: TrainingData, sampling: SamplingConfig, seed: int, needs: Needs
    ) -> None:
        del needs
        alone = dataclasses.replace(sampling, guidelines={"random": 1.0}, negatives="drawn")
        self._sampler = TripleSampler(data.facts, profile_unread(alone), seed)
        self._items = len(data.item_ids)
        key_R = self._key(data.train.owners, data.train.values)
        order = np.argsort(key_R)
        self._key_R = key_R[order]
        rating_R = np.ones(len(key_R), np.float32) if data.rating_R is None else data.rating_R
        self._rating_R = rating_R[order]
        self.notes = () if data.rating_R is not None else ("no ratings: what was taken counts 1",)

    def _key(self, user_B: npt.NDArray[Any], item_B: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        return np.asarray(user_B.astype(np.int64) * self._items + item_B)

    def start_epoch(self, epoch: int, examples: int) -> None:
        self._sampler.start_epoch(epoch, examples)

    def batch(
        self, step: int, size: int, rank: int, workers: int, device: torch.device
    ) -> RatingBatch:
        triples = self._sampler.step(step, size, rank, workers)
        place_B = np.searchsorted(self._key_R, self._key(triples.user_B, triples.positive_B))
        return RatingBatch(
            user_B=_tensor(triples.user_B, device),
            item_B=_tensor(triples.positive_B, device),
            rating_B=_tensor(self._rating_R[place_B], device),
            other_B=_tensor(triples.negative_BK[:, 0], device),
        )


SOURCES: dict[str, Callable[[TrainingData, SamplingConfig, int, Needs], BatchSource]] = {
    "triples": TripleSource,
    "drawn_triples": DrawnTripleSource,
    "users": UserSource,
    "ratings": RatingSource,
}


def step_seed(seed: int, epoch: int, step: int) -> int:
    """63 bits for what a model draws in one step, the same on all workers."""
    state = np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)
    return int(state[0] >> 1)


def make_batch(
    triples: Triples,
    item_C: npt.NDArray[np.int64] | None,
    data: TrainingData,
    needs: Needs,
    device: torch.device,
) -> TripleBatch:
    """Triples over their distinct items, candidates first, with what the model needs of them.

    Args:
        triples: the examples.
        item_C: the candidates of the step, or None where the triples have negatives of their own.
        data: features and categories.
        needs: which of these the model asks for.
        device: where the batch goes.
    """
    place_N = np.zeros(len(data.item_ids), np.int64)
    for item_V in (triples.profiles.values, triples.positive_B, triples.negative_BK):
        place_N[item_V] = 1
    if item_C is None:
        item_C = np.zeros(0, np.int64)
    place_N[item_C] = 0
    # A pass over the catalogue takes less than a sort of what is in the triples.
    item_M = np.concatenate([item_C, np.flatnonzero(place_N)])
    place_N[item_M] = np.arange(len(item_M))
    feature_ND = data.feature_ND if needs.features else data.feature_ND[:, :0]
    category_N = data.category_N
    category_M = np.full(len(item_M), -1) if category_N is None else category_N[item_M]
    return TripleBatch(
        item_M=_tensor(item_M, device),
        feature_MD=_tensor(feature_ND[item_M], device),
        category_M=_tensor(category_M, device),
        user_B=_tensor(triples.user_B, device),
        profiles=JaggedTensor.of(
            Jagged(place_N[triples.profiles.values], triples.profiles.offsets), device
        ),
        positive_B=_tensor(place_N[triples.positive_B], device),
        negative_BK=_tensor(place_N[triples.negative_BK], device),
    )


def _tensor(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
