"""Ragged lists do what a plain list of lists does."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from visrec.jagged import Jagged, offsets_of, positions

Lists = list[list[int]]
LISTS = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=8)


def ragged(lists: Lists) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int32)
    return Jagged(values, np.cumsum([0, *map(len, lists)]).astype(np.int64))


def plain(one: Jagged) -> Lists:
    assert one.offsets[0] == 0
    assert one.offsets[-1] == len(one.values)
    return [one[b].tolist() for b in range(len(one))]


@given(LISTS)
def test_lengths_and_owners_are_those_of_the_lists(lists: Lists) -> None:
    one = ragged(lists)
    assert len(one) == len(lists)
    assert plain(one) == lists
    assert one.lengths.tolist() == [len(x) for x in lists]
    assert one.owners.tolist() == [b for b, x in enumerate(lists) for _ in x]


@given(LISTS.filter(len), st.data())
def test_take_gives_the_lists_asked_for_in_that_order(lists: Lists, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=10))
    taken = ragged(lists).take(np.array(rows, np.int64))
    assert plain(taken) == [lists[row] for row in rows]
    assert taken.values.dtype == np.int32


@given(LISTS, st.data())
def test_slice_is_a_slice_without_a_copy(lists: Lists, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lists)))
    stop = data.draw(st.integers(start, len(lists)))
    whole = ragged(lists)
    part = whole.slice(start, stop)
    assert plain(part) == lists[start:stop]
    assert len(part.values) == 0 or np.shares_memory(part.values, whole.values)


@given(LISTS, st.integers(0, 4))
def test_padding_adds_empty_lists_behind(lists: Lists, more: int) -> None:
    assert plain(ragged(lists).pad_to(len(lists) + more)) == lists + [[]] * more


@given(LISTS, st.integers(0, 3))
def test_group_gathers_sorted_owners_and_keeps_those_without_any(lists: Lists, more: int) -> None:
    one = ragged(lists)
    positions_by_code = Jagged.group(one.owners, one.values, len(lists) + more)
    assert plain(positions_by_code) == lists + [[]] * more


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6))))
def test_positions_are_the_ranges_one_after_another(parts: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in parts], np.int64)
    lengths = np.array([length for _, length in parts], np.int64)
    expected = [place for start, length in parts for place in range(start, start + length)]
    assert positions(starts, offsets_of(lengths)).tolist() == expected
