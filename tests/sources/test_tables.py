"""Tables from Parquet and CSV, files and directories, a local disk and S3."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from visrec.errors import InputError, SchemaError
from visrec.schemas import INTERACTIONS, ITEMS
from visrec.sources.tables import digest_files, read_batches, read_whole
from visrec.storage import Store

KEY = "interactions.path"
LOG = pa.table({"user_id": ["u", "v"], "item_id": ["007", "b"], "timestamp": [1, 2]})


def csv(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pacsv.write_csv(table, sink)
    return bytes(sink.getvalue())


def put(store: Store, name: str, table: pa.Table) -> None:
    if name.endswith(".csv"):
        store.write(name, csv(table))
    else:
        store.write_table(name, table)


def rows(store: Store, name: str = "") -> list[tuple[str, str, int]]:
    tables = read_batches(store.uri(name), INTERACTIONS, KEY)
    columns = ("user_id", "item_id", "timestamp")
    return [tuple(row[c] for c in columns) for table in tables for row in table.to_pylist()]


def refusal(uri: str, kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        list(read_batches(uri, INTERACTIONS, KEY))
    message = str(caught.value)
    assert uri in message
    assert f"--{KEY}" in message
    return message


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "odd name 100%/é+ log.csv"])
def test_a_file_gives_its_rows(store: Store, name: str) -> None:
    put(store, name, LOG)
    assert rows(store, name) == [("u", "007", 1), ("v", "b", 2)]


def test_a_directory_gives_the_rows_of_its_tables_in_order_of_names(store: Store) -> None:
    for number, name in enumerate(["z.csv", "day=2/x.parquet", "a.parquet"]):
        put(store, f"log/{name}", LOG.slice(0, 1).set_column(2, "timestamp", [[number]]))
    for other in ("_SUCCESS", "notes.txt", ".hidden.csv"):
        store.write(f"log/{other}", b"not a table")
    expected = [("u", "007", 2), ("u", "007", 1), ("u", "007", 0)]
    assert rows(store, "log") == expected
    assert rows(store, "log/") == expected


def test_a_directory_may_be_named_like_a_file(store: Store) -> None:
    # Spark, Dask and Ray write such directories.
    put(store, "log.parquet/part-0.parquet", LOG)
    assert rows(store, "log.parquet") == [("u", "007", 1), ("v", "b", 2)]


def test_ids_of_a_csv_keep_their_zeros(store: Store) -> None:
    store.write("log.csv", b"user_id,item_id,timestamp\n007,0010,5\n1e3,NA,6\n")
    assert rows(store, "log.csv") == [("007", "0010", 5), ("1e3", "NA", 6)]


def test_dates_of_a_csv_are_times(store: Store) -> None:
    text = b"user_id,item_id,timestamp\nu,a,1970-01-02\n"
    store.write("log.csv", text)
    assert rows(store, "log.csv") == [("u", "a", 86_400)]
    store.write("log.csv", text.replace(b"01-02", b"01-02T00:00:01+01:00"))
    assert rows(store, "log.csv") == [("u", "a", 86_400 + 1 - 3_600)]


def test_a_csv_column_may_turn_from_whole_numbers_to_fractions(tmp_path: Path) -> None:
    # pyarrow guesses types from the first megabyte.
    line = "somebody-or-other,something-or-other,1600000000,4\n"
    text = "user_id,item_id,timestamp,rating\n" + line * 40_000 + line.replace(",4", ",4.5")
    (tmp_path / "log.csv").write_text(text)
    ratings = read_whole(str(tmp_path / "log.csv"), INTERACTIONS, KEY)["rating"]
    assert len(ratings) == 40_001
    assert ratings[-1].as_py() == 4.5


def test_only_declared_columns_are_read(store: Store) -> None:
    put(store, "log.parquet", LOG.append_column("secret", [["x", "y"]]))
    [table] = read_batches(store.uri("log.parquet"), INTERACTIONS, KEY)
    assert table.column_names == ["user_id", "item_id", "timestamp"]


def test_batches_are_bounded(tmp_path: Path) -> None:
    many = 600_000
    table = pa.table({name: pa.repeat(1, many) for name in LOG.column_names})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=many)
    sizes = [len(t) for t in read_batches(str(tmp_path / "log.parquet"), INTERACTIONS, KEY)]
    assert sum(sizes) == many
    assert max(sizes) <= 1 << 18


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["nothing.parquet", "nothing.csv", "nothing", "with-others"])
def test_nothing_there_names_the_key(store: Store, name: str) -> None:
    store.write("with-others/readme.txt", b"no table")
    message = refusal(store.uri(name))
    assert "Found no" in message
    assert f"Change --{KEY}" in message


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_an_empty_file_is_bad_input(store: Store, name: str) -> None:
    store.write(name, b"")
    refusal(store.uri(name))


def test_a_table_without_rows_has_none(store: Store) -> None:
    put(store, "log.parquet", LOG.slice(0, 0))
    store.write("log.csv", b"user_id,item_id,timestamp\n")
    for name in ("log.parquet", "log.csv"):
        assert rows(store, name) == []


def broken(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "not Parquet": b"PARDON" * 50,
        "cut": data[:middle],
        "without head": data[middle:],
        "footer overwritten": data[:-60] + b"\xff" * 52 + data[-8:],
        "pages overwritten": data[:4] + b"\xff" * (middle - 4) + data[middle:],
    }


@pytest.mark.parametrize("how", broken(b""))
def test_corrupted_parquet_is_bad_input_that_names_the_file(store: Store, how: str) -> None:
    ids = [f"id {n}" for n in range(999)]
    table = pa.table({"user_id": ids, "item_id": ids, "timestamp": range(999)})
    put(store, "log.parquet", table)
    store.write("log.parquet", broken(store.read("log.parquet"))[how])
    message = refusal(store.uri("log.parquet"))
    assert "cannot be read as a table" in message


def test_a_csv_with_ragged_rows_is_bad_input(store: Store) -> None:
    store.write("log.csv", b"user_id,item_id,timestamp\nu,a,1\nv,b\n")
    assert "cannot be read as a table" in refusal(store.uri("log.csv"))


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_a_missing_column_names_the_file(store: Store, name: str) -> None:
    put(store, name, LOG.rename_columns(["user", "item_id", "timestamp"]))
    assert "lacks the column user_id. Found user, item_id" in refusal(store.uri(name), SchemaError)


# ------------------------------------------------------------------------------------ whole tables


def test_read_whole_joins_the_files(store: Store) -> None:
    put(store, "items/a.csv", pa.table({"item_id": [7], "title": ["Late Hills"]}))
    put(store, "items/b.parquet", pa.table({"item_id": ["x"], "title": ["Early Sea"]}))
    table = read_whole(store.uri("items"), ITEMS, "items")
    assert table.to_pydict() == {"item_id": ["7", "x"], "title": ["Late Hills", "Early Sea"]}


def test_read_whole_refuses_nothing_and_files_that_differ(store: Store) -> None:
    store.write("empty.csv", b"item_id\n")
    with pytest.raises(InputError, match=r"empty.csv \(--items\) has no rows"):
        read_whole(store.uri("empty.csv"), ITEMS, "items")
    put(store, "items/a.parquet", pa.table({"item_id": ["x"]}))
    put(store, "items/b.parquet", pa.table({"item_id": ["x"], "title": ["t"]}))
    with pytest.raises(SchemaError, match=r"items \(--items\) have different columns"):
        read_whole(store.uri("items"), ITEMS, "items")


# ----------------------------------------------------------------------------------------- digests


def test_a_digest_changes_with_any_byte(store: Store) -> None:
    put(store, "log/a.csv", LOG)
    put(store, "log/b.parquet", LOG)
    before = digest_files(store.uri("log"), KEY)
    assert digest_files(store.uri("log"), KEY) == before
    assert len(before) == 16
    data = bytearray(store.read("log/b.parquet"))
    data[len(data) // 2] ^= 1
    store.write("log/b.parquet", bytes(data))
    changed = digest_files(store.uri("log"), KEY)
    assert changed != before
    store.delete(["log/b.parquet"])
    assert digest_files(store.uri("log"), KEY) not in (before, changed)


@pytest.mark.s3
def test_a_digest_is_the_same_wherever_the_files_lie(s3_env: str, tmp_path: Path) -> None:
    for store in (Store.at(f"{s3_env}/deep/log"), Store.at(str(tmp_path / "other"))):
        put(store, "a.csv", LOG)
        put(store, "b.parquet", LOG)
    assert digest_files(f"{s3_env}/deep/log", KEY) == digest_files(str(tmp_path / "other"), KEY)
    assert digest_files(f"{s3_env}/deep/log/a.csv", KEY) == digest_files(
        str(tmp_path / "other" / "a.csv"), KEY
    )
