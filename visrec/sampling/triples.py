"""Triples (profile, positive, negative), drawn many at a time.

An epoch's triples are drawn in windows of some 65,536, in mixed order and none twice in a window.
Windows, and the numbers by which their profiles are cut, are seeded by (seed, epoch, number): every
worker draws the whole window and cuts the profiles of its own rows, so that one worker and two see
the same triples, and a run that resumes at an epoch draws what it would have drawn.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from visrec.config import COUNTS, check_fields
from visrec.errors import InputError
from visrec.jagged import Jagged, offsets_of
from visrec.sampling.guidelines import GUIDELINES, Draw, SampledTriples
from visrec.sampling.index import Bools, Ints, SamplingIndex
from visrec.sampling.negatives import (
    NegativeSampler,
    fine_grained,
    no_negatives,
    outside_profile,
    random_below,
    unrelated,
    visually_consistent,
)

Chances = npt.NDArray[np.float64]

_WINDOW = 65_536
_ROUNDS = 8  # in which triples that are there already are drawn again; then they stay
_CUT = 8192  # profiles cut at once, for as many steps as that makes
_SUBSETS = 2048  # of them at a time: what is compared stays in the cache
_WINDOWS, _PARTS = 0, 1  # the seeds of windows and of the profiles of their parts


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How triples are drawn.

    Attributes:
        guidelines: weight of each guideline, of own_profile, single_item, favourite_artists,
            same_artist, next_basket, hidden_item, and random, the baseline. A weight is the
            guideline's share of the triples.
        max_profile: a longer profile is cut to this many of its items, drawn anew each time.
        sub_profiles: cut a profile to a size drawn uniformly from 1 to its length, and then to
            max_profile, so that short profiles are learned from as well.
        keep_positive_in_profile: own_profile and random leave the positive among the items of the
            profile, as the reference code does.
        negatives: catalogue has candidates of the catalogue stand against every positive of a
            step; in_batch has the step's other positives do so; drawn is one a triple as its
            guideline says, and hard is hard_pool a triple, drawn as for random, of which the one
            that the model scores highest counts.
        candidates: at most so many stand against the positives of a step: the whole catalogue
            where it has no more, otherwise as many drawn in proportion to popularity, which the
            loss corrects.
        unseen_candidates: items that nobody took in training are candidates too.
        hard_pool: how many are drawn for hard.
        popularity: a candidate, or a negative of random, is drawn in proportion to (its training
            count + 1) to this power; 0 is uniform.
        own_cluster: how often a fine-grained negative is from the positive's own visual cluster.
    """

    guidelines: dict[str, float] = field(default_factory=lambda: {"random": 1.0})
    max_profile: int = 50
    sub_profiles: bool = True
    keep_positive_in_profile: bool = False
    negatives: Literal["catalogue", "in_batch", "drawn", "hard"] = "catalogue"
    candidates: int = 8192
    unseen_candidates: bool = False
    hard_pool: int = 8
    popularity: float = 0.0
    own_cluster: float = 0.65

    def __post_init__(self) -> None:
        check_fields(
            self,
            "sampling",
            guidelines="[0, 1000000]",
            max_profile="[1, 1000000]",
            candidates=COUNTS,
            hard_pool="[1, 10000]",
            popularity="[-10, 10]",
            own_cluster="[0, 1]",
        )
        if unknown := sorted(set(self.guidelines) - set(GUIDELINES)):
            raise InputError(
                f"Found the guideline {unknown[0]} in --sampling.guidelines; expected of "
                f"{', '.join(GUIDELINES)}."
            )
        if not any(self.guidelines.values()):
            raise InputError(
                f"Found --sampling.guidelines {self.guidelines}; expected a weight above 0."
            )

    @property
    def drawn_by(self) -> tuple[str, ...]:
        """The guidelines with a weight above 0, in the order of the table."""
        return tuple(name for name in GUIDELINES if self.guidelines.get(name, 0) > 0)

    @property
    def needs_clusters(self) -> bool:
        return set(self.drawn_by) != {"random"}

    @property
    def by_artist(self) -> dict[str, list[str]]:
        """What each guideline draws with a condition on artists: positive, negative."""
        parts = ("positive", "negative") if self.negatives == "drawn" else ("positive",)
        asked = {
            name: [p for p in parts if p in GUIDELINES[name].by_artist] for name in self.drawn_by
        }
        return {name: parts for name, parts in asked.items() if parts}


@dataclass(frozen=True)
class Triples:
    """B triples of catalogue rows.

    Args:
        user_B: (B,) users; -1 where the profile is one item and nobody's.
        profiles: B lists of items, in no order.
        positive_B: (B,) items.
        negative_BK: (B, K) items.
    """

    user_B: Ints
    profiles: Jagged
    positive_B: Ints
    negative_BK: Ints

    def slice(self, start: int, stop: int) -> "Triples":
        """The triples from `start` to `stop`; nothing is copied but offsets."""
        rows = slice(start, stop)
        return Triples(
            self.user_B[rows],
            self.profiles.slice(start, stop),
            self.positive_B[rows],
            self.negative_BK[rows],
        )


class TripleSampler:
    """Draws triples by guidelines.

    Args:
        facts: of the training data.
        config: how.
        seed: the run's seed.

    Raises:
        InputError: nobody has what a guideline needs.
    """

    def __init__(self, facts: SamplingIndex, config: SamplingConfig, seed: int) -> None:
        self._facts, self._config, self._seed = facts, config, seed
        self._draws = [self._build(name) for name in config.drawn_by]
        self.start_epoch(0, _WINDOW)

    def _build(self, name: str) -> Draw:
        facts, guideline = self._facts, GUIDELINES[name]
        rule = negatives_of(name, facts, self._config)
        draw = guideline.build(facts, rule, self._config.keep_positive_in_profile)
        if draw is None:
            most = int(facts.train.lengths.max(initial=0))
            raise InputError(
                f"No triple can be drawn by the guideline {name} from {facts.num_users} users with "
                f"{len(facts.basket_R)} training items, at most {most} of one user, and "
                f"{facts.num_items} items of the catalogue; expected {guideline.needs}. Change "
                "--sampling.guidelines, hold out "
                "less (--split.test, --split.validation), lower --interactions.min_rating, or add "
                "interactions."
            )
        return draw

    @property
    def notes(self) -> tuple[str, ...]:
        """What the guidelines must do without, in words."""
        if self._facts.artist_N is not None or not self._config.by_artist:
            return ()
        lost = ", ".join(
            f"{name} ({' and '.join(parts)})" for name, parts in self._config.by_artist.items()
        )
        return (f"no item has an artist: no condition on artists in {lost}",)

    def start_epoch(self, epoch: int, triples: int) -> None:
        """Begins an epoch of so many triples; no window is larger."""
        self._epoch, self._triples = epoch, triples
        self._window: tuple[tuple[int, ...], SampledTriples] | None = None
        self._part: tuple[tuple[int, ...], Triples, Ints] | None = None

    def step(self, step: int, size: int, rank: int = 0, workers: int = 1) -> Triples:
        """One worker's share of the triples of a step.

        Args:
            step: its number in the epoch.
            size: triples of the step, all workers together; a multiple of `workers`.
            rank: which worker.
            workers: of how many.
        """
        triples, place = self._part_of(step, size, rank, workers)[0], step % self._steps(size)
        share = size // workers
        return triples.slice(place * share, (place + 1) * share)

    def positives(self, step: int, size: int, rank: int = 0, workers: int = 1) -> Ints:
        """(size,) the positives of a step, all workers together; arguments as for `step`."""
        positive_P, place = self._part_of(step, size, rank, workers)[1], step % self._steps(size)
        return positive_P[place * size : (place + 1) * size]

    def _steps(self, size: int) -> int:
        """For how many steps profiles are cut at once."""
        return max(1, min(_CUT, self._triples) // size)

    def _part_of(self, step: int, size: int, rank: int, workers: int) -> tuple[Triples, Ints]:
        """A worker's triples of the steps around this one, and the positives of all workers."""
        steps = self._steps(size)
        key = (step // steps, size, rank, workers)
        if self._part is None or self._part[0] != key:
            self._part = key, *self._cut(step // steps, steps * size, size, rank, workers)
        return self._part[1:]

    def _cut(
        self, part: int, rows: int, size: int, rank: int, workers: int
    ) -> tuple[Triples, Ints]:
        """A worker's triples of some steps, `rows` of all workers together, and all positives."""
        parts = max(1, min(_WINDOW, self._triples) // rows)
        key = (part // parts, rows)
        if self._window is None or self._window[0] != key:
            self._window = key, self._draw(part // parts, parts * rows)
        first = part % parts * rows
        drawn = self._window[1].take(slice(first, first + rows))
        share = slice(rank * size // workers, (rank + 1) * size // workers)
        mine = np.arange(rows).reshape(-1, size)[:, share].reshape(-1)
        random = np.random.default_rng((self._seed, self._epoch, _PARTS, part))
        profiles, positive_P = self._profiles(drawn, mine, random), drawn.positive_B
        drawn = drawn.take(mine)
        triples = Triples(
            user_B=np.where(drawn.owner_B < self._facts.num_users, drawn.owner_B, -1),
            profiles=profiles,
            positive_B=drawn.positive_B,
            negative_BK=drawn.negative_BK,
        )
        return triples, positive_P

    def _draw(self, window: int, size: int) -> SampledTriples:
        """A window's triples, none twice while there are others to be found."""
        random = np.random.default_rng((self._seed, self._epoch, _WINDOWS, window))
        edges = self._edges(size)
        counts = np.diff(edges)
        drawn = SampledTriples.join(
            [d(int(n), random) for d, n in zip(self._draws, counts, strict=True)]
        )
        for _ in range(_ROUNDS if drawn.negative_BK.shape[1] else 0):
            again = repeated(drawn)
            if not len(again):
                break
            bounds = np.searchsorted(again, edges)
            for draw, start, stop in zip(self._draws, bounds[:-1], bounds[1:], strict=True):
                if stop > start:
                    drawn.put(again[start:stop], draw(int(stop - start), random))
        return drawn.take(random.permutation(size))

    def _edges(self, size: int) -> Ints:
        """Where each guideline's triples begin and end in a window before it is mixed."""
        weights = np.array([self._config.guidelines[name] for name in self._config.drawn_by])
        share = np.cumsum(weights) / weights.sum() * size
        return np.append(0, np.rint(share)).astype(np.int64)

    def _profiles(self, drawn: SampledTriples, mine: Ints, random: np.random.Generator) -> Jagged:
        """The profiles of some rows, thinned and cut to random subsets where they are to be.

        Each row has its own among the random numbers, whichever worker it is for.
        """
        facts, config = self._facts, self._config
        begin_B = facts.profiles.offsets[drawn.owner_B]
        inside_B = (drawn.place_B >= 0) & (drawn.place_B < begin_B + drawn.length_B)
        stays_B = inside_B & drawn.stays_B
        full_B = drawn.length_B - (inside_B & ~stays_B)
        size_B = np.minimum(full_B, config.max_profile)
        # A row has a slot for each of its items, the positive's last where that stays.
        slots = Jagged(np.ones(size_B.sum(), bool), offsets_of(size_B))
        if config.sub_profiles:
            slots = subsample_profiles(slots, full_B, stays_B, random)
        longer_B = full_B > size_B
        chances = offsets_of(np.where(longer_B, size_B - stays_B, 0))
        chance_V = random.random(chances[-1] + config.max_profile)
        if len(mine) < len(size_B):
            slots = slots.take(mine)

        first_S = slots.offsets[:-1]
        counts_S = np.add.reduceat(slots.values, first_S, dtype=np.int64)
        slot_V = np.flatnonzero(slots.values)
        if (longer_S := longer_B[mine]).any():
            cut = mine[longer_S]
            of, stays = drawn.length_B[cut] - inside_B[cut], stays_B[cut]
            subset = subsets(of, size_B[cut] - stays, size_B[cut], chances[cut], chance_V)
            kept_V = slots.values[np.repeat(longer_S, slots.lengths)]
            drawn_V = subset.values + np.repeat(first_S[longer_S], subset.lengths)
            slot_V[np.repeat(longer_S, counts_S)] = drawn_V[kept_V]
        # The slots are the places but the positive's, which is the last where it stays.
        begin_S, stays_S, offsets = begin_B[mine], stays_B[mine], offsets_of(counts_S)
        hole_S = np.where(inside_B, drawn.place_B - begin_B, drawn.length_B)[mine] + first_S
        place_V = slot_V + (slot_V >= np.repeat(hole_S, counts_S))
        place_V[offsets[1:][stays_S] - 1] = hole_S[stays_S]
        place_V += np.repeat(begin_S - first_S, counts_S)
        return Jagged(facts.profiles.values[place_V], offsets)


def negatives_of(name: str, facts: SamplingIndex, config: SamplingConfig) -> NegativeSampler:
    """The rule by which a guideline's negatives are drawn."""
    if config.negatives in ("catalogue", "in_batch"):
        return no_negatives(facts)
    if config.negatives == "hard":
        return outside_profile(facts, config.popularity, config.hard_pool)
    match name:
        case "own_profile" | "single_item":
            return fine_grained(facts, config.own_cluster)
        case "same_artist":
            return visually_consistent(facts, config.own_cluster)
        case "random":
            return outside_profile(facts, config.popularity, 1)
    return unrelated(facts)


def repeated(drawn: SampledTriples) -> Ints:
    """Sorted rows whose (owner, positive, negatives) an earlier row has.

    Compared by 64-bit hashes: two triples of one hash, one in 10 ** 10 windows, cost a draw.
    """
    hash_B = np.zeros(len(drawn.owner_B), np.uint64)
    for column in (drawn.owner_B, drawn.positive_B, *drawn.negative_BK.T):
        hash_B = (hash_B ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        hash_B ^= hash_B >> np.uint64(29)
    sorted_B = np.sort(hash_B)
    twice = sorted_B[1:][sorted_B[1:] == sorted_B[:-1]]
    if not len(twice):
        return np.zeros(0, np.int64)
    row_S = np.flatnonzero(np.isin(hash_B, twice))
    first = np.unique(hash_B[row_S], return_index=True)[1]
    return np.delete(row_S, first)


def subsample_profiles(
    slots: Jagged, full_B: Ints, stays_B: Bools, random: np.random.Generator
) -> Jagged:
    """Which slots of each row stay when it is to have 1, 2, ... items, all sizes as likely.

    One item stays, and each other with a chance that is the row's own and uniform: so the number
    of the others is uniform too, and all subsets of a size are as likely. Chances are steps of
    1 / 65,536.

    Args:
        slots: B rows of one or more.
        full_B: (B,) the row's length before it was cut to its slots. The size is drawn from these,
            and sizes above the number of slots are that number.
        stays_B: (B,) whether it is the last item that stays.
        random: where the chances are from.
    """
    most, size_B = 65_535, slots.lengths
    chance_B = random.integers(0, most, len(slots), np.uint16, endpoint=True)
    chance_B[random_below(full_B, random) >= size_B] = most
    drawn_V = np.frombuffer(random.bytes(2 * len(slots.values)), np.uint16)
    kept_V = drawn_V <= np.repeat(chance_B, size_B)
    stays = np.where(stays_B, size_B - 1, random_below(size_B, random))
    kept_V[slots.offsets[:-1] + stays] = True
    return Jagged(kept_V, slots.offsets)


def subsets(of_B: Ints, count_B: Ints, size_B: Ints, chance_B: Ints, chance_V: Chances) -> Jagged:
    """For each row a uniform subset, without replacement, of 0, 1, ... of - 1.

    Robert Floyd's algorithm (Bentley & Floyd 1987, Communications of the ACM 30(9)), over many rows
    at once: for j from of - count to of - 1, a number drawn from 0 to j is taken, or j where it is
    taken already.

    Args:
        of_B: (B,) from how many.
        count_B: (B,) how many, at most `of_B`.
        size_B: (B,) the length of each row's list, `count_B` or more; what follows is 0.
        chance_B: (B,) where the row's `count_B` random numbers begin.
        chance_V: (V,) uniform from 0 to 1, and at least as many behind any row's first as any row
            takes.
    """
    offsets = offsets_of(size_B)
    values = np.zeros(offsets[-1], np.int32)
    # The longest first, so that those who go on are the first ones; small integers sort fastest.
    key_B = (-count_B).astype(np.min_scalar_type(-int(count_B.max(initial=1))))
    order = np.argsort(key_B, kind="stable")
    for rows in np.array_split(order, len(order) // _SUBSETS + 1):
        count_S = count_B[rows]
        step_W = np.arange(count_S.max(initial=0))[:, None]
        taking_WS = step_W < count_S
        last_WS = (of_B[rows] - count_S + step_W).astype(np.int32)
        take_WS = (chance_V[chance_B[rows] + step_W] * (last_WS + 1)).astype(np.int32)
        for j, going_on in enumerate(taking_WS.sum(axis=1)):
            there = (take_WS[:j, :going_on] == take_WS[j, :going_on]).any(axis=0)
            np.copyto(take_WS[j, :going_on], last_WS[j, :going_on], where=there)
        values[(offsets[rows] + step_W)[taking_WS]] = take_WS[taking_WS]
    return Jagged(values, offsets)
