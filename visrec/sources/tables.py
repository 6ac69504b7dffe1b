"""Tables in: one Parquet or CSV file, or a directory of them, as record batches."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads

from visrec.clients import translated
from visrec.errors import InputError, SchemaError
from visrec.schemas import Column, check, conform
from visrec.storage import Store, file_at

_SUFFIXES = (".parquet", ".csv")
_BATCH_ROWS = 1 << 18  # about 20 MB of ids and times


def table_files(uri: str, key: str) -> tuple[Store, list[str]]:
    """The files that a path names: itself, or the Parquet and CSV files below it.

    Raises:
        InputError: nothing is there.
    """
    if uri.endswith(_SUFFIXES):
        store, name = file_at(uri)
        if store.exists(name):
            return store, [name]
    store = Store.at(uri)  # which may end in .parquet too: Spark writes such directories
    names = [entry.name for entry in store.list() if entry.name.endswith(_SUFFIXES)]
    if not names:
        raise InputError(
            f"Found no table at {uri}; expected a .parquet or .csv file, or a directory of them. "
            f"Change --{key}."
        )
    return store, sorted(names)


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
    store, names = table_files(uri, key)
    for name in names:
        where = f"{store.uri(name)} (--{key})"
        with translated("read", store.uri(name)), table_errors(where):
            yield from _read_file(store, name, columns, where)


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
    except (pa.ArrowInvalid, OSError) as error:
        # Of damaged Parquet pyarrow says OSError without a number; a disk's has one, S3's a name.
        numbered = isinstance(error, OSError) and error.errno is not None
        if numbered or "AWS Error" in str(error):
            raise
        text = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{where} cannot be read as a table: {text}.") from error


def _read_file(
    store: Store, name: str, columns: Sequence[Column], where: str
) -> Iterator[pa.Table]:
    # Ids are text even where they look like numbers: "007" must come back as "007". Numbers may get
    # their first fraction after the first megabyte, by which the types are guessed.
    known = {c.name: c.to for c in columns if c.to in (pa.string(), pa.float64())}
    form: pads.FileFormat = (
        pads.CsvFileFormat(convert_options=pacsv.ConvertOptions(column_types=known))
        if name.endswith(".csv")
        else pads.ParquetFileFormat()
    )
    file = pads.dataset(f"{store.path}/{name}", format=form, filesystem=store.filesystem())
    check(file.schema, columns, where)
    present = [column.name for column in columns if column.name in file.schema.names]
    for batch in file.to_batches(columns=present, batch_size=_BATCH_ROWS):
        yield conform(pa.Table.from_batches([batch]), columns, where)


def read_whole(uri: str, columns: Sequence[Column], key: str) -> pa.Table:
    """The same as one table, for tables that a worker holds whole (items, users)."""
    batches = list(read_batches(uri, columns, key))
    if not any(map(len, batches)):
        raise InputError(f"{uri} (--{key}) has no rows; expected at least one.")
    try:
        return pa.concat_tables(batches)
    except pa.ArrowInvalid as error:
        raise SchemaError(
            f"The files of {uri} (--{key}) have different columns: {error}"
        ) from error


def digest_files(uri: str, key: str) -> str:
    """16 hexadecimal digits that change with any byte of the files, wherever they lie."""
    store, names = table_files(uri, key)
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda name: _digest_file(store, name), names)
        whole = hashlib.sha256("".join(parts).encode())
    return whole.hexdigest()[:16]


def _digest_file(store: Store, name: str) -> str:
    with (
        translated("read", store.uri(name)),
        store.filesystem().open_input_stream(f"{store.path}/{name}") as stream,
    ):
        seen = hashlib.sha256()
        while block := stream.read(1 << 22):
            seen.update(block)
        return seen.hexdigest()
