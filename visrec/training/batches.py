"""The batches of training steps: sources of triples, of users and of ratings.

`visrec.training.batch_sources` has all sources by the kind of batch that a model trains on.

Shapes: B examples of one worker, K negatives of an example, C shared candidates, M distinct items
of a batch, N items, A users with training items, P positives of all workers, R training rows, E
examples of an epoch, V values of a jagged array, D feature width.
"""

import dataclasses
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.errors import InputError, NoExamplesError, no_examples_error
from visrec.jagged import Jagged
from visrec.models.base import ModelTraits
from visrec.models.inputs import Candidates, JaggedTensor, RatingBatch, TripleBatch, UserBatch
from visrec.sampling.candidates import (
    CandidateSampler,
    InBatchCandidates,
    SampledCandidates,
    invalid_negative_mask,
)
from visrec.sampling.guidelines import ANONYMOUS_GUIDELINES
from visrec.sampling.triples import SamplingConfig, Triples, TripleSampler
from visrec.training.data import TrainingData

Batch = TripleBatch | UserBatch | RatingBatch


class BatchSource(Protocol):
    """Gives batches by epoch and step. A step has the same examples for any number of workers.

    Attributes:
        rows: the number of training rows, for a source that takes every row once before any again;
            None for any other source.
    """

    rows: int | None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about how batches are made from the data."""

    def start_epoch(self, epoch: int, examples: int) -> None:
        """Decides which examples the steps of an epoch get, and in what order."""

    def batch(self, step: int, size: int, rank: int, workers: int, device: torch.device) -> Batch:
        """The share of worker `rank` in a step of `size` examples, a multiple of `workers`."""


class TripleSource:
    """Batches of triples with drawn negatives, or of positives with shared candidates.

    Raises:
        InputError: a guideline draws profiles that belong to no user, and the model has user
            embeddings.
    """

    rows: int | None = None

    def __init__(
        self, data: TrainingData, sampling: SamplingConfig, seed: int, traits: ModelTraits
    ) -> None:
        anonymous = sorted(set(sampling.active_guidelines) & ANONYMOUS_GUIDELINES)
        if anonymous and not traits.supports_new_users:
            raise InputError(
                f"Found {anonymous[0]} in --sampling.guidelines, which samples profiles that "
                "belong to no user, and the model has a vector for each user; expected other "
                "guidelines, or another --model.name.",
                key="sampling.guidelines",
            )
        if not traits.supports_new_users:
            sampling = without_profiles(sampling)
        self._data, self._traits, self._config = data, traits, sampling
        self._seed, self._epoch = seed, 0
        self._index = data.sampling_index
        self._sampler = TripleSampler(self._index, sampling, seed)
        self._catalogue_candidates: CandidateSampler | None = None
        self._in_batch_candidates: InBatchCandidates | None = None
        items = len(data.item_ids)
        if sampling.negatives == "catalogue":
            self._catalogue_candidates = CandidateSampler(data.train, items, sampling, seed)
        elif sampling.negatives == "in_batch":
            self._in_batch_candidates = InBatchCandidates(data.train, items, sampling)

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
        sampled = self._sample_candidates(step, size, rank, workers)
        item_C = sampled.item_C if sampled else None
        batch = make_batch(triples, item_C, self._data, self._traits, device)
        candidates = None
        if sampled:
            invalid_BC = invalid_negative_mask(triples, self._index, sampled.item_C)
            candidates = Candidates(
                tensor_on(invalid_BC, device), tensor_on(sampled.log_q_C, device)
            )
        seed = step_seed(self._seed, self._epoch, step)
        return dataclasses.replace(batch, candidates=candidates, seed=seed)

    def _sample_candidates(
        self, step: int, size: int, rank: int, workers: int
    ) -> SampledCandidates | None:
        """The candidates that all workers share in a step; None if negatives are drawn."""
        if self._in_batch_candidates:
            positive_P = self._sampler.positives(step, size, rank, workers)
            return self._in_batch_candidates.from_positives(positive_P)
        if self._catalogue_candidates:
            return self._catalogue_candidates.step((self._epoch, step))
        return None


class PerTripleNegativesSource(TripleSource):
    """Triples with drawn negatives, for a model that scores pairs one by one.

    With shared candidates, such a model would have to score every candidate for every example.
    """

    def __init__(
        self, data: TrainingData, sampling: SamplingConfig, seed: int, traits: ModelTraits
    ) -> None:
        self._requested = sampling.negatives
        super().__init__(data, with_per_triple_negatives(sampling), seed, traits)

    @property
    def notes(self) -> tuple[str, ...]:
        if self._config.negatives == self._requested:
            return self._sampler.notes
        note = _replaced_negatives(self._requested, self._config.negatives)
        return (note, *self._sampler.notes)


def without_profiles(sampling: SamplingConfig) -> SamplingConfig:
    """The sampling for a model with user embeddings, which does not read profiles.

    The positive stays in the profile, so that a user with a single item also gives examples. A
    profile of one item suffices, because nothing reads it.
    """
    return dataclasses.replace(
        sampling, keep_positive_in_profile=True, max_profile=1, sub_profiles=False
    )


def with_per_triple_negatives(sampling: SamplingConfig) -> SamplingConfig:
    """The sampling with a drawn negative for each triple."""
    return dataclasses.replace(sampling, negatives="drawn")


def with_random_guideline(sampling: SamplingConfig) -> SamplingConfig:
    """The sampling by the guideline random alone, with drawn negatives."""
    return dataclasses.replace(sampling, guidelines={"random": 1.0}, negatives="drawn")


_BY_PAIR = "the model scores pairs one by one"


def _replaced_negatives(requested: str, used: str) -> str:
    return f"--sampling.negatives {requested} is replaced by {used}: {_BY_PAIR}"


class UserSource:
    """Users with all of their training items.

    Within an epoch, every user comes once before any comes again.
    """

    notes: tuple[str, ...] = ()

    rows: int | None = None

    def __init__(
        self, data: TrainingData, sampling: SamplingConfig, seed: int, traits: ModelTraits
    ) -> None:
        del sampling, traits
        self._train, self._seed = data.train, seed
        self._user_A = np.flatnonzero(data.train.lengths > 0)
        if not len(self._user_A):
            raise no_user_has(len(data.train), "a training item")
        self._order_E, self._epoch = self._user_A, 0

    def start_epoch(self, epoch: int, examples: int) -> None:
        self._epoch = epoch
        random = np.random.default_rng((self._seed, epoch))
        rounds = -(-examples // len(self._user_A))
        orders = [random.permutation(self._user_A) for _ in range(rounds)]
        self._order_E = np.concatenate(orders)[:examples]

    def batch(
        self, step: int, size: int, rank: int, workers: int, device: torch.device
    ) -> UserBatch:
        share = size // workers
        first = step * size + rank * share
        items = self._train.take(self._order_E[first : first + share])
        seed = step_seed(self._seed, self._epoch, step)
        return UserBatch(JaggedTensor.from_jagged(items, device), rank * share, size, seed)


class RatingSource:
    """Training items with their users' ratings, and for each an item that the user did not take.

    They are drawn by the guideline random with drawn negatives, whatever the configuration says.
    Without ratings, each training item has the rating 1.
    """

    rows: int | None = None

    def __init__(
        self, data: TrainingData, sampling: SamplingConfig, seed: int, traits: ModelTraits
    ) -> None:
        del traits
        random = without_profiles(with_random_guideline(sampling))
        self._sampler = TripleSampler(data.sampling_index, random, seed)
        self._items = len(data.item_ids)
        key_R = self._key(data.train.row_ids, data.train.values)
        order = np.argsort(key_R)
        self._key_R = key_R[order]
        rating_R = np.ones(len(key_R), np.float32) if data.rating_R is None else data.rating_R
        self._rating_R = rating_R[order]
        notes = []
        if sampling.active_guidelines != random.active_guidelines:
            replaced = ", ".join(sampling.active_guidelines)
            notes.append(f"--sampling.guidelines {replaced} is replaced by random: {_BY_PAIR}")
        if sampling.negatives != random.negatives:
            notes.append(_replaced_negatives(sampling.negatives, random.negatives))
        if data.rating_R is None:
            notes.append("no ratings: each taken item counts as rated 1")
        self.notes = tuple(notes)

    def _key(
        self, user_B: npt.NDArray[np.int64], item_B: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """(B,) one number for each pair of user and item."""
        return np.asarray(user_B.astype(np.int64) * self._items + item_B)

    def start_epoch(self, epoch: int, examples: int) -> None:
        self._sampler.start_epoch(epoch, examples)

    def batch(
        self, step: int, size: int, rank: int, workers: int, device: torch.device
    ) -> RatingBatch:
        triples = self._sampler.step(step, size, rank, workers)
        row_B = np.searchsorted(self._key_R, self._key(triples.user_B, triples.positive_B))
        return RatingBatch(
            user_B=tensor_on(triples.user_B, device),
            item_B=tensor_on(triples.positive_B, device),
            rating_B=tensor_on(self._rating_R[row_B], device),
            other_B=tensor_on(triples.negative_BK[:, 0], device),
        )


def no_user_has(users: int, what: str) -> NoExamplesError:
    """The error for data that leave nothing to train on after holding out and filtering.

    Args:
        users: number of users.
        what: what none of them has and at least one should have.
    """
    return no_examples_error(
        f"none of the {users} users has {what}",
        "expected at least one. Hold out less (--split.test, --split.validation), lower "
        "--interactions.min_rating, or add interactions.",
    )


def step_seed(seed: int, epoch: int, step: int) -> int:
    """A 63-bit seed for the random numbers of a model in one step, the same on all workers."""
    state = np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)
    return int(state[0] >> 1)


def make_batch(
    triples: Triples,
    item_C: npt.NDArray[np.int64] | None,
    data: TrainingData,
    traits: ModelTraits,
    device: torch.device,
) -> TripleBatch:
    """A batch whose items are positions in `item_M`: the shared candidates, then all other items.

    Args:
        triples: the examples.
        item_C: the shared candidates of the step; None if negatives are drawn.
        data: features and categories of the items.
        traits: whether the model reads features.
        device: the device of the tensors.
    """
    if item_C is None:
        item_C = np.zeros(0, np.int64)
    is_other_N = np.zeros(len(data.item_ids), bool)
    for item_V in (triples.profiles.values, triples.positive_B, triples.negative_BK):
        is_other_N[item_V] = True
    is_other_N[item_C] = False
    # One pass over the catalogue takes less time than sorting the items of the triples.
    item_M = np.concatenate([item_C, np.flatnonzero(is_other_N)])
    position_N = np.zeros(len(data.item_ids), np.int64)
    position_N[item_M] = np.arange(len(item_M))
    feature_ND = data.feature_ND if traits.requires_features else data.feature_ND[:, :0]
    category_N = data.category_N
    category_M = np.full(len(item_M), -1) if category_N is None else category_N[item_M]
    return TripleBatch(
        item_M=tensor_on(item_M, device),
        feature_MD=tensor_on(feature_ND[item_M], device),
        category_M=tensor_on(category_M, device),
        user_B=tensor_on(triples.user_B, device),
        profiles=JaggedTensor.from_jagged(
            Jagged(position_N[triples.profiles.values], triples.profiles.offsets), device
        ),
        positive_B=tensor_on(position_N[triples.positive_B], device),
        negative_BK=tensor_on(position_N[triples.negative_BK], device),
    )


def tensor_on(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
