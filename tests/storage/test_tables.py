"""Input tables: Parquet and CSV, files and directories, on a local disk and on S3."""

import bz2
import codecs
import gzip
import os
import shutil
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.storage import COLUMNS, KEY, LOG, csv, items, log, put, refusal, rows
from visrec.errors import InputError, SchemaError
from visrec.storage import csv_files
from visrec.storage.schemas import INTERACTIONS, ITEMS
from visrec.storage.store import Store
from visrec.storage.table_descriptions import describe_table
from visrec.storage.table_files import find_table_files, list_table_files
from visrec.storage.tables import digest_files, load_table, read_batches


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "odd name 100%/é+ log.csv"])
def test_file_yields_its_rows(store: Store, name: str) -> None:
    put(store, name, LOG)
    assert rows(store, name) == [("u", "007", 1), ("v", "b", 2)]


def test_directory_yields_the_rows_of_its_files_in_order(store: Store) -> None:
    for number, name in enumerate(["z.csv", "day=2/x.parquet", "a.parquet"]):
        put(store, f"log/{name}", LOG.slice(0, 1).set_column(2, "timestamp", [[number]]))
    for other in ("_SUCCESS", "notes.txt", ".hidden.csv"):
        store.write(f"log/{other}", b"not a table")
    expected = [("u", "007", 2), ("u", "007", 1), ("u", "007", 0)]
    assert rows(store, "log") == expected
    assert rows(store, "log/") == expected


def test_directory_may_be_named_like_a_file(store: Store) -> None:
    # Spark, Dask and Ray write such directories.
    put(store, "log.parquet/part-0.parquet", LOG)
    assert rows(store, "log.parquet") == [("u", "007", 1), ("v", "b", 2)]


def test_csv_ids_keep_leading_zeros(store: Store) -> None:
    store.write("log.csv", b"user_id,item_id,timestamp\n007,0010,5\n1e3, NA,6\n")
    assert rows(store, "log.csv") == [("007", "0010", 5), ("1e3", " NA", 6)]


def test_csv_dates_become_seconds(store: Store) -> None:
    text = b"user_id,item_id,timestamp\nu,a,1970-01-02\n"
    store.write("log.csv", text)
    assert rows(store, "log.csv") == [("u", "a", 86_400)]
    store.write("log.csv", text.replace(b"01-02", b"01-02T00:00:01+01:00"))
    assert rows(store, "log.csv") == [("u", "a", 86_400 + 1 - 3_600)]


def test_csv_column_may_change_from_integers_to_fractions(tmp_path: Path) -> None:
    # pyarrow infers types from the first megabyte.
    line = "somebody-or-other,something-or-other,1600000000,4\n"
    text = "user_id,item_id,timestamp,rating\n" + line * 40_000 + line.replace(",4", ",4.5")
    (tmp_path / "log.csv").write_text(text)
    ratings = load_table(log(str(tmp_path / "log.csv")), INTERACTIONS)["rating"]
    assert len(ratings) == 40_001
    assert ratings[-1].as_py() == 4.5


def test_only_declared_columns_are_read(store: Store) -> None:
    put(store, "log.parquet", LOG.append_column("secret", [["x", "y"]]))
    [table] = read_batches(log(store.uri("log.parquet")), INTERACTIONS)
    assert table.column_names == ["user_id", "item_id", "timestamp"]


def test_batches_are_bounded(tmp_path: Path) -> None:
    many = 600_000
    table = pa.table({name: pa.repeat(1, many) for name in LOG.column_names})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=many)
    sizes = [len(t) for t in read_batches(log(str(tmp_path / "log.parquet")), INTERACTIONS)]
    assert sum(sizes) == many
    assert max(sizes) <= 1 << 18


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["nothing.parquet", "nothing.csv", "nothing", "with-others"])
def test_missing_table_is_refused_with_the_key(store: Store, name: str) -> None:
    store.write("with-others/readme.txt", b"no table")
    message = refusal(store.uri(name))
    assert "Found no" in message
    assert f"Change --{KEY}" in message


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_empty_file_is_refused(store: Store, name: str) -> None:
    store.write(name, b"")
    refusal(store.uri(name))


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_file_of_a_byte_order_mark_alone_is_empty(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "log.csv").write_bytes(mark)
    assert "is empty; expected at least a header" in refusal(str(tmp_path / "log.csv"))


def test_table_without_rows_yields_none(store: Store) -> None:
    put(store, "log.parquet", LOG.slice(0, 0))
    store.write("log.csv", b"user_id,item_id,timestamp\n")
    for name in ("log.parquet", "log.csv"):
        assert rows(store, name) == []


def damaged(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "not Parquet": b"PARDON" * 50,
        "cut": data[:middle],
        "without head": data[middle:],
        "footer overwritten": data[:-60] + b"\xff" * 52 + data[-8:],
        "pages overwritten": data[:4] + b"\xff" * (middle - 4) + data[middle:],
    }


@pytest.mark.parametrize("how", damaged(b""))
def test_damaged_parquet_is_refused_with_its_name(store: Store, how: str) -> None:
    ids = [f"id {n}" for n in range(999)]
    table = pa.table({"user_id": ids, "item_id": ids, "timestamp": range(999)})
    put(store, "log.parquet", table)
    store.write("log.parquet", damaged(store.read("log.parquet"))[how])
    message = refusal(store.uri("log.parquet"))
    assert "cannot be read as a table" in message


def test_csv_with_ragged_rows_is_refused(store: Store) -> None:
    store.write("log.csv", b"user_id,item_id,timestamp\nu,a,1\nv,b\n")
    assert "cannot be read as a table" in refusal(store.uri("log.csv"))


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_missing_column_is_refused_with_the_file(store: Store, name: str) -> None:
    put(store, name, LOG.rename_columns(["user", "item_id", "timestamp"]))
    assert "lacks the column user_id. Found user, item_id" in refusal(store.uri(name), SchemaError)


# ---------------------------------------------------------------------------------- loaded tables


def test_load_table_concatenates_the_files(store: Store) -> None:
    put(store, "items/a.csv", pa.table({"item_id": [7], "title": ["Late Hills"]}))
    put(store, "items/b.parquet", pa.table({"item_id": ["x"], "title": ["Early Sea"]}))
    table = load_table(items(store.uri("items")), ITEMS)
    assert table.to_pydict() == {"item_id": ["7", "x"], "title": ["Late Hills", "Early Sea"]}


def test_load_table_refuses_no_rows_and_different_columns(store: Store) -> None:
    store.write("empty.csv", b"item_id\n")
    with pytest.raises(InputError, match=r"empty.csv \(--items\) has no rows"):
        load_table(items(store.uri("empty.csv")), ITEMS)
    put(store, "items/a.parquet", pa.table({"item_id": ["x"]}))
    put(store, "items/b.parquet", pa.table({"item_id": ["x"], "title": ["t"]}))
    with pytest.raises(SchemaError, match=r"items \(--items\) have different columns"):
        load_table(items(store.uri("items")), ITEMS)


# ----------------------------------------------------------------------------------------- digests


def test_digest_changes_with_any_byte(store: Store) -> None:
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


def test_digest_changes_with_the_folders_that_are_columns(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    for place in ("here", "there"):
        put(store, f"{place}/available=0/a.csv", LOG)
        put(store, f"{place}/available=1/b.parquet", LOG)
    put(store, "moved/available=1/a.csv", LOG)
    put(store, "moved/available=1/b.parquet", LOG)
    digests = {name: digest_files(store.uri(name), KEY) for name in ("here", "there", "moved")}
    assert digests["here"] == digests["there"] != digests["moved"]


@pytest.mark.s3
def test_digest_does_not_depend_on_the_location(s3_env: str, tmp_path: Path) -> None:
    for store in (Store.at(f"{s3_env}/deep/log"), Store.at(str(tmp_path / "other"))):
        put(store, "a.csv", LOG)
        put(store, "b.parquet", LOG)
    assert digest_files(f"{s3_env}/deep/log", KEY) == digest_files(str(tmp_path / "other"), KEY)
    assert digest_files(f"{s3_env}/deep/log/a.csv", KEY) == digest_files(
        str(tmp_path / "other" / "a.csv"), KEY
    )


# ------------------------------------------------------------------- directories of other writers


def test_hidden_and_underscored_files_are_ignored(store: Store) -> None:
    ghost = LOG.set_column(0, "user_id", [["ghost", "ghost"]])
    put(store, "log.parquet/part-0.parquet", LOG)
    for name in ("_temporary/0/x.parquet", "_change_data/x.parquet", "day=1/_tmp.csv",
                 "_committed.csv", ".part-0.parquet"):  # fmt: skip
        put(store, f"log.parquet/{name}", ghost)
    assert rows(store, "log.parquet") == [("u", "007", 1), ("v", "b", 2)]
    put(store, "by/_day=1/x.parquet", LOG)  # which Spark reads
    assert len(rows(store, "by")) == 2


def test_hive_partitions_become_columns(store: Store) -> None:
    part = LOG.slice(0, 1).select(["user_id", "item_id"])
    names = ["rating=5/timestamp=7", "rating=1.5/timestamp=2021-03-01 12%3A00%3A00",
             "rating=__HIVE_DEFAULT_PARTITION__/timestamp=1970-01-02"]  # fmt: skip
    for name in names:
        put(store, f"log/{name}/x.parquet", part)
    put(store, "log/rating=3/timestamp=8/x.csv", part)
    found = [table.to_pylist() for table in read_batches(log(store.uri("log")), INTERACTIONS)]
    assert sorted((row["rating"] or 0, row["timestamp"]) for [row] in found) == [
        (0, 86_400), (1.5, 1_614_600_000), (3, 8), (5, 7),
    ]  # fmt: skip
    put(store, "items/category=red%2Fblue shirt/x.parquet", pa.table({"item_id": [7]}))
    table = load_table(items(store.uri("items")), ITEMS)
    assert table.to_pylist() == [{"item_id": "7", "category": "red/blue shirt"}]


def test_partition_value_replaces_the_column_of_the_file(store: Store) -> None:
    put(store, "log/user_id=w/x.parquet", LOG)
    assert [row[0] for row in rows(store, "log")] == ["w", "w"]


LOGS = {
    "Delta": ["_delta_log/00000000000000000000.json"],
    "Delta with a checkpoint": ["_delta_log/00000000000000000010.checkpoint.parquet"],
    "Iceberg": ["metadata/00000-1-abc.metadata.json", "metadata/snap-1.avro"],
    "Hudi": [".hoodie/hoodie.properties"],
}


@pytest.mark.parametrize("kind", LOGS)
def test_table_format_with_a_log_is_refused_by_name(store: Store, kind: str) -> None:
    put(store, "log/part-0.parquet", LOG)
    for name in LOGS[kind]:
        store.write(f"log/{name}", b"{}")
    article = "an" if kind == "Iceberg" else "a"
    assert f"is {article} {kind.split()[0]} table: its log says" in refusal(store.uri("log"))


@pytest.mark.parametrize("kind", ["Delta", "Iceberg", "Hudi"])
def test_partition_of_a_table_with_a_log_is_refused_by_name(store: Store, kind: str) -> None:
    part = "log/data/x=1/y=2" if kind == "Iceberg" else "log/x=1/y=2"
    put(store, f"{part}/part-0.parquet", LOG)
    assert len(rows(store, part)) == 2
    for name in LOGS[kind]:
        store.write(f"log/{name}", b"{}")
    with pytest.raises(InputError, match=f"{store.uri('log')} .*{kind} table"):
        rows(store, part)


def test_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    put(Store.at(str(tmp_path)), "log/a.parquet", LOG)
    odd = os.path.join(os.fsencode(tmp_path), b"log/caf\xe9.parquet")
    shutil.copy(tmp_path / "log/a.parquet", odd)
    for read in (digest_files, find_table_files):
        with pytest.raises(InputError, match=r"log/caf\\xe9.parquet \(--x\) is not UTF-8"):
            read(str(tmp_path / "log"), "x")
    with pytest.raises(InputError, match=r"log/caf\\xe9.parquet, which is not UTF-8"):
        digest_files(os.fsdecode(odd), "x")


def test_directory_without_tables_is_refused_with_an_example(store: Store) -> None:
    store.write("log/000000_0", b"u\x01a\x011\n")
    assert "only 000000_0; expected a .parquet, .csv, .tsv or .jsonl file" in refusal(
        store.uri("log")
    )


def test_file_with_the_wrong_extension_is_refused(store: Store) -> None:
    store.write("log.parquet", csv(LOG))
    assert 'starts with b\'"user_id"' in refusal(store.uri("log.parquet"))
    store.write_table("other.parquet", LOG)
    store.write("log.csv", store.read("other.parquet"))
    assert "Rename a Parquet file to .parquet" in refusal(store.uri("log.csv"))


def test_int96_timestamps_beyond_nanoseconds_do_not_wrap(tmp_path: Path) -> None:
    """Spark writes int96, which pyarrow reads as nanoseconds by default."""
    days = [datetime(2021, 3, 1, 12), datetime(9999, 12, 31)]
    table = LOG.set_column(2, "timestamp", pa.array(days, pa.timestamp("us")))
    path = tmp_path / "log.parquet"
    pq.write_table(table.slice(0, 1), path, use_deprecated_int96_timestamps=True)
    assert rows(Store.at(str(tmp_path)), "log.parquet") == [("u", "007", 1_614_600_000)]
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    assert "in the year 9999" in refusal(str(path), SchemaError)


def test_duplicate_column_is_refused_with_the_file(store: Store) -> None:
    twice = pa.Table.from_arrays([*LOG.columns, LOG["user_id"]], [*LOG.column_names, "user_id"])
    store.write_table("log.parquet", twice)
    store.write("log.csv", b"user_id,item_id,timestamp,user_id\nu,a,1,v\n")
    for name in ("log.parquet", "log.csv"):
        assert "has 2 columns named user_id" in refusal(store.uri(name), SchemaError)
    twice = twice.rename_columns(["other", "item_id", "timestamp", "other"])
    store.write_table("log.parquet", twice.append_column("user_id", LOG["user_id"]))
    assert rows(store, "log.parquet") == [("u", "007", 1), ("v", "b", 2)]  # not read


# ------------------------------------------------------------------------- CSV of other writers


HEADER, ROW = "user_id,item_id,timestamp\n", "é u,007,1\n"
FORMS: dict[str, bytes] = {
    "mark of UTF-8": ("\ufeff" + HEADER + ROW).encode(),
    "UTF-16": (HEADER + ROW).encode("utf-16"),
    "UTF-16 and tabs": (HEADER + ROW).replace(",", "\t").encode("utf-16"),
    "semicolons": (HEADER + ROW).replace(",", ";").encode(),
    "lines of old Macs": (HEADER + ROW).replace("\n", "\r").encode(),
    "blank lines first": ("\n\n" + HEADER + "\n" + ROW).encode(),
    "lines of Windows": (HEADER + ROW).replace("\n", "\r\n").encode(),
    "no newline at the end": (HEADER + ROW).strip().encode(),
    "quotes": b'"user_id","item_id","timestamp"\n"\xc3\xa9 u","007","1"\n',
    "spaces in the header": (" user_id, item_id, timestamp\n" + ROW).encode(),
    "newlines in another column": f'note,{HEADER}"a\nb, ""c""",{ROW}'.encode(),
    "another encoding in another column": b"note," + HEADER.encode() + b"\xe9," + ROW.encode(),
}


OWN = "order_no,customer_email,sku,ordered_at\n1,é u,007,1970-01-01 00:00:01\n"
OWN_FORMS = {  # of a table whose column names are not the declared ones
    "commas": (OWN, "CSV with commas, UTF-8"),
    "semicolons": (OWN.replace(",", ";"), "CSV with semicolons, UTF-8"),
    "tabs": (OWN.replace(",", "\t"), "CSV with tabs, UTF-8"),
    "pipes, with commas in a name": (
        OWN.replace(",", "|").replace("order_no", "order, no"), "CSV with pipes, UTF-8"
    ),
    "Excel's line": ("sep=;\r\n" + OWN.replace(",", ";"), "CSV with semicolons, UTF-8"),
    "Excel's line with a tab": ("sep=\t\r\n" + OWN.replace(",", "\t"), "CSV with tabs, UTF-8"),
    "Excel's line with blanks": (" sep=; \n" + OWN.replace(",", ";"), "CSV with semicolons, UTF-8"),
    "commas in values": (OWN.replace(",", ";").replace("1;", "1,5;"), "CSV with semicolons, UTF-8"),
    "mark of UTF-8": ("\ufeff" + OWN, "CSV with commas, UTF-8 with a byte order mark"),
}  # fmt: skip


@pytest.mark.parametrize("form", OWN_FORMS)
def test_delimiter_is_detected_without_known_names(tmp_path: Path, form: str) -> None:
    text, described = OWN_FORMS[form]
    (tmp_path / "log.tsv").write_text(text, newline="")
    table = log(str(tmp_path / "log.tsv"), **COLUMNS)
    assert [t.to_pylist() for t in read_batches(table, INTERACTIONS)] == [
        [{"user_id": "é u", "item_id": "007", "timestamp": 1}]
    ]
    assert describe_table(table, INTERACTIONS) == (
        f"{table.uri}: {described}; user_id is customer_email, item_id is sku, timestamp is "
        "ordered_at; timestamps: ISO 8601 without a time zone, read as UTC"
    )


@pytest.mark.parametrize("form", FORMS)
def test_csv_dialect_is_detected(store: Store, form: str) -> None:
    store.write("log.csv", FORMS[form])
    store.write("log.csv.gz", gzip.compress(FORMS[form]))
    store.write("log.csv.bz2", bz2.compress(FORMS[form]))
    store.write("LOG.CSV.GZ", gzip.compress(FORMS[form]))
    for name in ("log.csv", "log.csv.gz", "log.csv.bz2", "LOG.CSV.GZ"):
        assert rows(store, name) == [("é u", "007", 1)]


def test_other_encodings_are_refused(store: Store) -> None:
    store.write("log.csv", (HEADER + ROW).encode("latin-1"))
    message = refusal(store.uri("log.csv"))
    assert "looks like Windows-1252, since line 2 is not UTF-8; expected UTF-8" in message
    assert "with `iconv -f WINDOWS-1252 -t UTF-8 log.csv > utf8.csv`" in message
    store.write("log.csv.gz", gzip.compress((HEADER + ROW).encode("latin-1")))
    message = refusal(store.uri("log.csv.gz"))
    assert "Decompress and convert it with `iconv -f WINDOWS-1252 -t UTF-8 log.csv >" in message
    store.write("log.csv", (HEADER + ROW).encode("utf-16-le"))
    assert "expected CSV in UTF-8" in refusal(store.uri("log.csv"))
    store.write("log.csv.gz", gzip.compress((HEADER + ROW * 99).encode())[:60])
    refusal(store.uri("log.csv.gz"))


def test_csv_blanks_become_nulls_in_every_column(store: Store) -> None:
    text = "item_id,artist_id,category,available,stock,title\n" + "".join(
        f"{n},{blank},{blank},{blank},{blank},{blank}\n"
        for n, blank in enumerate(["", '""', '" "', " ", "NULL", "null", "\\N", "NA", "<NA>"])
    )
    store.write("items.csv", (text + ',,,,,\n , ,,,"",\n').encode())  # as Excel ends a sheet
    table = load_table(items(store.uri("items.csv")), ITEMS)
    assert table["item_id"].to_pylist() == list("012345678")
    assert {column.null_count for column in table.columns[1:]} == {9}
    store.write("items.csv", b'item_id,title\n"NULL","null"\n"NA","nan"\n')
    assert load_table(items(store.uri("items.csv")), ITEMS).to_pylist() == [
        {"item_id": "NULL", "title": "null"}, {"item_id": "NA", "title": "nan"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ('"user_id","item_id","timestamp"\n"u","i",1\nNA,"j",1\n', ["u", None]),  # R
        ("user_id,item_id,timestamp\nu,i,1\nNone,j,1\nNaN,j,1\n#N/A,j,1\n", ["u", *[None] * 3]),
    ],
)
def test_words_for_null_without_quotes_are_no_ids(
    tmp_path: Path, text: str, users: list[str | None]
) -> None:
    (tmp_path / "log.csv").write_text(text)
    assert load_table(log(str(tmp_path / "log.csv")), INTERACTIONS)["user_id"].to_pylist() == users


def test_ids_that_numpy_wrote_as_floats_are_refused_beside_nan(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEADER + "7.0,i,1\nnan,j,1\n")
    assert "found only ids such as '7.0'" in refusal(str(tmp_path / "log.csv"), SchemaError)


STRAY = {  # quotes at the start of a value, of writers that do not quote
    "never closed": (
        'u1,i1,1,"abc\nu2,i2,2,def\nu3,i3,3,ghi\n',
        "the row that begins in line 2 has a quote that does not close",
    ),
    "closed within a value": (
        'u0,i0,0,\nu1,i1,1,"Big poster\nu2,i2,2,def\nu3,i3,3,Small" y\n',
        "the quote in line 3 closes in line 5, before ' y'",
    ),
    "closed at the end of a value": (
        'u1,i1,1,"Big poster\nu2,i2,2,def\nu3,i3,3,Poster 24"\n',
        "the quote in line 2 closes in line 4, and each of these lines is like a row",
    ),
    "in an id": ('u0,i0,0,\n"u1,i1,1,a\nu2",i2,2,b\n', "each of these lines is like a row"),
}


@pytest.mark.parametrize("how", STRAY)
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_stray_quote_loses_no_rows(tmp_path: Path, how: str, delimiter: str, encoding: str) -> None:
    text, message = STRAY[how]
    text = f"user_id,item_id,timestamp,note\n{text}".replace(",", delimiter)
    (tmp_path / "log.csv").write_text(text, encoding=encoding, newline="")
    assert message in refusal(str(tmp_path / "log.csv"))


def test_stray_quote_is_found_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "_BLOCK_BYTES", 16)
    monkeypatch.setattr(csv_files, "_MAX_ROW_BYTES", 64)
    lines = [f"u{n},i,1,x\n" for n in range(100)]
    lines[60] = 'u,i,1,"x\n'
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,note\n" + "".join(lines))
    message = "the row that begins in line 62 is longer than 0 MiB, or has a quote that does not"
    assert message in refusal(str(tmp_path / "log.csv"))


def test_stray_quote_of_a_piece_is_found_by_the_byte_of_the_piece(tmp_path: Path) -> None:
    text = 'user_id,item_id,timestamp,note\nu1,i1,1,abc\nu2,i2,2,def\nu3,i3,3,"ghi\n'
    (tmp_path / "log.csv").write_text(text)
    [file] = list_table_files(log(str(tmp_path / "log.csv")))
    message = r"begins in line 2 has a quote that does not close \(lines counted from byte 43\); ex"
    with pytest.raises(InputError, match=message):
        list(csv_files.read_csv_lines(file, INTERACTIONS, (text.index("u2"), len(text))))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_descriptions_of_several_lines_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, block_bytes: int
) -> None:
    monkeypatch.setattr(csv_files, "_BLOCK_BYTES", block_bytes)
    titles = [
        'A ""big"" poster,{e}soft, warm{e}{e}- 24"" high',
        "One{e}two, three",
        "S,M{e}L,XL",
        "",
    ]
    text = "item_id,title{e}" + "".join(f'"{n}","{title}"{{e}}' for n, title in enumerate(titles))
    (tmp_path / "items.csv").write_text(text.replace("{e}", end), newline="")
    table = load_table(items(str(tmp_path / "items.csv")), ITEMS)
    expected = [title.replace("{e}", end).replace('""', '"') or None for title in titles]
    assert table.to_pydict() == {"item_id": list("0123"), "title": expected}


def test_patterns_read_only_lines_that_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    really = csv_files._RowBlocks._read_rows

    def recorded(
        blocks: csv_files._RowBlocks, text: bytes, start: int, stop: int
    ) -> tuple[int, bool]:
        read.append(text[start:stop])
        return really(blocks, text, start, stop)

    monkeypatch.setattr(csv_files._RowBlocks, "_read_rows", recorded)
    monkeypatch.setattr(csv_files, "_CHECKED_BYTES", 30)
    lines = ['0,"One, two",', '1,"24"" high",', '2,"""Three""",', '"3","",', '4,"Four" five,x']
    titles = ["One, two", '24" high', '"Three"', None, "Four five"]
    text = "\n".join(["item_id,title,note", *lines])
    (tmp_path / "items.csv").write_text(text)
    assert load_table(items(str(tmp_path / "items.csv")), ITEMS)["title"].to_pylist() == titles
    assert not any(read)
    # Each of these lines has an even number of quotes, but the line end is within a value.
    two_lines = '24" high,"a\nb",24" high'
    (tmp_path / "items.csv").write_text(text.replace(lines[2], two_lines))
    titles[2] = "a\nb"
    assert load_table(items(str(tmp_path / "items.csv")), ITEMS)["title"].to_pylist() == titles
    assert two_lines.encode() in b"".join(read)


def test_header_of_any_length_is_read(tmp_path: Path) -> None:
    names = [f"column_{n}" for n in range(10_000)]
    text = f"{','.join(names)},user_id,item_id,timestamp\n{'1,' * 10_000}u,i,5\n"
    assert text.index("\n") > 1 << 16
    (tmp_path / "log.csv").write_text(text)
    assert rows(Store.at(str(tmp_path)), "log.csv") == [("u", "i", 5)]


def test_quoted_name_may_have_line_ends(store: Store) -> None:
    text = 'user_id,item_id,timestamp,"note\n(a, ""b"")"\nu,i,5,abc\n'
    store.write("log.csv", text.encode())
    assert rows(store, "log.csv") == [("u", "i", 5)]
    store.write("log.csv", b'sep=,\nuser_id,item_id,timestamp,"note\nu,i,5,abc\n')
    assert "quote that does not close" in refusal(store.uri("log.csv"))


def test_csv_types_do_not_depend_on_the_first_rows(tmp_path: Path) -> None:
    """60,000 rows exceed the first megabyte, from which pyarrow infers types."""
    many = 60_000
    text = "user_id,item_id,timestamp,evaluation,rating\n"
    text += "somebody-or-other,something,2023-11-14 22:13:20,,\n" * many
    for stamp, flag in (("2023-11-14 22:13:20.123", "true"), ("1700000000", "1")):
        text += f"u,i,{stamp},{flag},4.5\n"
    (tmp_path / "log.csv").write_text(text)
    table = load_table(log(str(tmp_path / "log.csv")), INTERACTIONS)
    assert len(table) == many + 2
    assert set(table["timestamp"].to_pylist()) == {1_700_000_000}
    assert table["evaluation"].to_pylist()[-3:] == [None, True, True]
    assert table["rating"].to_pylist()[-3:] == [None, 4.5, 4.5]


def test_unit_of_timestamps_must_not_change_within_a_file(tmp_path: Path) -> None:
    many = 400_000
    lines = [f"u,i,{second}\n" for second in range(1_600_000_000, 1_600_000_000 + many)]
    text = HEADER + "".join(lines) + "u,i,1700000000000\n" * many
    (tmp_path / "log.csv").write_text(text)
    message = refusal(str(tmp_path / "log.csv"), SchemaError)
    assert "seconds" in message
    assert "milliseconds" in message


def test_file_of_another_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "orders.xlsx").write_bytes(b"PK\x03\x04")
    assert "does not have the name of a table; expected a .parquet, .csv" in refusal(
        str(tmp_path / "orders.xlsx")
    )
