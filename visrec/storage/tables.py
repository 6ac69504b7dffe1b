"""Tables in: one Parquet or CSV file, or a directory of them, as record batches.

A directory is read as Spark reads it: names that begin with `_` or `.` are no data, and folders
named `column=value` are a column. What is a table by its own log (Delta, Iceberg, Hudi) is refused,
for some of its files may be removed or replaced by the log.
"""

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from visrec.errors import InputError, SchemaError
from visrec.ids import TEXT
from visrec.paths import printable
from visrec.storage.s3_clients import translated
from visrec.storage.schemas import Column, cast, check, require_values
from visrec.storage.store import Store, file_at

_TABLE = re.compile(r"\.(parquet|csv(\.(gz|bz2|zst|lz4))?)$", re.IGNORECASE)
_BATCH_ROWS = 1 << 18  # about 20 MB of ids and times
_READ_BYTES = 8 << 20  # at once of a row group's column, which may be the whole table's
_BLOCK_BYTES = 4 << 20  # of a CSV at once; no row may be longer
_LINE_END = re.compile(r"\r\n|\r|\n")
_HEAD_BYTES = 1 << 16  # in which a CSV's header ends
_NULLS = ["", "NULL", "null", "\\N"]  # as SQL clients and Hive write it, without quotes
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Where the log of a table format lies, and how its rows become plain Parquet.
_LOGS = {
    "a Delta": (re.compile(r"(^|/)_delta_log/"), "DuckDB's delta_scan or Spark"),
    "an Iceberg": (
        re.compile(r"(^|/)metadata/[^/]*\.metadata\.json"),
        "DuckDB's iceberg_scan or Spark",
    ),
}
_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}
_LOG_FOLDERS = ("_delta_log/", "metadata/")
_HUDI = ".hoodie/hoodie.properties"


@dataclass(frozen=True)
class TableFile:
    """One file of a table.

    Args:
        store: where it lies.
        name: its name there.
        where: its place and the key that named it, for errors.
        folders: the columns that its folders' names give.
    """

    store: Store
    name: str
    where: str
    folders: Mapping[str, str | None]


def table_files(uri: str, key: str) -> tuple[Store, list[str]]:
    """The files that a path names: itself, or the Parquet and CSV files below it.

    Raises:
        InputError: nothing is there, or it is a table by a log of its own.
    """
    if _TABLE.search(uri):
        store, name = file_at(uri)
        if store.exists(name):
            return store, [name]
    store = Store.at(uri)  # which may end in .parquet too: Spark writes such directories
    every = [entry.name for entry in store.list(follow_links=True)]
    _refuse_logs(store, every, key)
    for above in _above(store):
        _refuse_logs(above, _log_files(above), key)
    names = [name for name in every if _TABLE.search(name) and not _hidden(name)]
    if not names:
        others = f", only {', '.join(sorted(every)[:3])}" if every else ""
        raise InputError(
            f"Found no table at {uri}{others}; expected a .parquet or .csv file (.csv.gz, .bz2, "
            f".zst, .lz4), or a directory of them. Change --{key}."
        )
    for name in names:
        if printable(name) != name:
            raise InputError(
                f"The name of {printable(store.uri(name))} (--{key}) is not UTF-8; expected one "
                "that is. Rename it."
            )
    return store, sorted(names)


def _above(store: Store) -> Iterator[Store]:
    """The folders of which this one may be a part: `category=shirt`, or Iceberg's `data`."""
    while ("=" in store.name or store.name == "data") and "/" in store.path.strip("/"):
        store, _ = file_at(store.root)
        yield store


def _log_files(store: Store) -> Iterator[str]:
    for folder in _LOG_FOLDERS:
        yield from (entry.name for entry in store.list(folder))


def _hidden(name: str) -> bool:
    """Whether a writer keeps the file for itself; a folder `_column=value` is data."""
    return any(
        part.startswith(".") or (part.startswith("_") and "=" not in part)
        for part in name.split("/")
    )


def _refuse_logs(store: Store, names: Iterable[str], key: str) -> None:
    found = next(
        ((kind, how) for name in names for kind, (log, how) in _LOGS.items() if log.search(name)),
        ("a Hudi", "Spark") if store.exists(_HUDI) else None,
    )
    if found:
        raise InputError(
            f"{store.root} (--{key}) is {found[0]} table: its log says which files count; "
            f"expected plain Parquet or CSV. Write its rows out with {found[1]}, and name those "
            "files instead."
        )


def _folders(name: str) -> dict[str, str | None]:
    """The columns of the folders `column=value` above a file."""
    pairs = (part.partition("=") for part in name.split("/")[:-1] if "=" in part)
    decoded = ((unquote(column), unquote(value)) for column, _, value in pairs)
    return {column: None if value == _HIVE_NULL else value for column, value in decoded}


def files_of(uri: str, key: str) -> Iterator[TableFile]:
    """The files of a table, in order of their names.

    Raises:
        InputError: as `table_files`.
    """
    store, names = table_files(uri, key)
    for name in names:
        yield TableFile(store, name, f"{store.uri(name)} (--{key})", _folders(name))


def read_batches(uri: str, columns: Sequence[Column], key: str) -> Iterator[pa.Table]:
    """A table a batch at a time, declared columns only, cast as declared.

    Args:
        uri: a file or a directory.
        columns: the declared columns.
        key: the configuration key that named it, for errors.

    Raises:
        InputError: nothing is there, or a file cannot be read.
        SchemaError: a required column is missing or has another type.
    """
    for file in files_of(uri, key):
        yield from read_file(file, columns)


def read_file(file: TableFile, columns: Sequence[Column]) -> Iterator[pa.Table]:
    """One file of a table, as `read_batches`; rows without any value are left out."""
    whole = any(column.nullable for column in columns)  # whose reader counts them
    with translated("read", file.store.uri(file.name)), table_errors(file.where):
        for batch in _raw_batches(file, columns):
            table = cast(batch, columns, file.where)
            table = table if whole else _without_blank_rows(table)
            require_values(table, columns, file.where)
            yield table


def _without_blank_rows(table: pa.Table) -> pa.Table:
    """Spreadsheets end in rows of commas alone."""
    if not len(table) or not all(column.null_count for column in table.columns):
        return table
    some = table.columns[0].is_valid()
    for column in table.columns[1:]:
        some = pc.or_(some, column.is_valid())
    return table.filter(some)


@contextmanager
def table_errors(where: str) -> Iterator[None]:
    """Tells a file that is no table, or a damaged one, from a store that fails.

    Args:
        where: the file and the key that named it.

    Raises:
        InputError: the file's bytes are not what they should be.
    """
    try:
        yield
    except (pa.ArrowInvalid, OSError, EOFError, UnicodeError) as error:
        # Of damaged Parquet pyarrow says OSError without a number; a disk's has one, S3's a name.
        numbered = isinstance(error, OSError) and error.errno is not None
        if numbered or "AWS Error" in str(error):
            raise
        text = " ".join(str(error).split()).rstrip(".")
        if "UTF8" in text:
            text += "; expected UTF-8 (in Excel: CSV UTF-8), or UTF-16 that begins with its mark"
        raise InputError(f"{where} cannot be read as a table: {text}.") from error


def _raw_batches(file: TableFile, columns: Sequence[Column]) -> Iterator[pa.Table]:
    """The declared columns that a file and its folders have, as they are stored."""
    read = _read_parquet if file.name.lower().endswith(".parquet") else _read_csv
    for batch in read(file, columns):
        taken = {name: batch.column(name) for name in batch.schema.names}
        for name, value in file.folders.items():
            taken[name] = pa.repeat(pa.scalar(value, TEXT), batch.num_rows)
        yield pa.table({c.name: taken[c.name] for c in columns if c.name in taken})


def _present(file: TableFile, schema: pa.Schema, columns: Sequence[Column]) -> list[str]:
    """The declared columns that the file itself is read for: folders come before it."""
    own = [field for field in schema if field.name not in file.folders]
    check(pa.schema([*own, *((name, TEXT) for name in file.folders)]), columns, file.where)
    names = {field.name for field in own}
    return [column.name for column in columns if column.name in names]


def _read_parquet(file: TableFile, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    path = f"{file.store.path}/{file.name}"
    with (
        file.store.filesystem().open_input_file(path) as source,
        opened_parquet(source, file.where) as found,
    ):
        present = _present(file, found.schema_arrow, columns)
        yield from found.iter_batches(_BATCH_ROWS, columns=present)


def opened_parquet(source: pa.NativeFile, where: str) -> pq.ParquetFile:
    """A Parquet file that is read by pieces.

    Raises:
        InputError: it only has the name of one.
    """
    head = source.read(24)
    if not head.startswith(b"PAR"):
        raise InputError(
            f"{where} cannot be read as a table: it begins with {head!r}; expected Parquet, which "
            "begins with b'PAR1'. Name a CSV .csv."
        )
    source.seek(0)
    return pq.ParquetFile(
        source,
        # A column of a row group is fetched whole unless it is said twice not to.
        pre_buffer=False,
        buffer_size=_READ_BYTES,
        # Of the years 1 to 9999, in which Spark writes int96, nanoseconds hold only some.
        coerce_int96_timestamp_unit="us",
    )


def _read_csv(file: TableFile, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    """The columns of a CSV, all as text: what they hold is not guessed from the first rows."""
    with _csv_stream(file) as stream:
        head = stream.read(_HEAD_BYTES)
    encoding = _encoding(head, file.where)
    lines = _LINE_END.split(head.decode(encoding, "replace").lstrip("\ufeff"))
    before = next((number for number, line in enumerate(lines) if line.strip()), 0)  # blank lines
    names, delimiter = _header(lines[before], columns)
    fields = pa.schema([(name, TEXT) for name in names])
    present = _present(file, fields, columns)
    if before == len(lines) - 1 and len(head) < _HEAD_BYTES:
        return  # a header alone
    options = pacsv.ConvertOptions(
        column_types=dict.fromkeys(present, TEXT),
        include_columns=present,
        strings_can_be_null=True,
        null_values=_NULLS,
        quoted_strings_can_be_null=False,
    )
    with (
        _csv_stream(file) as stream,
        pacsv.open_csv(
            stream,
            pacsv.ReadOptions(
                encoding=encoding, column_names=names, skip_rows=before + 1, block_size=_BLOCK_BYTES
            ),
            pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            options,
        ) as batches,
    ):
        yield from batches


def _csv_stream(file: TableFile) -> pa.NativeFile:
    """A CSV's bytes, unpacked by the ending, which pyarrow itself knows in lower case alone."""
    packed = _CODECS.get(file.name.rpartition(".")[2].lower())
    path = f"{file.store.path}/{file.name}"
    return file.store.filesystem().open_input_stream(path, compression=packed)


def _encoding(head: bytes, where: str) -> str:
    """A CSV's encoding by its first bytes.

    Raises:
        InputError: the file is empty, or no text.
    """
    if not head:
        raise InputError(f"{where} is empty; expected a header at least.")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in head or head.startswith((b"PAR1", b"\x1f\x8b", b"PK\x03\x04")):
        raise InputError(
            f"{where} cannot be read as a table: it begins with {head[:24]!r}, which is no text; "
            "expected CSV in UTF-8. Name Parquet .parquet, and a compressed CSV .csv.gz."
        )
    return "utf8"


def _header(line: str, columns: Sequence[Column]) -> tuple[list[str], str]:
    """A CSV's columns, and what stands between them: what makes most of the declared ones."""
    declared = {column.name for column in columns}
    found = {}
    for delimiter in ",;\t|":
        fields = next(csv.reader([line], delimiter=delimiter), [])
        found[delimiter] = [field.strip() for field in fields]
    best = max(found, key=lambda each: len(declared & set(found[each])))
    return found[best], best


def read_whole(uri: str, columns: Sequence[Column], key: str) -> pa.Table:
    """The same as one table, for tables that a worker holds whole (items, users).

    Raises:
        InputError: as `read_batches`, or there is no row.
        SchemaError: the files have different columns.
    """
    tables: list[pa.Table] = []
    for file in files_of(uri, key):
        for table in read_file(file, columns):
            if tables and table.schema != tables[0].schema:
                raise SchemaError(
                    f"The files of {uri} (--{key}) have different columns: "
                    f"{', '.join(tables[0].column_names)} at first, and "
                    f"{', '.join(table.column_names)} in {file.name}; expected the same in all."
                )
            tables.append(table)
    if not any(map(len, tables)):
        raise InputError(f"{uri} (--{key}) has no rows; expected at least one.")
    return pa.concat_tables(tables)


def require_unchanged(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuses inputs that were replaced or written to while they were read.

    Args:
        before: digests by the inputs' names, from before anything was read.
        after: the same, from after all was read.

    Raises:
        InputError: they differ, so that nothing says what was read.
    """
    changed = sorted(name for name, found in before.items() if after.get(name) != found)
    if changed:
        raise InputError(
            f"The inputs changed while they were read: {', '.join(changed)}. Run the job again "
            "once nobody writes them, so that what is recorded is what was read."
        )


def digest_files(uri: str, key: str) -> str:
    """16 hexadecimal digits that change with any byte of the files, wherever they lie."""
    store, names = table_files(uri, key)
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda name: _digest_file(store, name), names)
        whole = hashlib.sha256("".join(parts).encode())
    return whole.hexdigest()[:16]


def _digest_file(store: Store, name: str) -> str:
    path = f"{store.path}/{name}"
    with (
        translated("read", store.uri(name)),
        store.filesystem().open_input_stream(path, compression=None) as stream,
    ):
        seen = hashlib.sha256()
        while block := stream.read(1 << 22):
            seen.update(block)
        return seen.hexdigest()
