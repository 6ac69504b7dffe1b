"""CSV files of any writer: their encoding, delimiter and header are detected."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pacsv

from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.storage.schemas import Column
from visrec.storage.table_files import TableFile
from visrec.storage.text_encoding import Encoding, detect_encoding

_HEADER_BYTES = 1 << 16  # in which the header must end
_BLOCK_BYTES = 4 << 20  # read at a time; no row may be longer
_SAMPLE_LINES = 100  # that decide about the delimiter
_LINE_END = re.compile(r"\r\n|\r|\n")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[,;]*', re.IGNORECASE)  # which Excel writes and reads
_NULLS = ["", "NULL", "null", "\\N"]  # as SQL clients and Hive write it, without quotes
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_EXPECTED = "CSV in UTF-8. Rename a Parquet file to .parquet and a compressed CSV file to .csv.gz."


@dataclass(frozen=True)
class CsvDialect:
    """How a CSV file is written.

    Attributes:
        encoding: the encoding of its text.
        delimiter: between two fields.
        names: the names of its columns.
        header_lines: lines before the first row.
        has_rows: whether anything follows the header.
    """

    encoding: Encoding
    delimiter: str
    names: Sequence[str]
    header_lines: int
    has_rows: bool

    def __str__(self) -> str:
        delimiter = _DELIMITERS.get(self.delimiter, repr(self.delimiter))
        columns = f" with {delimiter}" if len(self.names) > 1 else ""
        return f"CSV{columns}, {self.encoding.label}"


def read_csv(
    file: TableFile, columns: Sequence[Column], stop: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The declared columns of a CSV file, all as text: types are not guessed from the first rows.

    Args:
        file: a file of the table.
        columns: the declared columns.
        stop: where a row ends, after which nothing is read; by default the end of the file.

    Raises:
        InputError: the file is empty, is not text, or is damaged.
        SchemaError: as `TableFile.select_columns`.
    """
    dialect = detect_dialect(file, columns)
    if stop is not None:
        yield from _parse(file, columns, dialect, _read_bytes(file, 0, stop), dialect.header_lines)
    elif dialect.has_rows:
        with file.open_input_stream() as stream:
            yield from _parse(file, columns, dialect, stream, dialect.header_lines)
    else:
        file.select_columns(_schema(dialect), columns)


def read_csv_lines(
    file: TableFile, columns: Sequence[Column], span: tuple[int, int]
) -> Iterator[pa.RecordBatch]:
    """`read_csv` of rows between two bytes, after the header.

    Args:
        file: a file of the table, in UTF-8.
        columns: the declared columns.
        span: where the first row begins, and where the last one ends.
    """
    yield from _parse(file, columns, detect_dialect(file, columns), _read_bytes(file, *span), 0)


def _read_bytes(file: TableFile, start: int, stop: int) -> pa.NativeFile:
    with file.open_input() as source:
        return pa.BufferReader(source.read_at(stop - start, start))


def _schema(dialect: CsvDialect) -> pa.Schema:
    return pa.schema([(name, TEXT) for name in dialect.names])


def _parse(
    file: TableFile,
    columns: Sequence[Column],
    dialect: CsvDialect,
    source: pa.NativeFile,
    skipped_lines: int,
) -> Iterator[pa.RecordBatch]:
    present = file.select_columns(_schema(dialect), columns)
    read = pacsv.ReadOptions(
        encoding=dialect.encoding.name,
        column_names=dialect.names,
        skip_rows=skipped_lines,
        block_size=_BLOCK_BYTES,
    )
    parse = pacsv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True)
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(present, TEXT),
        include_columns=present,
        strings_can_be_null=True,
        null_values=_NULLS,
        quoted_strings_can_be_null=False,
    )
    with pacsv.open_csv(source, read, parse, convert) as batches:
        yield from batches


def detect_dialect(file: TableFile, columns: Sequence[Column]) -> CsvDialect:
    """How a file is written, from its first lines.

    Raises:
        InputError: the file is empty or not text.
    """
    with file.open_input_stream() as stream:
        head = stream.read(_HEADER_BYTES)
    if not head:
        raise InputError(f"{file.where} is empty; expected at least a header.")
    encoding = detect_encoding(head, file.where, _EXPECTED)
    lines = _LINE_END.split(encoding.decode(head))
    is_whole = len(head) < _HEADER_BYTES
    header = next((number for number, line in enumerate(lines) if line.strip()), 0)
    separator = _SEPARATOR_LINE.fullmatch(lines[header].strip(" "))
    if separator and header + 1 < len(lines):
        header += 1
    last = len(lines) if is_whole else max(len(lines) - 1, header + 1)  # which may be cut
    sample = lines[header : min(last, header + _SAMPLE_LINES)]
    declared = {file.table.stored_name(column.name) for column in columns}
    delimiter = separator[1] if separator else _detect_delimiter(sample, declared)
    return CsvDialect(
        encoding=encoding,
        delimiter=delimiter,
        names=_header_names(lines[header], delimiter),
        header_lines=header + 1,
        has_rows=not is_whole or header + 1 < len(lines),
    )


def _header_names(line: str, delimiter: str) -> list[str]:
    fields = next(csv.reader([line], delimiter=delimiter), [])
    return [field.strip() for field in fields]


def _detect_delimiter(lines: Sequence[str], declared: set[str]) -> str:
    """The delimiter that yields most of the declared columns; if their names are unknown, the one
    that cuts all lines into the same number of fields, the larger number the better."""
    return max(_DELIMITERS, key=lambda delimiter: _fitness(lines, delimiter, declared))


def _fitness(lines: Sequence[str], delimiter: str, declared: set[str]) -> tuple[int, float, int]:
    names = _header_names(lines[0], delimiter)
    rows = [row for row in csv.reader(lines[1:], delimiter=delimiter) if row]
    same = sum(len(row) == len(names) for row in rows) / len(rows) if rows else 1.0
    return len(declared & {*names}), same if len(names) > 1 else 0.0, len(names)
