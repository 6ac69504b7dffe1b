"""`Jagged` against plain lists of lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from visrec.jagged import Jagged, chunk_rows, concat_ranges, offsets_from_lengths

Lists = list[list[int]]
LISTS = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=8)


def jagged_lists(lists: Lists) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int32)
    return Jagged(values, np.cumsum([0, *map(len, lists)]).astype(np.int64))


def plain(one: Jagged) -> Lists:
    assert one.offsets[0] == 0
    assert one.offsets[-1] == len(one.values)
    return [one[b].tolist() for b in range(len(one))]


@given(LISTS)
def test_lengths_and_row_ids_are_those_of_the_lists(lists: Lists) -> None:
    one = jagged_lists(lists)
    assert len(one) == len(lists)
    assert plain(one) == lists
    assert one.lengths.tolist() == [len(x) for x in lists]
    assert one.row_ids.tolist() == [b for b, x in enumerate(lists) for _ in x]


@given(LISTS.filter(len), st.data())
def test_take_selects_lists_in_the_given_order(lists: Lists, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=10))
    taken = jagged_lists(lists).take(np.array(rows, np.int64))
    assert plain(taken) == [lists[row] for row in rows]
    assert taken.values.dtype == np.int32


@given(LISTS, st.data())
def test_slice_copies_no_values(lists: Lists, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lists)))
    stop = data.draw(st.integers(start, len(lists)))
    full = jagged_lists(lists)
    part = full.slice(start, stop)
    assert plain(part) == lists[start:stop]
    assert len(part.values) == 0 or np.shares_memory(part.values, full.values)


@given(LISTS, st.integers(0, 4))
def test_pad_rows_appends_empty_lists(lists: Lists, more: int) -> None:
    assert plain(jagged_lists(lists).pad_rows(len(lists) + more)) == lists + [[]] * more


@given(LISTS, st.integers(0, 3))
def test_from_row_ids_includes_rows_without_values(lists: Lists, more: int) -> None:
    one = jagged_lists(lists)
    grouped = Jagged.from_row_ids(one.row_ids, one.values, len(lists) + more)
    assert plain(grouped) == lists + [[]] * more


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6))))
def test_concat_ranges_joins_the_ranges(parts: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in parts], np.int64)
    lengths = np.array([length for _, length in parts], np.int64)
    expected = [value for start, length in parts for value in range(start, start + length)]
    assert concat_ranges(starts, offsets_from_lengths(lengths)).tolist() == expected


@given(LISTS, st.data())
def test_append_values_extends_each_list(lists: Lists, data: st.DataObject) -> None:
    more = data.draw(
        st.lists(st.lists(st.integers(0, 99), max_size=3), min_size=len(lists), max_size=len(lists))
    )
    assert plain(jagged_lists(lists).append_values(jagged_lists(more))) == [
        one + other for one, other in zip(lists, more, strict=True)
    ]


@given(st.lists(st.integers(0, 9)), st.integers(1, 12))
def test_chunks_cover_all_rows_within_the_limit(lengths: list[int], most: int) -> None:
    chunks = list(chunk_rows(np.array(lengths, np.int64), most))
    assert [row for chunk in chunks for row in range(len(lengths))[chunk]] == [*range(len(lengths))]
    for chunk in chunks:
        assert sum(lengths[chunk]) <= most or chunk.stop - chunk.start == 1
