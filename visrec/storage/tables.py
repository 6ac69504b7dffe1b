"""Input tables of any format: read as batches with declared columns, or loaded whole."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.errors import InputError, SchemaError
from visrec.ids import TEXT
from visrec.storage.arrow_values import decoded
from visrec.storage.column_types import TIMESTAMP
from visrec.storage.csv_files import detect_dialect, read_csv
from visrec.storage.input_table import InputTable
from visrec.storage.json_files import json_names, read_json_lines
from visrec.storage.schemas import Column, cast_columns, require_no_nulls
from visrec.storage.store import Store
from visrec.storage.table_files import (
    TableFile,
    find_table_files,
    list_table_files,
    partition_path,
    table_errors,
)
from visrec.storage.timestamps import UNIT_NAMES, epoch_unit

_BATCH_ROWS = 1 << 18  # about 20 MB of ids and timestamps
_READ_BYTES = 8 << 20  # of one column at a time; one row group may be the whole table
_HASHED_BYTES = 1 << 22  # at a time


def read_batches(table: InputTable, columns: Sequence[Column]) -> Iterator[pa.Table]:
    """A table in batches, with the declared columns cast to their declared types.

    Raises:
        InputError: there is no table, or a file cannot be read.
        SchemaError: a required column is missing or has another type.
    """
    for file in list_table_files(table):
        yield from read_table_file(file, columns)


def read_table_file(file: TableFile, columns: Sequence[Column]) -> Iterator[pa.Table]:
    """One file of a table, like `read_batches`; rows without any value are dropped."""
    with table_errors(file.where):
        for table, _ in conform_batches(file, stored_batches(file, columns), columns):
            yield table


def conform_batches(
    file: TableFile, batches: Iterable[pa.Table], columns: Sequence[Column]
) -> Iterator[tuple[pa.Table, str | None]]:
    """Checks and casts batches of a file.

    Yields:
        A batch, and the unit of the file's timestamps so far.

    Raises:
        SchemaError: a value is invalid, or timestamps have several units.
    """
    keeps_blank_rows = any(column.nullable for column in columns)  # their reader counts them
    unit: str | None = None
    for batch in batches:
        table = cast_columns(batch, columns, file.where)
        unit = _require_same_unit(batch, columns, unit, file.where)
        table = table if keeps_blank_rows else _drop_blank_rows(table)
        require_no_nulls(table, columns, file.where)
        yield table, unit


def column_names(table: InputTable) -> list[str]:
    """The columns of a table's first file, under their names there, and those of its folders.

    Raises:
        InputError: there is no table, or the file cannot be read.
    """
    file = next(list_table_files(table))
    if file.format == "csv":
        names = list(detect_dialect(file, ()).names)
    elif file.format == "jsonl":
        names = json_names(file)
    else:
        with file.open_input() as source, open_parquet(source, file.where) as parquet:
            names = parquet.schema_arrow.names
    return [*names, *(name for name in file.partition_values if name not in names)]


def _require_same_unit(
    batch: pa.Table, columns: Sequence[Column], unit: str | None, where: str
) -> str | None:
    """Refuses a file whose timestamps change their unit.

    Args:
        batch: rows with their stored types.
        columns: the declared columns.
        unit: the unit of the batches before, None if they have none.
        where: the file and the key that names its table, for the error.

    Returns:
        The unit of all batches so far.
    """
    for column in columns:
        if column.column_type is not TIMESTAMP or column.name not in batch.column_names:
            continue
        found = epoch_unit(decoded(batch[column.name]))
        unit = require_same_unit(unit, found, column.name, where)
    return unit


def require_same_unit(unit: str | None, found: str | None, column: str, where: str) -> str | None:
    """The unit of two parts of a file, None if neither has one.

    Args:
        unit: the unit of the one part.
        found: the unit of the other one.
        column: the name of the timestamps, for the error.
        where: the file and the key that names its table, for the error.

    Raises:
        SchemaError: the units are different.
    """
    if found and unit and found != unit:
        raise SchemaError(
            f"{where}: the column {column} has {UNIT_NAMES[unit]} since 1970 in some rows "
            f"and {UNIT_NAMES[found]} in others; expected one unit in a file.",
            column=column,
        )
    return unit or found


def _drop_blank_rows(table: pa.Table) -> pa.Table:
    """The table without rows of nulls, such as the rows of commas that spreadsheets append."""
    if not len(table) or not all(column.null_count for column in table.columns):
        return table
    has_value = table.columns[0].is_valid()
    for column in table.columns[1:]:
        has_value = pc.or_(has_value, column.is_valid())
    return table.filter(has_value)


def stored_batches(
    file: TableFile, columns: Sequence[Column], batches: Iterable[pa.RecordBatch] | None = None
) -> Iterator[pa.Table]:
    """The declared columns of a file and of the folders above it, with their stored types.

    Args:
        file: a file of the table.
        columns: the declared columns.
        batches: rows of the file, by default all.
    """
    stored = {column.name: file.table.stored_name(column.name) for column in columns}
    for batch in _READERS[file.format](file, columns) if batches is None else batches:
        found = {name: batch.column(name) for name in batch.schema.names}
        for name, value in file.partition_values.items():
            found[name] = pa.repeat(pa.scalar(value, TEXT), batch.num_rows)
        yield pa.table({name: found[old] for name, old in stored.items() if old in found})


def read_row_groups(
    file: TableFile, columns: Sequence[Column], row_groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """The declared columns of a Parquet file, of all row groups or of some."""
    with file.open_input() as source, open_parquet(source, file.where) as parquet:
        present = file.select_columns(parquet.schema_arrow, columns)
        yield from parquet.iter_batches(_BATCH_ROWS, row_groups, columns=present)


_READERS: Mapping[str, Callable[[TableFile, Sequence[Column]], Iterator[pa.RecordBatch]]] = {
    "parquet": read_row_groups,
    "csv": read_csv,
    "jsonl": read_json_lines,
}


def open_parquet(source: pa.NativeFile, where: str) -> pq.ParquetFile:
    """A Parquet file of which only the requested parts are read.

    Raises:
        InputError: the file is not Parquet.
    """
    head = source.read(24)
    if not head.startswith(b"PAR"):
        raise InputError(
            f"{where} cannot be read as a table: it starts with {head!r}; expected Parquet, which "
            "starts with b'PAR1'. Rename a CSV file to .csv."
        )
    source.seek(0)
    return pq.ParquetFile(
        source,
        # Without both options pyarrow fetches a row group's column as a whole.
        pre_buffer=False,
        buffer_size=_READ_BYTES,
        # Spark writes int96 for the years 1 to 9999, most of which nanoseconds cannot represent.
        coerce_int96_timestamp_unit="us",
    )


def load_table(table: InputTable, columns: Sequence[Column]) -> pa.Table:
    """A table that fits into memory, such as items and users; arguments as for `read_batches`.

    Raises:
        InputError: as `read_batches`, or the table has no rows.
        SchemaError: the files have different columns.
    """
    batches = [(f, batch) for f in list_table_files(table) for batch in read_table_file(f, columns)]
    if not any(len(batch) for _, batch in batches):
        raise no_rows_error(table)
    found = {name for _, batch in batches for name in batch.column_names}
    present = {column.name: column for column in columns if column.name in found}
    return pa.concat_tables(_with_columns(file, batch, present) for file, batch in batches)


def _with_columns(file: TableFile, batch: pa.Table, columns: Mapping[str, Column]) -> pa.Table:
    """A batch with the columns of the other files of its table: a key that JSON lines lack is null.

    Args:
        file: the file that it is from.
        batch: rows, with the declared columns that the file has.
        columns: those that any file of the table has, by name.

    Raises:
        SchemaError: a file of another format lacks a column.
    """
    missing = [name for name in columns if name not in batch.column_names]
    if missing and file.format != "jsonl":
        uri, key = file.table.uri, file.table.key
        raise SchemaError(
            f"The files of {uri} (--{key}) have different columns: {file.name} has "
            f"{', '.join(batch.column_names)}, and others also have {', '.join(missing)}; expected "
            "the same in all.",
            path=uri,
            key=key,
        )
    for name in missing:
        batch = batch.append_column(name, pa.nulls(len(batch), columns[name].dtype))
    return batch.select(list(columns))


def no_rows_error(table: InputTable) -> InputError:
    """Says that a table which must have rows has none."""
    text = f"{table.uri} (--{table.key}) has no rows; expected at least one."
    return InputError(text, path=table.uri, key=table.key)


def require_unchanged(before: Mapping[str, object], after: Mapping[str, object]) -> None:
    """Refuses inputs that were written while they were read.

    Args:
        before: digest of each input, computed before any was read.
        after: the same, computed after all were read.

    Raises:
        InputError: a digest has changed, so it is unknown what was read.
    """
    changed = sorted(name for name, digest in before.items() if after.get(name) != digest)
    if changed:
        raise InputError(
            f"The inputs changed while they were read: {', '.join(changed)}. Run the job again "
            "when nothing writes them, so that the recorded digests describe what was read."
        )


def digest_table(table: InputTable) -> str:
    """`digest_files` of a table, which depends on its column mapping as well."""
    return table.identify(digest_files(table.uri, table.key))


def digest_files(uri: str, key: str) -> str:
    """16 hexadecimal digits that depend on every byte of a table's files and on the values that
    folders `column=value` give them, but not on where they are."""
    store, names = find_table_files(uri, key)
    with ThreadPoolExecutor(8) as pool:
        digests = pool.map(lambda name: partition_path(name) + _digest_file(store, name), names)
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _digest_file(store: Store, name: str) -> str:
    digest = hashlib.sha256()
    with store.open_input_stream(name) as stream:
        while block := stream.read(_HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()
