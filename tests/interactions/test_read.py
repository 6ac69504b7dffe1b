"""Logs as they are read, against planted interactions and plain loops."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.interactions import CATALOGUE, batch, decoded
from visrec.errors import InputError
from visrec.interactions.read import build_log, read_log
from visrec.sources.interactions import InteractionsConfig


def test_log_is_sorted_by_user_and_time() -> None:
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
    assert log.evaluation_flag_R is None
    assert log.read_report.dropped_missing_feature == 0


def test_earliest_repeat_is_kept_with_its_flag() -> None:
    log = build_log(
        [
            batch(("u", "rug", 9, True), ("u", "chair", 2, False)),
            batch(("u", "rug", 3, False), ("u", "rug", 5, True), ("v", "rug", 8, True)),
        ],
        CATALOGUE,
    )
    assert decoded(log) == {"u": [("chair", 2), ("rug", 3)], "v": [("rug", 8)]}
    assert log.evaluation_flag_R is not None
    assert log.evaluation_flag_R.tolist() == [False, False, True]


def test_first_row_is_kept_of_repeats_with_one_timestamp() -> None:
    rows = [("u", "rug", 3, n == 0) for n in range(40)]
    log = build_log([batch(("u", "rug", 9, False), *rows)], CATALOGUE)
    assert decoded(log) == {"u": [("rug", 3)]}
    assert log.evaluation_flag_R is not None
    assert log.evaluation_flag_R.tolist() == [True]


def test_rows_with_unknown_items_are_left_out_and_counted() -> None:
    log = build_log(
        [batch(("u", "gone", 1), ("u", "rug", 2), ("v", "gone", 3), ("v", "older", 4))], CATALOGUE
    )
    assert decoded(log) == {"u": [("rug", 2)], "v": []}
    assert log.read_report.dropped_missing_feature == 3


def test_extra_users_are_kept_once_each() -> None:
    others = pa.array(["nobody", "u", "a", "nobody"])
    log = build_log([batch(("u", "rug", 1))], CATALOGUE, others)
    assert decoded(log) == {"a": [], "nobody": [], "u": [("rug", 1)]}


def test_users_are_sorted_by_bytes() -> None:
    users = ["é", "b", "B", "10", "9", "", "絵"]
    log = build_log([batch(*((user, "rug", 1) for user in users))], CATALOGUE)
    assert log.user_ids.to_pylist() == sorted(users, key=str.encode)


def test_null_or_absent_evaluation_counts_as_false() -> None:
    log = build_log(
        [
            batch(("u", "chair", 1)),
            batch(("u", "lamp", 2, True), ("u", "rug", 3, None)),
            batch(("u", "vase", 4)),
        ],
        CATALOGUE,
    )
    assert log.evaluation_flag_R is not None
    assert log.evaluation_flag_R.tolist() == [False, True, False, False]


def test_log_without_any_interaction_is_refused() -> None:
    empty = batch(("u", "rug", 1)).slice(0, 0)
    for batches in ([], [empty], [empty, empty]):
        with pytest.raises(InputError, match="The interactions are empty"):
            build_log(batches, CATALOGUE)


def test_empty_batches_are_ignored() -> None:
    full = batch(("u", "rug", 1, True))
    log = build_log([full.slice(0, 0), full, full.slice(0, 0)], CATALOGUE)
    assert decoded(log) == {"u": [("rug", 1)]}


def test_log_with_unknown_items_only_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        build_log([batch(("u", "gone", 1), ("v", "gone", 1))], CATALOGUE)
    assert "None of the 2 interactions is with an item that has a feature" in str(caught.value)
    assert "--features" in str(caught.value)


Row = tuple[str, str, int]
TIME = st.integers(0, 6) | st.sampled_from(
    [-(2**62), 2**62]
)  # user and time do not fit into one number
ROW = st.tuples(st.sampled_from("uvwx"), st.sampled_from([*CATALOGUE.to_pylist(), "gone"]), TIME)


@given(st.lists(st.lists(ROW, min_size=1, max_size=12), min_size=1, max_size=4))
def test_any_log_has_the_first_times_sorted(batches: list[list[Row]]) -> None:
    first: dict[tuple[str, str], int] = {}
    for user, item, time in (row for rows in batches for row in rows):
        first[user, item] = min(time, first.get((user, item), time))
    expected = {pair: time for pair, time in first.items() if pair[1] != "gone"}
    tables = [batch(*rows) for rows in batches]
    if not expected:
        with pytest.raises(InputError):
            build_log(tables, CATALOGUE)
        return
    users = {user for user, _ in first}
    assert decoded(build_log(tables, CATALOGUE)) == {
        user: sorted(
            ((item, time) for (u, item), time in expected.items() if u == user),
            key=lambda row: (row[1], row[0]),
        )
        for user in users
    }


def test_left_out_rows_are_counted_by_reason(tmp_path: Path) -> None:
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
    for keep_all_users, users in ((False, ["u", "v"]), (True, ["n", "u", "v", "y", "z"])):
        others = pa.array(["n"]) if keep_all_users else None
        log = read_log(
            config, str(tmp_path / "log.parquet"), CATALOGUE, others, keep_all_users=keep_all_users
        )
        assert log.user_ids.to_pylist() == users
        assert {user: taken for user, taken in decoded(log).items() if taken} == {
            "u": [("rug", 10)]
        }
        assert log.read_report.rows == len(rows)
        assert log.read_report.left_out == {
            "without a timestamp": 1,
            "at or after as_of": 1,
            "without a user_id": 2,
            "rated below min_rating": 2,
            "without a rating": 1,
            "without an item_id": 1,
            "of items without a feature": 1,
            "repeats of a user and item (the first time counts)": 1,
        }
        assert log.read_report.dropped_missing_feature == 1


def test_refusal_counts_left_out_rows_by_reason(tmp_path: Path) -> None:
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
    "the file extension": (["a.jpg", "b.jpg"], ["a", "c"]),
    "white space around them": ([" a"], ["a"]),
    "case, file extension, folder and zeros": (["A7"], ["010/00a7.jpg"]),
    "prefix 'sku-'": (["sku-1", "sku-2", "sku-3"], ["1", "2", "9"]),
    "suffix '_v2'": (["1", "2"], ["1_v2", "2_v2"]),
}


@pytest.mark.parametrize("how", MISMATCHES)
def test_refusal_shows_how_ids_differ(how: str) -> None:
    ids, catalogue = MISMATCHES[how]
    with pytest.raises(InputError) as caught:
        build_log([batch(*(("u", item, 1) for item in ids))], pa.array(catalogue))
    message = str(caught.value)
    assert f"would match without {'the ' * ('sku' in how or '_v2' in how)}{how}" in message
    assert repr(ids[0]) in message
    assert repr(catalogue[0]) in message


def test_refusal_shows_ids_with_nothing_in_common() -> None:
    with pytest.raises(InputError, match=r"such as 'x', and the second such as 'chair', 'lamp'"):
        build_log([batch(("u", "x", 1))], CATALOGUE)


@pytest.mark.parametrize("rating", [float("inf"), -float("inf"), 1e300])
def test_infinite_float32_rating_is_refused(rating: float) -> None:
    rows = batch(("u", "rug", 1), ("v", "vase", 2), ("v", "rug", 3))
    rows = rows.append_column("rating", pa.array([4.0, rating, None]))
    with pytest.raises(InputError, match=r"rating -?(inf|1e\+300) \(user v, item vase\).*nulls"):
        build_log([rows], CATALOGUE)
