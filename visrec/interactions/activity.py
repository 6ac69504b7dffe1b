"""What is known of the items at a moment: how many users took each lately, and since when.

A night knows what happened before its midnight, and nothing of the day that it makes lists for. So
everything here counts strictly before a *moment*, and an interaction belongs to the moment at the
beginning of its day (`moment_of`). The same numbers describe an item in training, in evaluation and
in a night. A user counts once for an item, when the user first took it: a log has only that row.

Shapes: N items, R interactions, G moments in ascending order, C items, W windows, K features.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from visrec.jagged import Jagged
from visrec.native import compile_and_load, pointers, require_rows
from visrec.scratch import row_blocks

DAY = 86_400
# The longest window is longer than any data: how many users took the item at all.
WINDOW_DAYS = (1, 3, 7, 30, 365, 100_000)
# The logarithms of 1 + each count, then the age, then whether the item was ever taken.
ACTIVITY_FEATURES = len(WINDOW_DAYS) + 2
EVER_TAKEN = -1  # the position of the last of them

# An item is taken to exist from the first time that somebody took it. If fewer than this share of
# interactions are with items taken before, as in a catalogue of unique works, first takes do not
# show what existed.
_MIN_KNOWN_SHARE = 0.5

_SOURCE = Path(__file__).with_name("activity.cpp")
_AGE_STEPS = 2  # an age is rounded to 1 / 2 of its logarithm, so that most items keep it overnight
_ROWS_AT_ONCE = 1_000_000  # bounds the memory of `Activity.from_parts` beyond its arrays
_AGE_SCALE = 0.2  # brings the logarithm of an age in days to the size of the others

Ints = npt.NDArray[np.int64]


def moment_of(time_X: Ints) -> Ints:
    """(X,) the beginning of the day (UTC) of each time: what was known when its lists were made.

    Args:
        time_X: (X,) seconds since 1970.
    """
    return time_X // DAY * DAY


def moment_after(time_R: Ints) -> int:
    """The midnight after the last time, for lists that are made from all that is known."""
    return int(moment_of(time_R.max())) + DAY if len(time_R) else 0


@dataclass(frozen=True)
class Activity:
    """When each item was taken.

    Attributes:
        days: N lists of int32 days since 1970, ascending.
        first_N: (N,) when each item was taken first, in seconds since 1970; the largest integer for
            an item that never was.
    """

    days: Jagged
    first_N: Ints

    @staticmethod
    def from_rows(item_R: npt.NDArray[np.integer], time_R: Ints, items: int) -> "Activity":
        """Interactions in any order.

        Args:
            item_R: (R,) rows of the catalogue.
            time_R: (R,) seconds since 1970.
            items: N.
        """
        return Activity.from_parts([(item_R, time_R)], items)

    @staticmethod
    def from_parts(parts: Sequence[tuple[npt.NDArray[np.integer], Ints]], items: int) -> "Activity":
        """The same for several arrays of items and times."""
        first_N = np.full(items, np.iinfo(np.int64).max)
        for item_R, time_R in parts:
            np.minimum.at(first_N, item_R, time_R)
        times = [time_R for _, time_R in parts if len(time_R)]
        oldest = min((int(time_R.min()) // DAY for time_R in times), default=0)
        span = max((int(time_R.max()) // DAY for time_R in times), default=0) - oldest + 1
        # One number for the item and the day of each row, sorted in place: 12 bytes a row at most.
        key_R, start = np.empty(sum(len(item_R) for item_R, _ in parts), np.int64), 0
        for item_R, time_R in parts:
            for rows in row_blocks(len(item_R), _ROWS_AT_ONCE):
                day_B = time_R[rows] // DAY - oldest
                key_R[start : start + len(day_B)] = item_R[rows].astype(np.int64) * span + day_B
                start += len(day_B)
        key_R.sort()
        day_R = np.empty(len(key_R), np.int32)
        for rows in row_blocks(len(key_R), _ROWS_AT_ONCE):
            day_R[rows] = key_R[rows] % span + oldest
        offsets = np.searchsorted(key_R, np.arange(items + 1) * span)
        return Activity(Jagged(day_R, offsets), first_N)

    def __len__(self) -> int:
        return len(self.days)

    def take(self, item_C: Ints) -> "Activity":
        """The activity of the items at rows of the catalogue, in that order."""
        return Activity(self.days.take(item_C), self.first_N[item_C])

    def features(self, moment_G: Ints, item_C: Ints) -> npt.NDArray[np.float32]:
        """(G, C, K) what a model reads of each item at each moment.

        All are 0 for an item that was never taken before.

        Args:
            moment_G: (G,) midnights, ascending.
            item_C: (C,) rows of the catalogue.
        """
        kernel, _ = compile_and_load(_SOURCE)
        if kernel is None:
            return self._features_in_numpy(moment_G, item_C)
        feature_GCK = np.empty((len(moment_G), len(item_C), ACTIVITY_FEATURES), np.float32)
        arrays = (self.days.offsets, item_C, moment_G // DAY, WINDOW_DAYS)
        offsets, items, moments, windows = (np.ascontiguousarray(a, np.int64) for a in arrays)
        require_rows(item_C, len(self))
        log = self._log_table_for(moment_G)
        kernel.visrec_activity(
            *pointers(np.ascontiguousarray(self.days.values), offsets, items),
            ctypes.c_int64(len(items)),
            *pointers(moments),
            ctypes.c_int64(len(moments)),
            *pointers(windows),
            ctypes.c_int64(len(windows)),
            *pointers(log),
            *map(ctypes.c_float, (_AGE_STEPS, _AGE_SCALE)),
            ctypes.c_int64(torch.get_num_threads()),
            *pointers(feature_GCK),
        )
        return feature_GCK

    def _log_table_for(self, moment_G: Ints) -> npt.NDArray[np.float32]:
        """The logarithm of 1 + n for every count and every age in days."""
        days = max(0, (int(moment_G.max(initial=0)) - self._oldest) // DAY + 1)
        return _log_table(max(days, self._max_takers))

    @cached_property
    def _oldest(self) -> int:
        """The time of the first interaction."""
        return int(self.first_N.min(initial=np.iinfo(np.int64).max))

    @cached_property
    def _max_takers(self) -> int:
        """How many users took the item that most users took."""
        return int(self.days.lengths.max(initial=0))

    def _features_in_numpy(self, moment_G: Ints, item_C: Ints) -> npt.NDArray[np.float32]:
        picked = self.days.take(item_C)
        time_V = picked.values.astype(np.int64) * DAY
        feature_GCK = np.empty((len(moment_G), len(item_C), ACTIVITY_FEATURES), np.float32)
        for g, moment in enumerate(moment_G.tolist()):
            counts = ActivityCounts.of(picked.row_ids, time_V, len(item_C), moment)
            feature_GCK[g] = counts.features()
        return feature_GCK

    def are_mostly_known(self, item_V: npt.NDArray[np.integer], time_V: Ints) -> bool:
        """Whether enough interactions were with items that somebody had taken before their day.

        In a catalogue of unique works, most are the first with their item.

        Args:
            item_V: (V,) the items of the interactions.
            time_V: (V,) seconds since 1970.
        """
        known_V = self.first_N[item_V] < moment_of(time_V)
        return bool(len(known_V) and known_V.mean() >= _MIN_KNOWN_SHARE)


@dataclass(frozen=True)
class ActivityCounts:
    """How many users took each item before a moment. Those of two sets of users add up: `a + b`.

    Attributes:
        moment: seconds since 1970: a midnight, or the cutoff of the lists.
        count_NW: (N, W) int32, interactions of the days before it, for each of `WINDOW_DAYS`.
        first_N: (N,) when each item was taken first; the largest integer for an item that never
            was.
    """

    moment: int
    count_NW: npt.NDArray[np.int32]
    first_N: Ints

    @staticmethod
    def of(
        item_R: npt.NDArray[np.integer], time_R: Ints, items: int, moment: int
    ) -> "ActivityCounts":
        """The counts of interactions, in any order.

        Args:
            item_R: (R,) rows of the catalogue.
            time_R: (R,) seconds since 1970.
            items: N.
            moment: seconds since 1970.
        """
        age_R = moment - time_R
        first_N = np.full(items, np.iinfo(np.int64).max)
        count_NW = np.empty((items, len(WINDOW_DAYS)), np.int32)
        for w, days in enumerate(WINDOW_DAYS):
            is_inside_R = (age_R > 0) & (age_R <= days * DAY)
            count_NW[:, w] = np.bincount(item_R[is_inside_R], minlength=items)
        np.minimum.at(first_N, item_R, time_R)
        return ActivityCounts(moment, count_NW, first_N)

    def __add__(self, other: "ActivityCounts") -> "ActivityCounts":
        assert other.moment == self.moment, "counts at different moments do not add up"
        count_NW, first_N = self.count_NW + other.count_NW, np.minimum(self.first_N, other.first_N)
        return ActivityCounts(self.moment, count_NW, first_N)

    def takers(self, days: int) -> npt.NDArray[np.float32]:
        """(N,) how many users took each item in the last days, one of `WINDOW_DAYS`."""
        return self.count_NW[:, WINDOW_DAYS.index(days)].astype(np.float32)

    def features(self) -> npt.NDArray[np.float32]:
        """(N, K) what a model reads of each item: `Activity.features` at this moment."""
        known_N = self.first_N < self.moment
        day_M = self.moment // DAY - self.first_N[known_N] // DAY
        log = _log_table(max(int(self.count_NW.max(initial=0)), int(day_M.max(initial=0))))
        steps, scale = np.float32(_AGE_STEPS), np.float32(_AGE_SCALE)
        feature_NK = np.zeros((len(known_N), ACTIVITY_FEATURES), np.float32)
        feature_NK[:, : len(WINDOW_DAYS)] = log[self.count_NW]
        feature_NK[known_N, -2] = np.round(log[day_M] * steps) / steps * scale
        feature_NK[known_N, EVER_TAKEN] = 1
        return feature_NK


def _log_table(most: int) -> npt.NDArray[np.float32]:
    """The logarithm of 1 + n for every number up to `most`."""
    return np.log1p(np.arange(most + 1)).astype(np.float32)
