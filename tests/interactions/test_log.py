"""The coded log against a planted one."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visrec.errors import InputError
from visrec.interactions.log import Log, build_log, shard_of

CATALOGUE = pa.array(["chair", "lamp", "rug", "vase"])


def batch(*rows: tuple[Any, ...]) -> pa.Table:
    """User, item, time and perhaps the evaluation mark of some interactions."""
    kinds = [pa.string(), pa.string(), pa.int64(), pa.bool_()][: len(rows[0])]
    names = ["user_id", "item_id", "timestamp", "evaluation"][: len(kinds)]
    columns = [pa.array(c, k) for c, k in zip(zip(*rows, strict=True), kinds, strict=True)]
    return pa.table(dict(zip(names, columns, strict=True)))


def decoded(log: Log) -> dict[str, list[tuple[str, int]]]:
    """What each user took and when, in the log's order."""
    items, times = CATALOGUE.take(pa.array(log.item_R)).to_pylist(), log.time_R.tolist()
    rows = list(zip(items, times, strict=True))
    return {
        user: rows[log.offsets[u] : log.offsets[u + 1]]
        for u, user in enumerate(log.user_ids.to_pylist())
    }


def test_a_planted_log_is_coded_by_user_and_time() -> None:
    log = build_log(
        [
            batch(("zoe", "vase", 30), ("adam", "rug", 5), ("zoe", "chair", 10)),
            batch(("mia", "lamp", 7), ("zoe", "lamp", 20), ("adam", "chair", 4)),
        ],
        CATALOGUE,
    )
    assert decoded(log) == {
        "adam": [("chair", 4), ("rug", 5)],
        "mia": [("lamp", 7)],
        "zoe": [("chair", 10), ("lamp", 20), ("vase", 30)],
    }
    assert log.item_R.dtype == np.int32
    assert log.user_R.tolist() == [0, 0, 1, 2, 2, 2]
    assert [log.items[u].tolist() for u in range(3)] == [[0, 2], [1], [0, 1, 3]]
    assert log.evaluation_R is None
    assert log.without_item == 0


def test_of_repeats_the_first_in_time_is_kept_with_its_mark() -> None:
    log = build_log(
        [
            batch(("u", "rug", 9, True), ("u", "chair", 2, False)),
            batch(("u", "rug", 3, False), ("u", "rug", 5, True), ("v", "rug", 8, True)),
        ],
        CATALOGUE,
    )
    assert decoded(log) == {"u": [("chair", 2), ("rug", 3)], "v": [("rug", 8)]}
    assert log.evaluation_R is not None
    assert log.evaluation_R.tolist() == [False, False, True]


def test_of_repeats_at_one_moment_the_first_row_is_kept() -> None:
    rows = [("u", "rug", 3, n == 0) for n in range(40)]
    log = build_log([batch(("u", "rug", 9, False), *rows)], CATALOGUE)
    assert decoded(log) == {"u": [("rug", 3)]}
    assert log.evaluation_R is not None
    assert log.evaluation_R.tolist() == [True]


def test_items_outside_the_catalogue_are_left_out_and_counted() -> None:
    log = build_log(
        [batch(("u", "gone", 1), ("u", "rug", 2), ("v", "gone", 3), ("v", "older", 4))], CATALOGUE
    )
    assert decoded(log) == {"u": [("rug", 2)], "v": []}
    assert log.without_item == 3


def test_users_without_interactions_are_kept_once_each() -> None:
    others = pa.array(["nobody", "u", "a", "nobody"])
    log = build_log([batch(("u", "rug", 1))], CATALOGUE, others)
    assert decoded(log) == {"a": [], "nobody": [], "u": [("rug", 1)]}


def test_users_are_in_the_order_of_their_bytes() -> None:
    users = ["é", "b", "B", "10", "9", "", "絵"]
    log = build_log([batch(*((user, "rug", 1) for user in users))], CATALOGUE)
    assert log.user_ids.to_pylist() == sorted(users, key=str.encode)


def test_an_evaluation_column_counts_where_it_is_null_or_absent_as_false() -> None:
    log = build_log(
        [
            batch(("u", "chair", 1)),
            batch(("u", "lamp", 2, True), ("u", "rug", 3, None)),
            batch(("u", "vase", 4)),
        ],
        CATALOGUE,
    )
    assert log.evaluation_R is not None
    assert log.evaluation_R.tolist() == [False, True, False, False]


def test_a_basket_is_what_a_user_took_at_one_moment() -> None:
    log = build_log(
        [
            batch(("u", "rug", 7), ("u", "chair", 7), ("u", "vase", 8)),
            batch(("v", "lamp", 8), ("v", "rug", 9), ("w", "rug", 9)),
        ],
        CATALOGUE,
        pa.array(["a", "uu", "z"]),  # users without rows before, between and behind
    )
    assert log.basket_R().tolist() == [0, 0, 1, 0, 1, 0]


def test_where_keeps_the_lists_of_all_users() -> None:
    log = build_log([batch(("u", "rug", 1), ("u", "vase", 2), ("v", "lamp", 1))], CATALOGUE)
    late = log.where(log.time_R == 2)
    assert [late[u].tolist() for u in range(2)] == [[3], []]


def test_no_interaction_at_all_is_refused() -> None:
    empty = batch(("u", "rug", 1)).slice(0, 0)
    for batches in ([], [empty], [empty, empty]):
        with pytest.raises(InputError, match="The interactions are empty"):
            build_log(batches, CATALOGUE)


def test_empty_batches_do_no_harm() -> None:
    full = batch(("u", "rug", 1, True))
    log = build_log([full.slice(0, 0), full, full.slice(0, 0)], CATALOGUE)
    assert decoded(log) == {"u": [("rug", 1)]}


def test_interactions_with_other_items_only_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        build_log([batch(("u", "gone", 1), ("v", "gone", 1))], CATALOGUE)
    assert "None of the 2 interactions is with an item that has a feature" in str(caught.value)
    assert "--features" in str(caught.value)


Row = tuple[str, str, int]
TIME = st.integers(0, 6) | st.sampled_from([-(2**62), 2**62])  # too far apart for one number
ROW = st.tuples(st.sampled_from("uvwx"), st.sampled_from([*CATALOGUE.to_pylist(), "gone"]), TIME)


@given(st.lists(st.lists(ROW, min_size=1, max_size=12), min_size=1, max_size=4))
def test_any_log_is_the_first_times_sorted(batches: list[list[Row]]) -> None:
    first: dict[tuple[str, str], int] = {}
    for user, item, time in (row for rows in batches for row in rows):
        first[user, item] = min(time, first.get((user, item), time))
    known = {pair: time for pair, time in first.items() if pair[1] != "gone"}
    tables = [batch(*rows) for rows in batches]
    if not known:
        with pytest.raises(InputError):
            build_log(tables, CATALOGUE)
        return
    users = {user for user, _ in first}
    assert decoded(build_log(tables, CATALOGUE)) == {
        user: sorted(
            ((item, time) for (u, item), time in known.items() if u == user),
            key=lambda row: (row[1], row[0]),
        )
        for user in users
    }


def test_a_shard_is_known_beforehand() -> None:
    # CRC-32 of "123456789" is the check value of its definition; of "" it is 0.
    assert shard_of(pa.array(["123456789", ""]), 1 << 32).tolist() == [0xCBF43926, 0]
    assert shard_of(pa.array(["123456789", "", "123456789"]), 7).tolist() == [
        0xCBF43926 % 7, 0, 0xCBF43926 % 7,
    ]  # fmt: skip
    assert shard_of(pa.array(["絵"]), 64).tolist() == shard_of(pa.array(["絵"]), 64).tolist()


def test_shards_share_the_users_evenly() -> None:
    shards = shard_of(pa.array([f"user-{n}" for n in range(8_000)]), 8)
    assert np.bincount(shards, minlength=8).min() > 900
    assert set(shards.tolist()) == set(range(8))
