"""Triples (profile, positive, negative), drawn many at a time.

The triples of an epoch are drawn in windows of about 65,536 and shuffled within a window. If
negatives are drawn, a triple that occurs twice in a window is drawn again, up to eight times.
Without drawn negatives repeats are kept, because a triple is then only a profile and a positive, of
which there may be fewer than a window has triples.

Profiles are cut in blocks of about 8,192 triples. Windows and blocks are seeded by (seed, epoch,
stream, number). Every worker draws the whole window and cuts the profiles of its own rows. So the
triples do not depend on the number of workers, and a run that resumes at an epoch draws what it
would have drawn without the interruption.

Shapes: B triples, K negatives of a triple (0 or 1), P positives of a block, all workers together.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from visrec.config import COUNTS, check_fields
from visrec.errors import InputError, no_examples_error
from visrec.jagged import Jagged
from visrec.sampling.guidelines import GUIDELINES, Guideline
from visrec.sampling.index import Ints, SamplingIndex
from visrec.sampling.negatives import (
    FineGrained,
    NegativeSampler,
    NoNegatives,
    OutsideProfile,
    Unrelated,
    VisuallyConsistent,
)
from visrec.sampling.profiles import cut_profiles
from visrec.sampling.rows import SampledTriples

_WINDOW = 65_536
_BLOCK = 8192
_REDRAWS = 8  # rounds in which repeated triples are drawn again; repeats left after that are kept
_WINDOW_STREAM, _PROFILE_STREAM = 0, 1  # parts of the seeds of windows and of blocks


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How triples are drawn.

    Attributes:
        guidelines: the weight of each guideline by its name: hidden_item, next_basket,
            favourite_artists, own_profile, single_item, same_artist, or random, the baseline.
            Each guideline draws a share of the triples in proportion to its weight.
        max_profile: longer profiles are cut to a random subset of this many items, drawn anew for
            each triple.
        sub_profiles: first cut each profile to a random subset whose size is drawn uniformly from
            1 to the profile's length, so that the model also learns from short profiles.
        keep_positive_in_profile: own_profile and random leave the positive among the items of the
            profile, as the reference code does.
        negatives: what each positive is compared with. catalogue means items of the catalogue, the
            same for all positives of a step; in_batch means the other positives of the step; drawn
            means one item for each triple, drawn as its guideline says.
        candidates: with catalogue, the most items that a positive is compared with in a step. If
            more items have training interactions, that many are sampled (see popularity), and the
            softmax loss corrects for how. Items without training interactions are never candidates.
        popularity: sampled candidates, and drawn negatives of the guideline random, are drawn in
            proportion to (training count + 1) to this power; 0 is uniform.
        own_cluster: the probability that a fine-grained negative is drawn from the positive's own
            visual cluster. Otherwise its cluster is drawn uniformly, and may be the same one.
    """

    guidelines: dict[str, float] = field(default_factory=lambda: {"random": 1.0})
    max_profile: int = 50
    sub_profiles: bool = True
    keep_positive_in_profile: bool = False
    negatives: Literal["catalogue", "in_batch", "drawn"] = "catalogue"
    candidates: int = 8192
    popularity: float = 0.0
    own_cluster: float = 0.65

    def __post_init__(self) -> None:
        check_fields(
            self,
            "sampling",
            guidelines="[0, 1000000]",
            max_profile="[1, 1000000]",
            candidates=COUNTS,
            popularity="[-10, 10]",
            own_cluster="[0, 1]",
        )
        if unknown := [name for name in self.guidelines if name not in GUIDELINES]:
            raise InputError(
                f"Found the guideline {unknown[0]} in --sampling.guidelines; expected one of "
                f"{', '.join(GUIDELINES)}.",
                key="sampling.guidelines",
            )
        if not any(self.guidelines.values()):
            raise InputError(
                f"Found --sampling.guidelines {self.guidelines}; expected a weight above 0.",
                key="sampling.guidelines",
            )

    @property
    def active_guidelines(self) -> tuple[str, ...]:
        """The guidelines with a weight above 0, in the order of `GUIDELINES`."""
        return tuple(name for name in GUIDELINES if self.guidelines.get(name, 0) > 0)

    @property
    def needs_clusters(self) -> bool:
        return set(self.active_guidelines) != {"random"}

    @property
    def artist_conditions(self) -> dict[str, list[str]]:
        """For each guideline with conditions on artists, which parts have one: positive, negative.

        A condition on the negative counts only if negatives are drawn.
        """
        parts = ("positive", "negative") if self.negatives == "drawn" else ("positive",)
        conditions = {
            name: [part for part in parts if part in GUIDELINES[name].artist_conditions]
            for name in self.active_guidelines
        }
        return {name: parts for name, parts in conditions.items() if parts}


@dataclass(frozen=True)
class Triples:
    """B triples of catalogue rows.

    Attributes:
        user_B: (B,) users; -1 for an anonymous profile of one item.
        profiles: B lists of items: profiles cut by `cut_profiles`, no longer in time order.
        positive_B: (B,) items.
        negative_BK: (B, K) items; K is 0 if negatives are not drawn.
    """

    user_B: Ints
    profiles: Jagged
    positive_B: Ints
    negative_BK: Ints

    def slice(self, start: int, stop: int) -> "Triples":
        """The triples from `start` to `stop`, without copying anything but offsets."""
        rows = slice(start, stop)
        return Triples(
            self.user_B[rows],
            self.profiles.slice(start, stop),
            self.positive_B[rows],
            self.negative_BK[rows],
        )


@dataclass(frozen=True)
class _BlockKey:
    """Identifies the block that a worker holds; it has the profiles of that worker's share.

    Attributes:
        number: the number of the block in its epoch.
        size: triples of a step, all workers together.
        rank: the worker's rank.
        workers: their number.
    """

    number: int
    size: int
    rank: int
    workers: int


class TripleSampler:
    """Draws triples by guidelines.

    Args:
        index: the training data.
        config: how triples are drawn.
        seed: the run's seed.

    Raises:
        NoExamplesError: the data give no triple for a guideline.
    """

    def __init__(self, index: SamplingIndex, config: SamplingConfig, seed: int) -> None:
        self._index, self._config, self._seed = index, config, seed
        self._guidelines = [
            make_guideline(name, index, config) for name in config.active_guidelines
        ]
        self.start_epoch(0, _WINDOW)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which conditions the data cannot fulfil, in words."""
        if self._index.artist_N is not None or not self._config.artist_conditions:
            return ()
        dropped = ", ".join(
            f"{name} ({' and '.join(parts)})"
            for name, parts in self._config.artist_conditions.items()
        )
        return (f"no item has an artist: no condition on artists in {dropped}",)

    def start_epoch(self, epoch: int, triples: int) -> None:
        """Begins an epoch of `triples` triples; its windows are at most that large."""
        self._epoch, self._triples = epoch, triples
        self._window: tuple[tuple[int, int], SampledTriples] | None = None
        self._block: tuple[_BlockKey, Triples, Ints] | None = None

    def step(self, step: int, size: int, rank: int = 0, workers: int = 1) -> Triples:
        """One worker's share of the triples of a step.

        Args:
            step: its number in the epoch.
            size: triples of the step, all workers together; a multiple of `workers`.
            rank: the worker's rank.
            workers: the number of workers.
        """
        triples, _ = self._block_of(step, size, rank, workers)
        share = size // workers
        start = step % self._steps_per_block(size) * share
        return triples.slice(start, start + share)

    def positives(self, step: int, size: int, rank: int = 0, workers: int = 1) -> Ints:
        """(size,) the positives of a step, all workers together; arguments as for `step`."""
        _, positive_P = self._block_of(step, size, rank, workers)
        start = step % self._steps_per_block(size) * size
        return positive_P[start : start + size]

    def _steps_per_block(self, size: int) -> int:
        return max(1, min(_BLOCK, self._triples) // size)

    def _block_of(self, step: int, size: int, rank: int, workers: int) -> tuple[Triples, Ints]:
        """One worker's triples of the block with this step, and the positives of all workers."""
        key = _BlockKey(step // self._steps_per_block(size), size, rank, workers)
        if self._block is None or self._block[0] != key:
            self._block = key, *self._make_block(key)
        return self._block[1:]

    def _make_block(self, key: _BlockKey) -> tuple[Triples, Ints]:
        rows = self._steps_per_block(key.size) * key.size
        sampled = self._sampled_block(key.number, rows)
        share = slice(key.rank * key.size // key.workers, (key.rank + 1) * key.size // key.workers)
        worker_rows = np.arange(rows).reshape(-1, key.size)[:, share].reshape(-1)
        random = np.random.default_rng((self._seed, self._epoch, _PROFILE_STREAM, key.number))
        config = self._config
        profiles = cut_profiles(
            self._index, sampled, worker_rows, config.max_profile, config.sub_profiles, random
        )
        selected = sampled.take(worker_rows)
        triples = Triples(
            user_B=np.where(
                selected.profile_row_B < self._index.num_users, selected.profile_row_B, -1
            ),
            profiles=profiles,
            positive_B=selected.positive_B,
            negative_BK=selected.negative_BK,
        )
        return triples, sampled.positive_B

    def _sampled_block(self, block: int, rows: int) -> SampledTriples:
        """The triples of a block of `rows`, all workers together; draws a window if needed."""
        blocks_per_window = max(1, min(_WINDOW, self._triples) // rows)
        window, first = divmod(block, blocks_per_window)
        key = (window, rows)
        if self._window is None or self._window[0] != key:
            self._window = key, self._draw_window(window, blocks_per_window * rows)
        return self._window[1].take(slice(first * rows, (first + 1) * rows))

    def _draw_window(self, window: int, size: int) -> SampledTriples:
        """Draws a window's triples, and repeats among them again if they have negatives."""
        random = np.random.default_rng((self._seed, self._epoch, _WINDOW_STREAM, window))
        edges = self._edges(size)
        sampled = SampledTriples.concat(
            guideline.draw(int(count), random)
            for guideline, count in zip(self._guidelines, np.diff(edges), strict=True)
        )
        for _ in range(_REDRAWS if sampled.negative_BK.shape[1] else 0):
            again = find_repeats(sampled)
            if not len(again):
                break
            bounds = np.searchsorted(again, edges)
            for guideline, start, stop in zip(
                self._guidelines, bounds[:-1], bounds[1:], strict=True
            ):
                if stop > start:
                    sampled.put(again[start:stop], guideline.draw(int(stop - start), random))
        return sampled.take(random.permutation(size))

    def _edges(self, size: int) -> Ints:
        """Where each guideline's triples begin and end in a window before it is shuffled."""
        weights = np.array(
            [self._config.guidelines[name] for name in self._config.active_guidelines]
        )
        share = np.cumsum(weights) / weights.sum() * size
        return np.append(0, np.rint(share)).astype(np.int64)


def make_guideline(name: str, index: SamplingIndex, config: SamplingConfig) -> Guideline:
    """Builds a guideline with its negative sampler.

    Raises:
        NoExamplesError: the data give no triple for it.
    """
    negatives = make_negative_sampler(name, index, config)
    guideline = GUIDELINES[name](index, negatives, config.keep_positive_in_profile)
    if not guideline.can_draw:
        longest = int(index.train.lengths.max(initial=0))
        raise no_examples_error(
            f"no triple can be drawn by the guideline {name} from {index.num_users} users with "
            f"{len(index.basket_R)} training items, at most {longest} of one user, and "
            f"{index.num_items} items of the catalogue",
            f"expected {guideline.requirement}. Change "
            "--sampling.guidelines, hold out less (--split.test, --split.validation), lower "
            "--interactions.min_rating, or add interactions.",
        )
    return guideline


def make_negative_sampler(
    guideline: str, index: SamplingIndex, config: SamplingConfig
) -> NegativeSampler:
    """Builds the sampler that draws a guideline's negatives."""
    if config.negatives != "drawn":
        return NoNegatives(index)
    match guideline:
        case "own_profile" | "single_item":
            return FineGrained(index, config.own_cluster)
        case "same_artist":
            return VisuallyConsistent(index, config.own_cluster)
        case "favourite_artists" | "next_basket" | "hidden_item":
            return Unrelated(index)
        case "random":
            return OutsideProfile(index, config.popularity)
    raise AssertionError(f"no negative sampler for the guideline {guideline}")


def find_repeats(sampled: SampledTriples) -> Ints:
    """Sorted rows with the (profile row, positive, negatives) of an earlier row.

    Rows are compared by 64-bit hashes. A collision, in one of 10 ** 10 windows, costs a redraw.
    """
    hash_B = np.zeros(len(sampled.positive_B), np.uint64)
    for column in (sampled.profile_row_B, sampled.positive_B, *sampled.negative_BK.T):
        hash_B = (hash_B ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        hash_B ^= hash_B >> np.uint64(29)
    sorted_B = np.sort(hash_B)
    repeated = sorted_B[1:][sorted_B[1:] == sorted_B[:-1]]
    if not len(repeated):
        return np.zeros(0, np.int64)
    row_S = np.flatnonzero(np.isin(hash_B, repeated))
    first = np.unique(hash_B[row_S], return_index=True)[1]
    return np.delete(row_S, first)
