"""Ranks held-out items as a night would have ranked them: each user at that user's moment.

Items are ranked for a user by what was known at midnight before the held-out basket. If the split
is by night, only items that somebody had taken by the end of the basket's day are ranked. Of
several baskets, which `SplitConfig.at` and marked rows may hold out, the last one's day counts.
Items are stored in the order in which they were first taken. So the items known at a moment are the
first n, and a model's arrays of them are the first n rows, without a copy.

Only the user's own rows decide the moment and n. Users with the same ones share a scorer, and they
are sorted by them, so that one scorer after another is made whatever the blocks are.

Shapes: N items, E held-out users, B of them, K list length, d width.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from visrec.interactions.activity import DAY, Activity, moment_of
from visrec.interactions.split import HeldOut
from visrec.jagged import Jagged
from visrec.models.arrays import ACTIVITY, ItemArrays
from visrec.models.scorers import Scorer
from visrec.retrieval.ranks import TargetRanks, rank_targets
from visrec.retrieval.topk import TopK, TopKResult
from visrec.scratch import scratch_array

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ItemOrder:
    """The items in the order in which they were first taken; those that nobody took are the last.

    Attributes:
        item_N: (N,) the catalogue row of each item of this order.
        activity: the activity of the items in this order.
    """

    item_N: Ints
    activity: Activity

    @staticmethod
    def of(activity: Activity) -> "ItemOrder":
        """The order of the items of a catalogue.

        Args:
            activity: in the order of the catalogue.
        """
        item_N = np.argsort(activity.first_N, kind="stable")
        return ItemOrder(item_N, activity.take(item_N))

    @cached_property
    def _position_N(self) -> Ints:
        """(N,) the position of each catalogue row in this order."""
        return np.argsort(self.item_N)

    def of_lists(self, lists: Jagged) -> Jagged:
        """Lists of catalogue rows as lists of positions in this order."""
        return Jagged(self._position_N[lists.values], lists.offsets)

    def of_held_out(self, held: HeldOut) -> HeldOut:
        """The users by their moments, with their items as positions in this order.

        Those of one moment are sorted by the day of their last target, so that few scorers serve
        all of them, whatever the blocks that they are ranked in.
        """
        return dataclasses.replace(
            held, profiles=self.of_lists(held.profiles), targets=self.of_lists(held.targets)
        ).take(np.lexsort((moment_of(held.last_time_E), moment_of(held.time_E))))

    def of_arrays(self, arrays: ItemArrays) -> ItemArrays:
        """A model's arrays of the catalogue in this order."""
        ordered = {}
        for name, array in arrays.items():
            ordered[name] = scratch_array(array.shape, array.dtype.type)
            # With the mode "raise", `take` would fill a buffer of the same size first.
            np.take(array, self.item_N, axis=0, out=ordered[name], mode="clip")
        return ordered


@dataclass(frozen=True)
class Moments:
    """Held-out users and their moments; items are positions in an `ItemOrder`.

    Attributes:
        held_out: E users, by their moments.
        activity: when each item was taken, by anyone.
        by_night: whether the split is by night.
    """

    held_out: HeldOut
    activity: Activity
    by_night: bool

    @cached_property
    def moment_E(self) -> Ints:
        """(E,) the midnight before each user's held-out items."""
        return moment_of(self.held_out.time_E)

    @cached_property
    def among_known(self) -> bool:
        """Whether a user is ranked only among items taken by the end of the last held-out day.

        In a catalogue of unique works most held-out items are new that day, so all items are
        ranked.
        """
        held = self.held_out
        return self.by_night and self.activity.are_mostly_known(
            held.targets.values, held.target_times.values
        )

    @cached_property
    def known_E(self) -> Ints:
        """(E,) how many items each user is ranked among: the first ones of the order."""
        if not self.among_known:
            return np.full(len(self.held_out), len(self.activity))
        end_E = moment_of(self.held_out.last_time_E) + DAY
        return np.searchsorted(self.activity.first_N, end_E)

    def groups(self, rows: Ints, by_each_moment: bool) -> Iterator[tuple[int, int, Ints]]:
        """Yields the moment, the number of ranked items, and the rows of users who share both.

        Args:
            rows: (B,) of the users, ascending.
            by_each_moment: false if the model's scores do not depend on the moment; it is then 0.
        """
        moment_B = self.moment_E[rows] if by_each_moment else np.zeros_like(rows)
        known_B = self.known_E[rows]
        starts = np.flatnonzero(np.diff(moment_B) | np.diff(known_B)) + 1
        for part in np.split(np.arange(len(rows)), starts):
            yield int(moment_B[part[0]]), int(known_B[part[0]]), rows[part]


class _ScorerAt:
    """The scorer of a moment and its search for lists, each made when it is first used."""

    def __init__(self, make: Callable[[], Scorer], k: int) -> None:
        self._make, self._k = make, k

    @cached_property
    def scorer(self) -> Scorer:
        return self._make()

    @cached_property
    def search(self) -> TopK:
        return TopK(self.scorer, None, self._k)


@dataclass(frozen=True)
class MomentGroup:
    """Held-out users who are ranked at one moment.

    Attributes:
        at: how the model scores then.
        held_out: B users.
        user_B: (B,) each user's row in the model.
    """

    at: _ScorerAt
    held_out: HeldOut
    user_B: Ints

    def ranks(self) -> TargetRanks:
        """The ranks of the held-out items."""
        held = self.held_out
        return rank_targets(self.at.scorer, held.profiles, self.user_B, held.targets)

    def lists(self) -> TopKResult:
        """The lists of the users, without the items of their profiles."""
        profiles = self.held_out.profiles
        return self.at.search(profiles, self.user_B, profiles)


class MomentRanker:
    """Ranks held-out users for one model.

    It keeps the scorer of the moment that it was asked about last: ask for both ranks and lists of
    a group before the next one.

    Args:
        scorer_of: makes the model's scorer of item arrays.
        arrays: the arrays of all items, in the order of `moments`.
        user_E: (E,) each user's row in the model, -1 for users that its training has not seen.
        moments: whom to rank for, and when.
        k: length of the lists.
        arrays_at: arrays of the first items at a moment, by moment and number; by default a part of
            `arrays`, with the activity of the moment.
    """

    def __init__(
        self,
        scorer_of: Callable[[ItemArrays], Scorer],
        arrays: ItemArrays,
        user_E: Ints,
        moments: Moments,
        k: int = 0,
        arrays_at: Callable[[int, int], ItemArrays] | None = None,
    ) -> None:
        self._scorer_of, self._arrays, self._user_E = scorer_of, arrays, user_E
        self._moments, self._k = moments, k
        self._depends_on_moment = ACTIVITY in arrays or arrays_at is not None
        self._arrays_at = arrays_at or self._part_of_arrays
        self._last: tuple[tuple[int, int], _ScorerAt] | None = None

    def groups(self, rows: Ints) -> Iterator[MomentGroup]:
        """The users at `rows`, which ascend, moment by moment."""
        for moment, known, part in self._moments.groups(rows, self._depends_on_moment):
            held = self._moments.held_out.take(part)
            yield MomentGroup(self._scorer_at(moment, known), held, self._user_E[part])

    def ranks(self, rows: Ints) -> TargetRanks:
        """The ranks of the held-out items of the users at `rows`, which ascend."""
        return TargetRanks.concatenate([group.ranks() for group in self.groups(rows)])

    @property
    def space_Nd(self) -> Tensor | None:
        """See `visrec.models.scorers.Scorer`."""
        return self._scorer_at(0, len(self._moments.activity)).scorer.space_Nd

    def _scorer_at(self, moment: int, known: int) -> _ScorerAt:
        key = (moment, known)
        if self._last is None or self._last[0] != key:
            self._last = (
                key,
                _ScorerAt(lambda: self._scorer_of(self._arrays_at(moment, known)), self._k),
            )
        return self._last[1]

    def _part_of_arrays(self, moment: int, known: int) -> ItemArrays:
        arrays = {name: array[:known] for name, array in self._arrays.items()}
        if ACTIVITY in arrays:
            activity = self._moments.activity
            arrays[ACTIVITY] = activity.features(np.array([moment]), np.arange(known))[0]
        return arrays
