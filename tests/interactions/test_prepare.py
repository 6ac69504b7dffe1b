"""Prepared interactions, against the log that is read from the files themselves."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interactions import CATALOGUE
from visrec import capacity, tasks
from visrec.errors import ConflictError, InputError, SchemaError
from visrec.interactions import prepare
from visrec.interactions.log import InteractionLog
from visrec.interactions.partition_rows import partition_numbers, sort_rows
from visrec.interactions.prepare import (
    prepare_if_possible,
    prepare_table,
)
from visrec.interactions.prepared import PreparedTable
from visrec.interactions.read import read_log
from visrec.sources.interactions import InteractionsConfig, read_all, read_disliked
from visrec.storage import table_pieces
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import BLOCKED, INTERACTIONS, USERS
from visrec.storage.store import Store

NAMES = ("user_id", "item_id", "timestamp", "rating", "evaluation")
TYPES = (pa.string(), pa.string(), pa.int64(), pa.float64(), pa.bool_())
Row = tuple[Any, ...]


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    """A piece has about one of the row groups that these tests write, and is read here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tasks, "on_ray", lambda: False)  # another test may have started Ray
        patched.setattr(table_pieces, "PIECE_ROWS", 6)
        yield


def table(rows: list[Row], *without: str) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [[] for _ in NAMES]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, TYPES, strict=True)]
    return pa.table(dict(zip(NAMES, arrays, strict=True))).drop_columns(list(without))


def prepared_in(folder: Path, partitions: int | None = None) -> PreparedTable:
    log = InteractionsConfig().table(str(folder / "log"))
    return prepare_table(log, INTERACTIONS, Store.at(str(folder / "prepared")), partitions)


def assert_same_log(found: InteractionLog, expected: InteractionLog) -> None:
    assert found.user_ids.equals(expected.user_ids)
    for name in ("offsets", "item_R", "time_R", "evaluation_flag_R", "rating_R"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, name)
    assert found.read_report == expected.read_report


def assert_read_equally(
    folder: Path, config: InteractionsConfig, prepared: PreparedTable, **keys: Any
) -> None:
    """The prepared log equals the one of the files, or both are refused with the same counts."""
    uri = str(folder / "log")
    expected = log_or_refusal(config, uri, **keys)
    found = log_or_refusal(config, uri, **keys, prepared=prepared)
    if isinstance(expected, str) or isinstance(found, str):
        # The example of a refused row and the order of the reasons may be others.
        assert str(found)[:40] == str(expected)[:40]
    else:
        assert_same_log(found, expected)


def log_or_refusal(config: InteractionsConfig, uri: str, **keys: Any) -> InteractionLog | str:
    try:
        return read_log(config, uri, CATALOGUE, **keys)
    except InputError as error:
        return str(error)


ROW = st.tuples(
    st.sampled_from(["u", "v", "w", "x", "é", None, " "]),
    st.sampled_from([*CATALOGUE.to_pylist(), "gone", "zz", None]),
    st.sampled_from([None, *range(6)]),
    st.sampled_from([None, 1.0, 4.0, 5.0]),
    st.sampled_from([None, True, False]),
)
CONFIG = st.builds(
    InteractionsConfig,
    min_rating=st.sampled_from([None, 4.0]),
    as_of=st.sampled_from([None, "1970-01-01T00:00:04"]),
    max_incomplete=st.sampled_from([0.3, 1.0]),
)


@settings(max_examples=60)
@given(
    files=st.lists(st.lists(ROW, max_size=14), min_size=1, max_size=4),
    without=st.lists(st.sampled_from([(), ("evaluation",), ("rating",)]), min_size=4, max_size=4),
    first=st.integers(0, 4),
    partitions=st.sampled_from([1, 3, 17]),
    config=CONFIG,
    keep_all_users=st.booleans(),
)
def test_log_equals_that_of_the_files(
    files: list[list[Row]],
    without: list[tuple[str, ...]],
    first: int,
    partitions: int,
    config: InteractionsConfig,
    keep_all_users: bool,
) -> None:
    """The first files are prepared before the others are there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log").mkdir()
        for number, rows in enumerate(files):
            if number and number == first:
                prepared_in(folder, partitions)
            path = folder / "log" / f"{number}.parquet"
            pq.write_table(table(rows, *without[number]), path, row_group_size=5)
        prepared = prepared_in(folder, partitions)
        others = pa.array(["a", "v", "zz"]) if keep_all_users else None
        assert_read_equally(
            folder, config, prepared, extra_users=others, keep_all_users=keep_all_users
        )
        if config.min_rating and not prepared.manifest.without_rating:
            parts = (("", prepared.read(partition)) for partition in range(partitions))
            files_themselves = read_all(config, str(folder / "log"))
            assert pairs(read_disliked(config, parts)) == pairs(
                read_disliked(config, files_themselves)
            )


def pairs(batches: Any) -> list[tuple[Any, Any]]:
    rows = (row for batch in batches for row in batch.to_pylist())
    return sorted((row["user_id"], str(row["item_id"])) for row in rows)


@settings(max_examples=30)
@given(st.lists(ROW, max_size=30), st.sampled_from([0, 2**62]))
def test_rows_are_sorted_stably_with_nulls_first(rows: list[Row], later: int) -> None:
    """With times too far apart to be packed into one number with the ids, too."""
    rows = [(u, i, t and t + later * (t > 3), r, e) for u, i, t, r, e in rows]
    found = sort_rows(table(rows)).to_pylist()
    order = [(r[0] or "", r[0] is not None, r[2] is not None, r[2] or 0) for r in rows]
    keys = [(*key, r[1] is not None, r[1] or "") for key, r in zip(order, rows, strict=True)]
    keys = [(known, user.encode(), *rest) for (user, known, *rest) in keys]
    expected = [rows[n] for n in sorted(range(len(rows)), key=keys.__getitem__)]
    assert [tuple(row.values()) for row in found] == expected


def test_ids_are_stored_as_codes_of_sorted_ids(tmp_path: Path) -> None:
    """Other tools read strings; visrec reads the codes of a dictionary in order."""
    users = [f"user-{n % 50_000:05}" for n in range(60_000)]  # their text exceeds 1 MiB, see below
    rows = [(user + "-with-a-long-name", "rug", n, None, None) for n, user in enumerate(users)]
    (tmp_path / "log").mkdir()
    pq.write_table(table(rows[::-1]), tmp_path / "log" / "1.parquet")
    prepared = prepared_in(tmp_path, 1)
    user_ids = prepared.read(0)["user_id"]
    assert user_ids.num_chunks == 1
    codes: npt.NDArray[np.int32] = user_ids.chunk(0).indices.to_numpy()
    assert (np.diff(codes) >= 0).all()
    names = user_ids.chunk(0).dictionary.to_pylist()
    assert names == sorted({user + "-with-a-long-name" for user in users})
    part = str(prepared.manifest.parts_P[0])
    file = pq.ParquetFile(tmp_path / "prepared" / prepared.store.name / part)
    # Parquet stores ids twice where their dictionary exceeds its limit.
    assert "PLAIN" not in file.metadata.row_group(0).column(0).encodings[1:]


def test_all_rows_of_a_user_are_in_the_partition_of_the_hash(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = [(f"u{n % 40}", "rug", n, None, None) for n in range(200)]
    pq.write_table(table(rows), tmp_path / "log" / "1.parquet", row_group_size=30)
    prepared = prepared_in(tmp_path, 3)
    assert sum(prepared.manifest.rows_P) == 200
    for number in prepared.partitions:
        ids = prepared.read(number)["user_id"].cast(pa.string()).combine_chunks()
        assert set(partition_numbers(ids, 3)) == {number}


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """Two days of a few users."""
    (tmp_path / "log").mkdir()
    for day in (1, 2):
        rows = [(f"u{n}", "rug", 100 * day + n, None, None) for n in range(30)]
        pq.write_table(table(rows), tmp_path / "log" / f"day-{day}.parquet", row_group_size=10)
    return tmp_path


def test_nothing_is_read_while_the_files_are_the_same(
    days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared_in(days, 4)
    monkeypatch.setattr(prepare, "_map", None)
    assert prepared_in(days, 4) == first
    assert prepared_in(days) == first


def test_new_day_is_read_alone_and_changes_its_users_partitions(
    days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared_in(days, 8)
    pq.write_table(table([("u3", "vase", 300, None, None)]), days / "log" / "day-3.parquet")
    read = record_calls(monkeypatch, "partition_piece")
    after = prepared_in(days)
    assert [piece.file.name for piece, *_ in read] == ["day-3.parquet"]
    changed = [p for p in range(8) if before.manifest.parts_P[p] != after.manifest.parts_P[p]]
    assert changed == [int(partition_numbers(pa.array(["u3"]), 8)[0])]
    # The last version is kept for its readers; nothing else is.
    assert before.read(changed[0]).num_rows + 1 == after.read(changed[0]).num_rows
    names = {info.name for info in after.store.list()} - {"_manifest.json"}
    assert names == {*before.manifest.parts_P, *after.manifest.parts_P}


def record_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call from now on."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(prepare, name)

    def recorded(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(prepare, name, recorded)
    return calls


@pytest.mark.parametrize("change", ["changed", "removed", "before"])
def test_everything_is_read_where_files_did_not_only_follow(
    days: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared_in(days, 3)
    row = table([("u3", "vase", 300, None, None)])
    if change == "removed":
        (days / "log" / "day-1.parquet").unlink()
    else:
        name = "day-1" if change == "changed" else "day-0"
        pq.write_table(row, days / "log" / f"{name}.parquet")
    read = record_calls(monkeypatch, "partition_piece")
    assert_read_equally(days, InteractionsConfig(), prepared_in(days, 3))
    names = {piece.file.name for piece, *_ in read}
    assert names == {path.name for path in (days / "log").iterdir()}


def test_more_rows_get_more_partitions(days: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [capacity.partition_count(n * 2_000_000) for n in (0, 1, 2, 3, 10)] == [1, 1, 2, 4, 16]
    assert capacity.partition_count(2_000_001) == 2
    monkeypatch.setattr(capacity, "PARTITION_ROWS", 40)
    assert prepared_in(days).manifest.partitions == 2
    for day in range(3, 9):
        rows = [(f"u{n}", "vase", 100 * day + n, None, None) for n in range(30)]
        pq.write_table(table(rows), days / "log" / f"day-{day}.parquet")
        prepared = prepared_in(days)
        assert_read_equally(days, InteractionsConfig(), prepared)
    assert prepared.manifest.partitions == 8


class KilledError(BaseException):
    """In place of a signal."""


@pytest.mark.parametrize("when", ["partition_piece", "write_partition", "commit"])
def test_killed_run_is_completed_by_the_next(
    days: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after half of the pieces, half of the partitions, or before the manifest."""
    with monkeypatch.context() as patched:
        if when == "commit":
            patched.setattr(Store, "compare_and_swap", killed_at(1, Store.compare_and_swap))
        else:
            patched.setattr(prepare, when, killed_at(2, getattr(prepare, when)))
        with pytest.raises(KilledError):
            prepared_in(days, 5)
    files = {path: path.stat().st_mtime_ns for path in (days / "prepared").rglob("*.*")}
    kept = [path for path in files if path.suffix in (".arrow", ".parquet")]
    assert kept
    with monkeypatch.context() as patched:
        patched.setattr(Store, "delete", lambda *_: None)
        prepared = prepared_in(days, 5)
    assert {path: path.stat().st_mtime_ns for path in kept} == {path: files[path] for path in kept}
    assert_read_equally(days, InteractionsConfig(), prepared)


def killed_at(number: int, function: Any) -> Any:
    calls = []

    def run(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            raise KilledError
        return function(*arguments)

    return run


def test_process_that_lost_the_race_reads_what_the_other_one_prepared(
    days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = prepare.partition_piece

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(prepare, "partition_piece", original)
        partitioned = original(*arguments)
        prepared_in(days, 3)
        return partitioned

    monkeypatch.setattr(prepare, "partition_piece", overtaken)
    assert_read_equally(days, InteractionsConfig(), prepared_in(days, 3))


def test_lost_partition_is_made_again(days: Path) -> None:
    first = prepared_in(days, 4)
    lost = first.manifest.parts_P[first.partitions[0]]
    first.store.delete([str(lost)])
    assert_read_equally(days, InteractionsConfig(), prepared_in(days, 4))


def test_rows_without_a_user_are_in_the_partitions_of_their_items(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = [(None, f"item {n % 40}", n, None, None) for n in range(200)]
    pq.write_table(table(rows), tmp_path / "log" / "1.parquet", row_group_size=30)
    assert sum(map(bool, prepared_in(tmp_path, 4).manifest.rows_P)) == 4


def test_file_that_is_two_tables_is_prepared_for_each(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("user_id,item_id,timestamp\nu1,a,1700000000\n,b,1700000000\n")
    one = InputTable(uri=str(tmp_path / "one.csv"), key="any")
    rows = {
        columns: prepare_table(one, columns, Store.at(str(tmp_path / "prepared")), 1).read(0)
        for columns in (INTERACTIONS, USERS, BLOCKED[:1])
    }
    assert rows[INTERACTIONS]["user_id"].to_pylist() == [None, "u1"]
    assert rows[USERS]["user_id"].to_pylist() == ["u1"]
    assert rows[BLOCKED[:1]]["item_id"].to_pylist() == ["a", "b"]


def test_file_whose_changes_would_not_be_seen_is_not_prepared(tmp_path: Path) -> None:
    hidden = tmp_path / ".log.parquet"
    pq.write_table(table([("u", "rug", 1, None, None)]), hidden)
    folder = Store.at(str(tmp_path / "prepared"))
    assert prepare_if_possible(InteractionsConfig(), str(hidden), folder) is None


def test_file_that_keeps_changing_while_it_is_read_is_not_prepared(
    days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = prepare.split_file

    def then_change(*arguments: Any) -> Any:
        pq.write_table(table([("u", "rug", 1, None, None)]), days / "log" / "day-2.parquet")
        return write(*arguments)

    monkeypatch.setattr(prepare, "split_file", then_change)
    with pytest.raises(ConflictError, match="changed while they were read"):
        prepared_in(days)
    folder = Store.at(str(days / "prepared"))
    assert prepare_if_possible(InteractionsConfig(), str(days / "log"), folder) is None
    assert not list(folder.list())


def test_table_whose_pieces_keep_vanishing_is_not_prepared(
    days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = prepare.write_partition, []

    def overtaken(store: Store, *arguments: Any) -> Any:
        """Another process has committed and removed the pieces."""
        calls.append(None)
        store.delete({info.name for info in store.list("pieces/")})
        return write(store, *arguments)

    monkeypatch.setattr(prepare, "write_partition", overtaken)
    folder = Store.at(str(days / "prepared"))
    assert prepare_if_possible(InteractionsConfig(), str(days / "log"), folder) is None
    assert len(calls) == 2


# CSV files in pieces.


@pytest.mark.parametrize(("end", "quoted"), [("\n", False), ("\r\n", False), ("\n", True)])
def test_csv_file_is_read_in_pieces(
    tmp_path: Path, end: str, quoted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_pieces, "PIECE_BYTES", 256)
    (tmp_path / "log").mkdir()
    rows = [(f"u{n % 7}", ("rug", "vase")[n % 2], 100 + n, 1.0 * n, n % 3 == 0) for n in range(90)]
    path = tmp_path / "log" / "log.csv"
    options = pacsv.WriteOptions(quoting_style="needed" if quoted else "none")
    pacsv.write_csv(table(rows), path, options)  # the header has quotes in any case
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", end.encode()))
    log = InteractionsConfig().table(str(tmp_path / "log"))
    pieces = [
        piece
        for file in prepare.list_table_files(log)
        for piece in table_pieces.split_file(file, prepare.INTERACTIONS)
    ]
    assert (len(pieces) == 1) == quoted
    assert_read_equally(tmp_path, InteractionsConfig(), prepared_in(tmp_path, 3))


def test_pieces_of_one_file_have_one_unit(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = [("u", "rug", 1_700_000_000 * (1000 if n > 5 else 1), None, None) for n in range(9)]
    pq.write_table(table(rows), tmp_path / "log" / "1.parquet", row_group_size=6)
    with pytest.raises(SchemaError, match="seconds since 1970 in some rows and milliseconds"):
        prepared_in(tmp_path)


def test_min_rating_needs_the_column_in_each_file(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows: list[Row] = [("u", "rug", 1, 5.0, None)]
    pq.write_table(table(rows), tmp_path / "log" / "1.parquet")
    pq.write_table(table(rows, "rating"), tmp_path / "log" / "2.parquet")
    prepared = prepared_in(tmp_path)
    assert_read_equally(tmp_path, InteractionsConfig(), prepared)
    with pytest.raises(InputError, match=r"no rating column in \S+/2\.parquet \("):
        read_log(InteractionsConfig(min_rating=4), "", CATALOGUE, prepared=prepared)
