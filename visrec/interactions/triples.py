"""Triples (profile, positive, negative), drawn many at a time.

Random sampling, the baseline that the guidelines are compared with: an interaction drawn uniformly
gives user and positive, the profile is what else the user took, and the negative is an item drawn
uniformly from those the user did not take.

A step's triples are the union of `STREAMS` streams (more where there are more workers), each seeded
by (seed, epoch, step, stream). Workers share the streams out among them, so one worker and two see
the same triples, and a run that resumes at an epoch draws what it would have drawn.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visrec.errors import InputError
from visrec.ragged import Ragged, offsets_of

STREAMS = 8
_SHUFFLE = 1 << 32  # a stream number of its own, for what all streams of an epoch share


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How triples are drawn.

    Attributes:
        max_profile: a longer profile is cut to this many of its items, drawn anew each time.
        keep_positive_in_profile: leave the positive among the items of the profile, as the
            reference code does.
    """

    max_profile: int = 20
    keep_positive_in_profile: bool = False

    def __post_init__(self) -> None:
        if self.max_profile < 1:
            raise InputError(
                f"Found --sampling.max_profile {self.max_profile}; expected at least 1."
            )


@dataclass(frozen=True)
class Triples:
    """B triples of catalogue rows.

    Args:
        user_B: (B,) users.
        profiles: B lists of items.
        positive_B: (B,) items.
        negative_B: (B,) items.
    """

    user_B: npt.NDArray[np.int64]
    profiles: Ragged
    positive_B: npt.NDArray[np.int64]
    negative_B: npt.NDArray[np.int64]


def stream_count(workers: int) -> int:
    """The least common multiple of `STREAMS` and the workers: 8 for 1, 2, 4 or 8 of them."""
    return math.lcm(STREAMS, workers)


class TripleSampler:
    """Draws triples from the training items of each user.

    Args:
        train: U lists of training items, no item twice in one list.
        num_items: N, the items that a negative is drawn from.
        config: how.
        seed: the run's seed.

    Raises:
        InputError: no user has what a triple needs.
    """

    def __init__(self, train: Ragged, num_items: int, config: SamplingConfig, seed: int) -> None:
        self._train, self._num_items, self._config, self._seed = train, num_items, config, seed
        lengths = train.lengths
        least = 1 if config.keep_positive_in_profile else 2
        usable_U = (lengths >= least) & (lengths < num_items)
        self._user_R = train.owners
        self._row_S = np.flatnonzero(usable_U[self._user_R])
        if not len(self._row_S):
            raise InputError(
                f"None of the {len(train)} users has {least} training items or more (and fewer "
                f"than all {num_items}); a triple needs them. Hold out less (--split.test, "
                "--split.validation), lower --interactions.min_rating, or add interactions."
            )
        self._taken = np.sort(self._user_R * num_items + train.values)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Shuffles each user's items anew, which is what makes a cut profile a random one."""
        random = np.random.default_rng((self._seed, epoch, _SHUFFLE))
        order = np.lexsort((random.random(len(self._user_R)), self._user_R))
        self._shuffled = self._train.values[order]
        self._epoch = epoch

    def step(self, step: int, size: int, streams: Iterable[int]) -> Triples:
        """The triples of some streams of one step.

        Args:
            step: its number in the epoch.
            size: triples a stream.
            streams: which ones.
        """
        parts = [
            self._draw(size, np.random.default_rng((self._seed, self._epoch, step, stream)))
            for stream in streams
        ]
        return _joined(parts)

    def _draw(self, size: int, random: np.random.Generator) -> Triples:
        row_B = self._row_S[random.integers(0, len(self._row_S), size)]
        user_B = self._user_R[row_B]
        return Triples(
            user_B=user_B,
            profiles=self._profiles(row_B, user_B, random),
            positive_B=self._shuffled[row_B].astype(np.int64),
            negative_B=self._negatives(user_B, random),
        )

    def _profiles(
        self,
        row_B: npt.NDArray[np.int64],
        user_B: npt.NDArray[np.int64],
        random: np.random.Generator,
    ) -> Ragged:
        """A window of the user's shuffled items, taken as a ring, with or without the positive."""
        keep = self._config.keep_positive_in_profile
        start_B = self._train.offsets[user_B]
        count_B = self._train.offsets[user_B + 1] - start_B
        length_B = np.minimum(count_B if keep else count_B - 1, self._config.max_profile)
        # Kept: the window may begin at the positive or up to length - 1 items before it. Left out:
        # it begins 1 to count - length items behind it.
        shift_B = (
            -random.integers(0, length_B) if keep else random.integers(1, count_B - length_B + 1)
        )
        first_B = row_B - start_B + shift_B
        offsets = offsets_of(length_B)
        within_V = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - first_B, length_B)
        place_V = within_V % np.repeat(count_B, length_B)
        return Ragged(self._shuffled[np.repeat(start_B, length_B) + place_V], offsets)

    def _negatives(
        self, user_B: npt.NDArray[np.int64], random: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Uniform over the items that the user did not take: drawn again where one was."""
        negative_B = random.integers(0, self._num_items, len(user_B))
        wrong = np.arange(len(user_B))
        while len(wrong := wrong[self._is_taken(user_B[wrong], negative_B[wrong])]):
            negative_B[wrong] = random.integers(0, self._num_items, len(wrong))
        return negative_B

    def _is_taken(
        self, user_B: npt.NDArray[np.int64], item_B: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        key_B = user_B * self._num_items + item_B
        place_B = np.minimum(np.searchsorted(self._taken, key_B), len(self._taken) - 1)
        return np.asarray(self._taken[place_B] == key_B)


def _joined(parts: list[Triples]) -> Triples:
    lengths = np.concatenate([part.profiles.lengths for part in parts])
    return Triples(
        user_B=np.concatenate([part.user_B for part in parts]),
        profiles=Ragged(
            np.concatenate([part.profiles.values for part in parts]), offsets_of(lengths)
        ),
        positive_B=np.concatenate([part.positive_B for part in parts]),
        negative_B=np.concatenate([part.negative_B for part in parts]),
    )
