"""Examples at their own moments: what was known when an interaction happened, and nothing later.

The profile of an example is what the user had taken before the basket of the positive, the latest
`--sampling.max_profile` items, oldest first; a first basket has an empty one. With
`--sampling.sub_profiles`, half of the profiles are subsampled: a probability is drawn for each of
these, and each of its items stays with that probability, so that the model also learns from short
profiles and does not lean on the latest item alone. The positive is compared with candidates of the
catalogue; if the split is by night, only with those that somebody had taken by then.

An interaction has a single profile at its moment, which the network soon memorizes if there are few
interactions. So every second step trains taste alone: a profile has the user's latest items
(`--sampling.max_profile` again), those after the positive included, and every profile is
subsampled. Such profiles say nothing about time, so the recency means are 0 in these steps. The
items' activity is still that of the moment.

In a catalogue of unique works, most interactions are the first with their item. Earlier
interactions say nothing about an item, so taste is all there is to learn: every step trains it,
without activity.

Shapes: B examples, R training rows, E examples of an epoch, C candidates, G moments, A features of
activity, V entries.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from visrec.interactions.activity import EVER_TAKEN, moment_of
from visrec.jagged import Jagged, concat_ranges, offsets_from_lengths
from visrec.models.base import ModelTraits
from visrec.models.inputs import ActivityBatch, Candidates, TripleBatch
from visrec.sampling.candidates import CandidateSampler, invalid_negative_mask
from visrec.sampling.index import SamplingIndex
from visrec.sampling.triples import SamplingConfig, Triples
from visrec.training.batches import make_batch, no_user_has, step_seed, tensor_on
from visrec.training.data import TrainingData

Ints = npt.NDArray[np.int64]

_SUBSAMPLE_STREAM = 1 << 34  # part of the seed, which no other random numbers of a step have


class MomentSource:
    """Batches of examples at their own moments. Every row comes once before any comes again."""

    def __init__(
        self, data: TrainingData, sampling: SamplingConfig, seed: int, traits: ModelTraits
    ) -> None:
        self._data, self._traits, self._seed, self._epoch = data, traits, seed, 0
        self._index, self._activity = data.sampling_index, data.activity
        require_two_baskets(self._index)
        self.rows: int | None = len(data.train.values)
        self._sampling = dataclasses.replace(sampling, negatives="catalogue")
        self._candidates = CandidateSampler(data.train, len(data.item_ids), self._sampling, seed)
        values, time_R = data.train.values, data.time_R
        self._unique_works = not self._activity.are_mostly_known(values, time_R)
        # Candidates are limited like the items of evaluation (`visrec.retrieval.moments.Moments`),
        # except that items first taken on the day itself are left out.
        self._among_known = data.provenance.split.by == "night" and not self._unique_works
        self._order_E = np.zeros(0, np.int64)
        self.notes = self._notes(sampling)

    def _notes(self, sampling: SamplingConfig) -> tuple[str, ...]:
        notes = []
        if sampling.active_guidelines != ("random",):
            notes.append(
                "--sampling.guidelines are not used: the model trains on each interaction at its "
                "own moment"
            )
        if sampling.negatives != "catalogue":
            notes.append(
                f"--sampling.negatives {sampling.negatives} is replaced by catalogue: the model "
                "compares each interaction with the items of its moment"
            )
        if self._unique_works:
            notes.append(
                "most interactions are the first with their item, so the model learns taste alone: "
                "from the latest other items of each user, and not from what was taken by then"
            )
        return tuple(notes)

    def start_epoch(self, epoch: int, examples: int) -> None:
        self._epoch = epoch
        # Rows go on where the last epoch ended.
        rows, first, stop = len(self._data.train.values), epoch * examples, (epoch + 1) * examples
        parts = []
        for number in range(first // rows, (stop - 1) // rows + 1):
            before = number * rows
            order_R = self._round(number, rows)[max(first - before, 0) : stop - before]
            parts.append(order_R.astype(np.int64))  # a copy, so that the round can be freed
        self._order_E = np.concatenate(parts)

    def _round(self, number: int, rows: int) -> npt.NDArray[np.integer]:
        """(R,) all rows in the random order of a round."""
        smallest = np.int32 if rows <= np.iinfo(np.int32).max else np.int64
        return np.random.default_rng((self._seed, number)).permutation(
            np.arange(rows, dtype=smallest)
        )

    def batch(
        self, step: int, size: int, rank: int, workers: int, device: torch.device
    ) -> TripleBatch:
        share = size // workers
        mine = slice(rank * share, (rank + 1) * share)
        row_B = self._order_E[step * size : (step + 1) * size]
        profiles = self._profiles(row_B, step).slice(mine.start, mine.stop)
        row_B = row_B[mine]
        positive_B = self._data.train.values[row_B].astype(np.int64)
        none_B0 = np.zeros((len(row_B), 0), np.int64)
        triples = Triples(self._user_of(row_B), profiles, positive_B, none_B0)
        sampled = self._candidates.step((self._epoch, step))
        batch = make_batch(triples, sampled.item_C, self._data, self._traits, device)
        activity, known_BC = self._activity_batch(positive_B, sampled.item_C, row_B, device)
        invalid_BC = invalid_negative_mask(triples, self._index, sampled.item_C)
        if known_BC is not None:
            invalid_BC |= ~known_BC
        return dataclasses.replace(
            batch,
            candidates=Candidates(
                tensor_on(invalid_BC, device), tensor_on(sampled.log_q_C, device)
            ),
            activity=activity,
            ordered_profiles=not self._trains_taste(step),
            seed=step_seed(self._seed, self._epoch, step),
        )

    def _activity_batch(
        self, positive_B: Ints, item_C: Ints, row_B: Ints, device: torch.device
    ) -> tuple[ActivityBatch, npt.NDArray[np.bool_] | None]:
        """The activity at the moments of the examples, and (B, C) which candidates were known then;
        None if all candidates count.

        Args:
            positive_B: (B,) the positives.
            item_C: (C,) the candidates.
            row_B: (B,) the training rows of the examples.
            device: the device of the tensors.
        """
        moment_B = moment_of(self._data.time_R[row_B])
        if self._unique_works:  # all at the first midnight, before which nobody took anything
            moment_B[:] = moment_of(self._activity.first_N).min()
        moment_G, group_B = np.unique(moment_B, return_inverse=True)
        # The candidates, and behind them the positives that are not among them.
        item_V = np.concatenate([item_C, np.setdiff1d(positive_B, item_C)])
        position_N = np.zeros(len(self._data.item_ids), np.int64)
        position_N[item_V] = np.arange(len(item_V))
        feature_GVA = self._activity.features(moment_G, item_V)
        candidate_GCA = feature_GVA[:, : len(item_C)]
        activity = ActivityBatch(
            group_B=tensor_on(group_B, device),
            candidate_GCA=tensor_on(candidate_GCA, device),
            positive_BA=tensor_on(feature_GVA[group_B, position_N[positive_B]], device),
        )
        known_BC = (candidate_GCA[:, :, EVER_TAKEN] > 0)[group_B] if self._among_known else None
        return activity, known_BC

    def _user_of(self, row_B: Ints) -> Ints:
        """(B,) the user of each training row."""
        return np.asarray(np.searchsorted(self._data.train.offsets, row_B, side="right") - 1)

    def _trains_taste(self, step: int) -> bool:
        return self._unique_works or step % 2 == 1

    def _profiles(self, row_B: Ints, step: int) -> Jagged:
        """The profiles of the examples of a step, all workers together."""
        train = self._data.train
        user_B, trains_taste = self._user_of(row_B), self._trains_taste(step)
        end_B = (
            train.offsets[user_B + 1] if trains_taste else self._index.basket_start(row_B, user_B)
        )
        start_B = np.maximum(train.offsets[user_B], end_B - self._sampling.max_profile)
        offsets = offsets_from_lengths(end_B - start_B)
        row_V = concat_ranges(start_B, offsets)
        profiles = Jagged(train.values[row_V], offsets)
        profiles = profiles.keep(row_V != np.repeat(row_B, profiles.lengths))
        if not self._sampling.sub_profiles:
            return profiles
        random = np.random.default_rng((self._seed, self._epoch, step, _SUBSAMPLE_STREAM))
        keep_probability_B = random.random(len(row_B))
        if not trains_taste:
            keep_probability_B[random.random(len(row_B)) < 0.5] = 1
        kept_V = random.random(len(profiles.values)) < np.repeat(
            keep_probability_B, profiles.lengths
        )
        # One item stays in any case: the latest one.
        kept_V[profiles.offsets[1:][profiles.lengths > 0] - 1] = True
        return profiles.keep(kept_V)


def require_two_baskets(index: SamplingIndex) -> None:
    """Refuses data in which no user has two baskets: no positive would have an earlier profile.

    Raises:
        NoExamplesError: no user has training items in two baskets.
    """
    if not index.has_two_baskets:
        raise no_user_has(len(index.train), "training items in two baskets")
