"""Stable hashes against a loop over bytes, and against values that must never change."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visrec.hashes import combine_hashes, hash_lists, hash_rows, hash_strings
from visrec.jagged import Jagged

WRAP = 2**64


def finaliser(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % WRAP
    value = (value ^ value >> 27) * 0x94D049BB133111EB % WRAP
    return value ^ value >> 31


def hash_bytes(data: bytes) -> int:
    """The hash by its definition, word by word."""
    step = 0x9E3779B97F4A7C15
    total = finaliser((len(data) + step) % WRAP)
    for position in range(-(-len(data) // 8)):
        word = int.from_bytes(data[8 * position : 8 * position + 8], "little")
        total += finaliser(word ^ finaliser((position + 1) * step % WRAP))
    return total % WRAP


@given(st.lists(st.text(max_size=40)), st.integers(0, 3))
def test_strings_are_hashed_by_their_bytes(texts: list[str], first: int) -> None:
    expected = [hash_bytes(text.encode()) for text in texts][first:]
    for kind in (pa.string(), pa.large_string()):
        assert hash_strings(pa.array(texts, kind).slice(first)).tolist() == expected


@pytest.mark.parametrize("columns", [1, 3, 8, 300])
def test_rows_are_hashed_by_their_bytes(columns: int) -> None:
    numbers = np.random.default_rng(0).normal(size=(9, columns)).astype(np.float16)
    rows = np.array([4, 0, 4, 8])
    expected = [hash_bytes(numbers[row].tobytes()) for row in rows]
    assert hash_rows(numbers, rows).tolist() == expected


def test_lists_are_hashed_by_their_values_in_order() -> None:
    lists = Jagged(np.arange(5), np.array([0, 2, 2, 5]))
    values = np.arange(5, dtype=np.uint64) * np.uint64(3**40)
    words = [values[:2], values[:0], values[2:]]
    step = 0x9E3779B97F4A7C15
    of_lists = [
        (hash_bytes(one.tobytes()) - finaliser((8 * len(one) + step) % WRAP)
         + finaliser((len(one) + step) % WRAP)) % WRAP
        for one in words
    ]  # fmt: skip
    assert hash_lists(values, lists).tolist() == of_lists


def test_null_empty_and_other_order_have_different_hashes() -> None:
    null, empty, one = hash_strings(pa.array([None, "", "a"])).tolist()
    assert len({null, empty, one}) == 3
    a, b = np.array([1], np.uint64), np.array([2], np.uint64)
    assert combine_hashes(a, b) != combine_hashes(b, a)


def test_hashes_never_change() -> None:
    found = hash_strings(pa.array(["user-1", "ein längerer Name"])).tolist()
    assert found == [10131164718978439035, 13545729418844332944]
