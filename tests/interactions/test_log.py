"""The coded log against a planted one."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visrec.errors import InputError
from visrec.interactions.log import InteractionLog, build_log, read_log, shard_of
from visrec.sources.interactions import InteractionsConfig

CATALOGUE = pa.array(["chair", "lamp", "rug", "vase"])


def batch(*rows: tuple[Any, ...]) -> pa.Table:
    """User, item, time and perhaps the evaluation mark of some interactions."""
    kinds = [pa.string(), pa.string(), pa.int64(), pa.bool_()][: len(rows[0])]
    names = ["user_id", "item_id", "timestamp", "evaluation"][: len(kinds)]
    columns = [pa.array(c, k) for c, k in zip(zip(*rows, strict=True), kinds, strict=True)]
    return pa.table(dict(zip(names, columns, strict=True)))


def decoded(log: InteractionLog) -> dict[str, list[tuple[str, int]]]:
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
    # As tests/test_hashes.py has it from the definition of the hash.
    users = pa.array(["user-1", "ein längerer Name", "user-1"])
    hashes = [10131164718978439035, 13545729418844332944, 10131164718978439035]
    for shards in (1, 7, 1 << 32):
        assert shard_of(users, shards).tolist() == [one % shards for one in hashes]
    assert shard_of(users[:0], 3).tolist() == []


def test_shards_share_the_users_evenly() -> None:
    shards = shard_of(pa.array([f"user-{n}" for n in range(8_000)]), 8)
    assert np.bincount(shards, minlength=8).min() > 900
    assert set(shards.tolist()) == set(range(8))


def test_every_row_that_is_not_there_is_counted_by_its_reason(tmp_path: Path) -> None:
    rows = [
        ("u", "rug", 10, 5.0), ("u", "rug", 20, 5.0), ("u", "gone", 10, 5.0),
        (None, "rug", 10, 5.0), (" ", "rug", 10, 5.0),
        ("v", None, 10, 5.0), ("w", "rug", None, 5.0), ("x", "rug", 99, 5.0),
        ("y", "rug", 10, 1.0), ("y", "vase", 10, None), ("z", "gone", 10, 1.0),
    ]  # fmt: skip
    names = ("user_id", "item_id", "timestamp", "rating")
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))),
        tmp_path / "log.parquet",
    )
    config = InteractionsConfig(min_rating=4, as_of="1970-01-01T00:00:30", max_incomplete=1)
    for every_user, users in ((False, ["u", "v"]), (True, ["n", "u", "v", "y", "z"])):
        others = pa.array(["n"]) if every_user else None
        log = read_log(
            config, str(tmp_path / "log.parquet"), CATALOGUE, others, every_user=every_user
        )
        assert log.user_ids.to_pylist() == users
        assert {user: taken for user, taken in decoded(log).items() if taken} == {
            "u": [("rug", 10)]
        }
        assert log.reading.rows == len(rows)
        assert log.reading.left_out == {
            "without a timestamp": 1,
            "at or after as_of": 1,
            "without a user_id": 2,
            "rated below min_rating": 2,
            "without a rating": 1,
            "without an item_id": 1,
            "of items without a feature": 1,
            "repeated": 1,
        }
        assert log.without_item == 1


def test_what_is_left_of_nothing_is_told_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp,rating\nu,rug,9,1\nv,rug,9,2\n,rug,9,5\n")
    config = InteractionsConfig(min_rating=4, max_incomplete=0.5)
    with pytest.raises(
        InputError,
        match=r"None of the 3 interactions counts \(1 without a user_id,"
        r" 2 rated below min_rating\).*--interactions.min_rating",
    ):
        read_log(config, str(path), CATALOGUE)


MISMATCHES = {
    "upper and lower case": (["RUG-1", "vase-2"], ["rug-1", "lamp"]),
    "leading zeros": (["1", "22"], ["001", "022"]),
    "the folder": (["0108775015", "7"], ["010/0108775015"]),
    "the ending": (["a.jpg", "b.jpg"], ["a", "c"]),
    "white space around them": ([" a"], ["a"]),
    "case, ending, folder and zeros": (["A7"], ["010/00a7.jpg"]),
    "beginning 'sku-'": (["sku-1", "sku-2", "sku-3"], ["1", "2", "9"]),
    "ending '_v2'": (["1", "2"], ["1_v2", "2_v2"]),
}


@pytest.mark.parametrize("how", MISMATCHES)
def test_ids_that_are_written_differently_are_shown_with_the_difference(how: str) -> None:
    ours, known = MISMATCHES[how]
    with pytest.raises(InputError) as caught:
        build_log([batch(*(("u", item, 1) for item in ours))], pa.array(known))
    message = str(caught.value)
    assert f"would agree without {'the ' * ('nning' in how or '_v2' in how)}{how}" in message
    assert repr(ours[0]) in message
    assert repr(known[0]) in message


def test_ids_that_have_nothing_in_common_are_shown() -> None:
    with pytest.raises(InputError, match=r"such as 'x', and the second such as 'chair', 'lamp'"):
        build_log([batch(("u", "x", 1))], CATALOGUE)


@pytest.mark.parametrize("rating", [float("inf"), -float("inf"), 1e300])
def test_rating_that_is_infinite_in_float32_is_refused(rating: float) -> None:
    rows = batch(("u", "rug", 1), ("v", "vase", 2), ("v", "rug", 3))
    rows = rows.append_column("rating", pa.array([4.0, rating, None]))
    with pytest.raises(InputError, match=r"rating -?(inf|1e\+300) \(user v, item vase\).*nulls"):
        build_log([rows], CATALOGUE)
