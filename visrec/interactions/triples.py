"""Triples (profile, positive, negative), drawn many at a time.

An epoch's triples are drawn in windows of some 65,536, in mixed order and none twice in a window.
A window is seeded by (seed, epoch, window), and the profiles of a step by (seed, epoch, step) and
the row: every worker draws the whole window and cuts the profiles of its own rows, so that one
worker and two see the same triples, and a run that resumes at an epoch draws what it would have
drawn.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from visrec.errors import InputError
from visrec.interactions.facts import Facts, Ints
from visrec.interactions.guidelines import GUIDELINES, Draw, Drawn
from visrec.interactions.negatives import Rule, agreeing, fine_grained, foreign, nothing, outside
from visrec.ragged import Ragged, offsets_of

_WINDOW = 65_536
_ROUNDS = 8  # in which triples that are there already are drawn again; then they stay
_WINDOWS, _STEPS = 0, 1  # seeds of windows and of steps are apart


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
        negatives: drawn is one a triple as its guideline says; hard is hard_pool a triple, drawn as
            for random, of which the one that the model scores highest counts; shared and catalogue
            draw none here.
        hard_pool: how many are drawn for hard.
        popularity: a negative of random is drawn in proportion to (its training count + 1) to this
            power; 0 is uniform.
        own_cluster: how often a fine-grained negative is from the positive's own visual cluster.
    """

    guidelines: dict[str, float] = field(default_factory=lambda: {"random": 1.0})
    max_profile: int = 20
    sub_profiles: bool = True
    keep_positive_in_profile: bool = False
    negatives: Literal["drawn", "hard", "shared", "catalogue"] = "drawn"
    hard_pool: int = 8
    popularity: float = 0.0
    own_cluster: float = 0.65

    def __post_init__(self) -> None:
        for name in ("max_profile", "hard_pool"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"Found --sampling.{name} {getattr(self, name)}; expected at least 1."
                )
        if not 0 <= self.own_cluster <= 1:
            raise InputError(f"Found --sampling.own_cluster {self.own_cluster}; expected 0 to 1.")
        if not abs(self.popularity) < float("inf"):
            raise InputError(
                f"Found --sampling.popularity {self.popularity}; expected a number, as 0 or 0.75."
            )
        if unknown := sorted(set(self.guidelines) - set(GUIDELINES)):
            raise InputError(
                f"Found the guideline {unknown[0]} in --sampling.guidelines; expected of "
                f"{', '.join(GUIDELINES)}."
            )
        weights = self.guidelines.values()
        if not all(0 <= weight < float("inf") for weight in weights) or not sum(weights) > 0:
            raise InputError(
                f"Found --sampling.guidelines {self.guidelines}; expected weights of 0 or more, "
                "and one above 0."
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
    profiles: Ragged
    positive_B: Ints
    negative_BK: Ints


class TripleSampler:
    """Draws triples by guidelines.

    Args:
        facts: of the training data.
        config: how.
        seed: the run's seed.

    Raises:
        InputError: nobody has what a guideline needs.
    """

    def __init__(self, facts: Facts, config: SamplingConfig, seed: int) -> None:
        self._facts, self._config, self._seed = facts, config, seed
        self._draws = [self._build(name) for name in config.drawn_by]
        self.start_epoch(0, _WINDOW)

    def _build(self, name: str) -> Draw:
        facts, guideline = self._facts, GUIDELINES[name]
        rule = negatives_of(name, facts, self._config)
        draw = guideline.build(facts, rule, self._config.keep_positive_in_profile)
        if draw is None:
            raise InputError(
                f"No triple can be drawn by the guideline {name} from {facts.num_users} users with "
                f"{len(facts.basket_R)} training items and {facts.num_items} items of the "
                f"catalogue; expected {guideline.needs}. Change --sampling.guidelines, hold out "
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
        self._window: tuple[tuple[int, int], Drawn] | None = None

    def step(self, step: int, size: int, rank: int = 0, workers: int = 1) -> Triples:
        """One worker's share of the triples of a step.

        Args:
            step: its number in the epoch.
            size: triples of the step, all workers together; a multiple of `workers`.
            rank: which worker.
            workers: of how many.
        """
        steps = max(1, min(_WINDOW, self._triples) // size)  # of a window
        window, first = step // steps, step % steps * size
        if self._window is None or self._window[0] != (window, size):
            self._window = (window, size), self._draw(window, steps * size)
        drawn = self._window[1].take(slice(first, first + size))
        random = np.random.PCG64((self._seed, self._epoch, _STEPS, step))
        share = size // workers
        mine = slice(rank * share, rank * share + share)
        profiles = self._profiles(drawn, mine, random)
        owner_B = drawn.owner_B[mine]
        return Triples(
            user_B=np.where(owner_B < self._facts.num_users, owner_B, -1),
            profiles=profiles,
            positive_B=drawn.positive_B[mine],
            negative_BK=drawn.negative_BK[mine],
        )

    def _draw(self, window: int, size: int) -> Drawn:
        """A window's triples, none twice while there are others to be found."""
        random = np.random.default_rng((self._seed, self._epoch, _WINDOWS, window))
        edges = self._edges(size)
        counts = np.diff(edges)
        drawn = Drawn.join([d(int(n), random) for d, n in zip(self._draws, counts, strict=True)])
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

    def _profiles(self, drawn: Drawn, mine: slice, random: np.random.PCG64) -> Ragged:
        """The profiles of some rows of a step, cut to random subsets where they are to be.

        Each row has its own numbers of the step's sequence, whoever cuts it.
        """
        facts, config = self._facts, self._config
        begin_B = facts.profiles.offsets[drawn.owner_B]
        inside_B = (drawn.place_B >= 0) & (drawn.place_B < begin_B + drawn.length_B)
        stays_B = inside_B & drawn.stays_B
        full_B = drawn.length_B - (inside_B & ~stays_B)
        size_B = full_B
        if config.sub_profiles:
            chance_B = np.random.Generator(random).random(len(full_B))
            size_B = (chance_B * full_B).astype(np.int64) + 1
        size_B = np.minimum(size_B, config.max_profile)
        drawn_B = size_B - stays_B
        random.advance(int(drawn_B[: mine.start].sum()))
        places = subsets(
            (drawn.length_B - inside_B)[mine],
            drawn_B[mine],
            size_B[mine],
            np.random.Generator(random),
        )
        hole_B = np.where(inside_B, drawn.place_B - begin_B, drawn.length_B)[mine]
        size_B, stays_B, begin_B = size_B[mine], stays_B[mine], begin_B[mine]
        place_V = places.values + (places.values >= np.repeat(hole_B, size_B))
        place_V[places.offsets[1:][stays_B] - 1] = hole_B[stays_B]
        place_V += np.repeat(begin_B, size_B)
        return Ragged(facts.profiles.values[place_V], places.offsets)


def negatives_of(name: str, facts: Facts, config: SamplingConfig) -> Rule:
    """The rule by which a guideline's negatives are drawn."""
    if config.negatives in ("shared", "catalogue"):
        return nothing(facts)
    if config.negatives == "hard":
        return outside(facts, config.popularity, config.hard_pool)
    match name:
        case "own_profile" | "single_item":
            return fine_grained(facts, config.own_cluster)
        case "same_artist":
            return agreeing(facts, config.own_cluster)
        case "random":
            return outside(facts, config.popularity, 1)
    return foreign(facts)


def repeated(drawn: Drawn) -> Ints:
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


def subsets(of_B: Ints, count_B: Ints, size_B: Ints, random: np.random.Generator) -> Ragged:
    """For each row a uniform subset, without replacement, of 0, 1, ... of - 1.

    Robert Floyd's algorithm (Bentley & Floyd 1987, Communications of the ACM 30(9)), over all rows
    at once: for j from of - count to of - 1, a number drawn from 0 to j is taken, or j where it is
    taken already.

    Args:
        of_B: (B,) from how many.
        count_B: (B,) how many, at most `of_B`.
        size_B: (B,) the length of each row's list, `count_B` or more; what follows is 0.
        random: it gives each row `count_B` numbers, in the order of the rows.
    """
    offsets = offsets_of(size_B)
    chance_V = random.random(int(count_B.sum()))
    start_B = offsets_of(count_B)[:-1]
    order = np.argsort(-count_B, kind="stable")  # those that go on longest first
    low_B, start_B = (of_B - count_B)[order], start_B[order]
    width = int(count_B.max(initial=0))
    active = len(order) - np.cumsum(np.bincount(count_B, minlength=width + 1))
    chosen_WB = np.zeros((width, len(order)), np.int32)
    values = np.zeros(offsets[-1], np.int64)
    for j in range(width):
        rows = active[j]
        last = low_B[:rows] + j
        take = (chance_V[start_B[:rows] + j] * (last + 1)).astype(np.int32)
        there = (chosen_WB[:j, :rows] == take).any(axis=0)
        chosen_WB[j, :rows] = np.where(there, last, take)
        values[offsets[order[:rows]] + j] = chosen_WB[j, :rows]
    return Ragged(values, offsets)
