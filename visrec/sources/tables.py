"""Tables in: one Parquet or CSV file, or a directory of them, as record batches."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads

from visrec.errors import InputError, SchemaError
from visrec.schemas import Column, check, conform
from visrec.storage import Store, translated

_SUFFIXES = (".parquet", ".csv")
_BATCH_ROWS = 1 << 18  # about 20 MB of ids and times


def table_files(uri: str, key: str) -> tuple[Store, list[str]]:
    """The files that a path names: itself, or the Parquet and CSV files below it.

    Raises:
        InputError: nothing is there.
    """
    if uri.endswith(_SUFFIXES):
        folder, _, name = uri.rpartition("/")
        store, names = Store.at(folder or "."), [name]
        if not store.exists(name):
            raise InputError(
                f"Found no file at {uri}; expected a Parquet or CSV file. Change --{key}."
            )
        return store, names
    store = Store.at(uri)
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
        with translated("read", store.uri(name)):
            try:
                yield from _read_file(store, name, columns, where)
            except pa.ArrowInvalid as error:
                raise InputError(f"{where} cannot be read as a table: {error}") from error


def _read_file(
    store: Store, name: str, columns: Sequence[Column], where: str
) -> Iterator[pa.Table]:
    # Ids are text even where they look like numbers: "007" must come back as "007".
    text = {column.name: pa.string() for column in columns if column.to == pa.string()}
    form: pads.FileFormat = (
        pads.CsvFileFormat(convert_options=pacsv.ConvertOptions(column_types=text))
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
    if not batches:
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
