"""One line about a table: how its files are written, and what was made of their timestamps."""

from collections.abc import Sequence

import pyarrow as pa

from visrec.storage.arrow_values import InvalidValueError, decoded
from visrec.storage.column_types import TIMESTAMP
from visrec.storage.csv_files import detect_dialect
from visrec.storage.input_table import InputTable
from visrec.storage.json_files import detect_json_encoding
from visrec.storage.schemas import Column
from visrec.storage.table_files import TableFile, list_table_files, table_errors
from visrec.storage.tables import stored_batches
from visrec.storage.timestamps import describe_timestamps, parse_timestamps


def describe_table(table: InputTable, columns: Sequence[Column]) -> str:
    """Location, format, delimiter, encoding, mapped columns and timestamps, by the first file.

    Raises:
        InputError: the file cannot be read.
        SchemaError: the file lacks a column.
    """
    files = list(list_table_files(table))
    first = files[0]
    parts = [_describe_format(first, columns)]
    renamed = {name: stored for name, stored in table.columns.items() if name != stored}
    parts += [", ".join(f"{name} is {stored}" for name, stored in renamed.items())]
    parts += [f"timestamps: {times}" if (times := _describe_timestamps(first, columns)) else ""]
    number = f" ({len(files):,} files)" if len(files) > 1 else ""
    return f"{table.uri}{number}: {'; '.join(filter(None, parts))}"


def describe_times(table: InputTable, columns: Sequence[Column]) -> str:
    """How the timestamps of the first rows are written; raises as `describe_table`."""
    return _describe_timestamps(next(list_table_files(table)), columns)


def _describe_format(file: TableFile, columns: Sequence[Column]) -> str:
    if file.format == "parquet":
        return "Parquet"
    if file.format == "csv":
        text = str(detect_dialect(file, columns))
    else:
        text = f"JSON lines, {detect_json_encoding(file).label}"
    return text + (f", {file.codec}" if file.codec else "")


def _describe_timestamps(file: TableFile, columns: Sequence[Column]) -> str:
    """How the timestamps of the first rows are written; empty for a table without any."""
    name = next((column.name for column in columns if column.column_type is TIMESTAMP), None)
    if name is None:
        return ""
    with table_errors(file.where):
        for batch in stored_batches(file, columns):
            if len(batch):
                return _describe_values(decoded(batch[name]))
    return "no rows"


def _describe_values(times: pa.ChunkedArray) -> str:
    """How timestamps are written, unless they are refused: then their error says what they are."""
    try:
        parse_timestamps(times)
    except (InvalidValueError, pa.ArrowInvalid):
        return "not readable"
    return describe_timestamps(times)
