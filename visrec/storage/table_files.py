"""Files of input tables: found below a location, opened, and refused by name.

A directory is searched as Spark searches it: names that start with `_` or `.` are ignored, and
folders named `column=value` are a column. Tables of formats with a log of their own (Delta,
Iceberg, Hudi) are refused, because the log may have removed or replaced some of the files.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa

from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.paths import escape_non_utf8
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import Column
from visrec.storage.store import Store, file_at

Format = Literal["parquet", "csv", "jsonl"]
_TABLE_NAME = re.compile(
    r"\.((?P<binary>parquet)|(?P<text>csv|tsv|jsonl|ndjson)(\.(?P<codec>gz|bz2|zst|lz4))?)$",
    re.IGNORECASE,
)
_FORMATS: dict[str, Format] = {"parquet": "parquet", "jsonl": "jsonl", "ndjson": "jsonl"}
_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}  # pyarrow's names
EXPECTED_FILES = (
    ".parquet, .csv, .tsv or .jsonl file (the last three also .gz, .bz2, .zst, .lz4), or a "
    "directory of them"
)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Table formats by the files of their logs, and tools that write their rows as plain Parquet.
_TABLE_FORMATS = {
    "a Delta": (re.compile(r"(^|/)_delta_log/"), "DuckDB's delta_scan or Spark"),
    "an Iceberg": (
        re.compile(r"(^|/)metadata/[^/]*\.metadata\.json"),
        "DuckDB's iceberg_scan or Spark",
    ),
}
_LOG_FOLDERS = ("_delta_log/", "metadata/")
_HUDI_LOG = ".hoodie/hoodie.properties"


@contextmanager
def table_errors(where: str) -> Iterator[None]:
    """Turns errors of a damaged file into an `InputError`; errors of the store pass through.

    Args:
        where: location of the file and the key that names it.

    Raises:
        InputError: the file is damaged or not a table.
    """
    try:
        yield
    except (pa.ArrowInvalid, OSError, EOFError, UnicodeError) as error:
        # For damaged Parquet pyarrow raises an OSError without errno. The errors of a disk have
        # one, and those of S3 name AWS.
        has_errno = isinstance(error, OSError) and error.errno is not None
        if has_errno or "AWS Error" in str(error):
            raise
        text = " ".join(str(error).split()).rstrip(".")
        if "UTF8" in text:
            text += "; expected UTF-8 (in Excel: CSV UTF-8), or UTF-16 with a byte order mark"
        raise InputError(f"{where} cannot be read as a table: {text}.") from error


@dataclass(frozen=True)
class TableFile:
    """One file of a table.

    Attributes:
        table: the table that it belongs to.
        store: contains the file.
        name: the name of the file in the store.
        partition_values: values of the columns that the folders above it name.
    """

    table: InputTable
    store: Store
    name: str
    partition_values: Mapping[str, str | None]

    @property
    def where(self) -> str:
        """Its location and the key that names it, for errors."""
        return f"{self.store.uri(self.name)} (--{self.table.key})"

    @property
    def format(self) -> Format:
        """The format by the name; TSV is CSV, whose delimiter is detected."""
        match = _TABLE_NAME.search(self.name)
        extension = (match["binary"] or match["text"]).lower() if match else ""
        return _FORMATS.get(extension, "csv")

    @property
    def codec(self) -> str | None:
        """pyarrow's name of the compression; None without one, and for Parquet."""
        return codec_of(self.name)

    @contextmanager
    def open_input(self) -> Iterator[pa.NativeFile]:
        """The file, to read at any offset.

        Raises:
            InputError: the file is damaged.
            StorageError: the store refuses.
        """
        with self.store.open_input(self.name) as source, table_errors(self.where):
            yield source

    @contextmanager
    def open_input_stream(self) -> Iterator[pa.NativeFile]:
        """The file, decompressed, to read from start to end; raises as `open_input`."""
        stream = self.store.open_input_stream(self.name, self.codec)
        with stream as source, table_errors(self.where):
            yield source

    def select_columns(self, schema: pa.Schema, columns: Sequence[Column]) -> list[str]:
        """The names, in the file, of the columns to read from it; a partition value replaces its
        column.

        Args:
            schema: the file's schema.
            columns: the declared columns.

        Raises:
            SchemaError: as `InputTable.check_columns`.
        """
        fields = [field for field in schema if field.name not in self.partition_values]
        partitions = ((name, TEXT) for name in self.partition_values)
        self.table.check_columns(pa.schema([*fields, *partitions]), columns, self.where)
        names = {field.name for field in fields}
        stored = dict.fromkeys(self.table.stored_name(column.name) for column in columns)
        return [name for name in stored if name in names]


def codec_of(name: str) -> str | None:
    """pyarrow's name of the compression that a file's name shows; None without one."""
    return _CODECS.get(name.rpartition(".")[2].lower())


def is_table_name(uri: str) -> bool:
    """Whether a location's suffix says that it is a table."""
    return _TABLE_NAME.search(uri) is not None


def find_table_files(uri: str, key: str) -> tuple[Store, list[str]]:
    """The files at a location: the file itself, or the files of tables below it.

    Returns:
        Their store and their names, sorted.

    Raises:
        InputError: there are none, or they belong to a Delta, Iceberg or Hudi table.
    """
    if is_table_name(uri):
        store, name = file_at(uri)
        if store.exists(name):
            return store, [name]
    store = Store.at(uri)  # a directory may end in .parquet too: Spark writes such directories
    all_names = [info.name for info in store.list(follow_links=True)]
    _refuse_table_formats(store, all_names, key)
    for ancestor in _ancestors(store):
        _refuse_table_formats(ancestor, _log_files(ancestor), key)
    names = [name for name in all_names if is_table_name(name) and not _is_ignored(name)]
    if not names:
        raise _no_table(store, uri, all_names, key)
    for name in names:
        if escape_non_utf8(name) != name:
            path = escape_non_utf8(store.uri(name))
            raise InputError(
                f"The name of {path} (--{key}) is not UTF-8; expected a UTF-8 name. Rename it.",
                path=path,
                key=key,
            )
    return store, sorted(names)


def _no_table(store: Store, uri: str, others: Sequence[str], key: str) -> InputError:
    above = store.parent
    if above is not None and above.exists(store.name):
        return InputError(
            f"{uri} (--{key}) does not have the name of a table; expected a {EXPECTED_FILES}. "
            "Rename it if its content is one of these, or convert it: a spreadsheet is saved as "
            "CSV (UTF-8).",
            path=uri,
            key=key,
        )
    found = f", only {', '.join(sorted(others)[:3])}" if others else ""
    return InputError(
        f"Found no table at {uri}{found}; expected a {EXPECTED_FILES}. Change --{key}.",
        path=uri,
        key=key,
    )


def list_table_files(table: InputTable) -> Iterator[TableFile]:
    """The files of a table, sorted by name.

    Raises:
        InputError: as `find_table_files`.
    """
    store, names = find_table_files(table.uri, table.key)
    for name in names:
        yield TableFile(table, store, name, _partition_values(name))


MISSING = "missing"  # in place of a fingerprint


def file_fingerprints(files: Sequence[TableFile]) -> dict[str, str]:
    """What changes with the content of each file of a table, by name, without reading any.

    `MISSING` for a file that is gone, or hidden.
    """
    names = {file.name for file in files}
    prefix = files[0].name if len(files) == 1 else ""
    listed = files[0].store.list(prefix, follow_links=True)
    found = {info.name: info.fingerprint for info in listed if info.name in names}
    return {file.name: found.get(file.name, MISSING) for file in files}


def _partition_values(name: str) -> dict[str, str | None]:
    """The values of the folders `column=value` above a file."""
    pairs = (part.partition("=") for part in partition_path(name).split("/")[:-1])
    decoded = ((unquote(column), unquote(value)) for column, _, value in pairs)
    return {column: None if value == _HIVE_NULL else value for column, value in decoded}


def partition_path(name: str) -> str:
    """The folders `column=value` above a file, each with a slash; empty if there are none."""
    return "".join(f"{part}/" for part in name.split("/")[:-1] if "=" in part)


def _ancestors(store: Store) -> Iterator[Store]:
    """The folders whose table may contain this folder, such as `category=shirt` or Iceberg's
    `data`."""
    parent = store.parent
    while parent is not None and ("=" in store.name or store.name == "data"):
        yield parent
        store, parent = parent, parent.parent


def _log_files(store: Store) -> Iterator[str]:
    for folder in _LOG_FOLDERS:
        yield from (info.name for info in store.list(folder))


def _is_ignored(name: str) -> bool:
    """Whether a writer keeps the file for itself; a folder named `_column=value` contains data."""
    return any(
        part.startswith(".") or (part.startswith("_") and "=" not in part)
        for part in name.split("/")
    )


def _refuse_table_formats(store: Store, names: Iterable[str], key: str) -> None:
    formats = _TABLE_FORMATS.items()
    found = next(
        ((name, tool) for file in names for name, (log, tool) in formats if log.search(file)),
        ("a Hudi", "Spark") if store.exists(_HUDI_LOG) else None,
    )
    if found:
        raise InputError(
            f"{store.root} (--{key}) is {found[0]} table: its log says which files count; "
            f"expected plain Parquet or CSV. Export its rows with {found[1]}, and pass those files "
            "instead.",
            path=store.root,
            key=key,
        )
