"""What is known of items at a moment, against loops over all interactions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.interactions import features_at
from visrec.interactions import activity
from visrec.interactions.activity import (
    ACTIVITY_FEATURES,
    DAY,
    WINDOW_DAYS,
    Activity,
    ActivityCounts,
    moment_after,
    moment_of,
)

# Some are of 1969: their days are rounded down, too.
ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(-3 * DAY, 400 * DAY)), max_size=40)


def expected(rows: list[tuple[int, int]], moment: int, item: int) -> list[float]:
    times = [time for i, time in rows if i == item and time < moment]
    counts = [sum(time >= moment - days * DAY for time in times) for days in WINDOW_DAYS]
    if not times:
        return [0.0] * ACTIVITY_FEATURES
    days = moment // DAY - min(times) // DAY
    age = round(math.log1p(days) * 2) / 2 * 0.2
    return [*(math.log1p(count) for count in counts), age, 1.0]


@given(ROWS, st.lists(st.integers(0, 402), min_size=1, max_size=5, unique=True))
@pytest.mark.parametrize("compiled", [True, False])
def test_features_count_strictly_before_each_moment(
    compiled: bool, rows: list[tuple[int, int]], days: list[int]
) -> None:
    items, moments = np.array([4, 0, 5, 2]), np.array(sorted(days)) * DAY
    of_rows = Activity.from_rows(
        np.array([i for i, _ in rows], np.int32), np.array([t for _, t in rows], np.int64), 6
    )
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(activity, "compile_and_load", lambda _: (None, "not here"))
        found_GCK = of_rows.features(moments, items)
    wanted = [[expected(rows, moment, item) for item in items] for moment in moments.tolist()]
    np.testing.assert_allclose(found_GCK, np.array(wanted).reshape(found_GCK.shape), rtol=1e-6)


def test_what_happens_at_a_moment_or_later_changes_nothing() -> None:
    times = np.array([1, 2, 5, 9]) * DAY
    before = Activity.from_rows(np.array([0, 0, 1, 1]), times, 3)
    marked = Activity.from_rows(
        np.array([0, 0, 1, 1, 2, 0, 1]), np.append(times, [10 * DAY, 10 * DAY, 99 * DAY]), 3
    )
    np.testing.assert_array_equal(features_at(before, 10 * DAY), features_at(marked, 10 * DAY))
    assert (features_at(before, 11 * DAY) != features_at(marked, 11 * DAY)).any()


def test_day_and_the_moments_around_it() -> None:
    time_X = np.array([0, DAY - 1, DAY, 5 * DAY + 7])
    assert moment_of(time_X).tolist() == [0, 0, DAY, 5 * DAY]
    assert moment_after(time_X) == 6 * DAY
    assert moment_after(time_X[:0]) == 0


@given(ROWS, st.integers(0, 402), st.lists(st.booleans(), min_size=40, max_size=40))
def test_counts_of_users_add_up_to_the_same_features(
    rows: list[tuple[int, int]], day: int, is_first: list[bool]
) -> None:
    """Bit by bit: the model's item vectors, and with them the fingerprints, depend on them."""
    item_R, time_R = np.array(rows, np.int64).reshape(-1, 2).T
    first_R = np.array(is_first[: len(rows)], bool)
    one, other = (
        ActivityCounts.of(item_R[mask_R], time_R[mask_R], 6, day * DAY)
        for mask_R in (first_R, ~first_R)
    )
    whole = features_at(Activity.from_rows(item_R, time_R, 6), day * DAY)
    assert (one + other).features().tobytes() == whole.tobytes()


def test_takers_are_counted_within_the_window() -> None:
    item_R, time_R = np.repeat([0, 1], [3, 40_000]), np.full(40_003, DAY)
    counts = ActivityCounts.of(item_R, time_R, 3, 3 * DAY)
    assert counts.takers(days=7).tolist() == [3, 40_000, 0]
    assert counts.takers(days=1).tolist() == [0, 0, 0]


def test_half_of_the_items_taken_before_the_day_tell_what_existed() -> None:
    of_rows = Activity.from_rows(np.array([0, 1]), np.array([DAY, 3 * DAY]), 3)
    items, times = np.array([0, 0, 1, 2]), np.array([DAY + 5, 2 * DAY, 4 * DAY, 9 * DAY])
    assert of_rows.are_mostly_known(items, times)
    assert not of_rows.are_mostly_known(items[:1], times[:1])
    assert not of_rows.are_mostly_known(items[:0], times[:0])
