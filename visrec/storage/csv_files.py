"""CSV files of any writer: their encoding, compression, delimiter and header are detected."""

import csv
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.csv as pacsv

from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.storage.schemas import Column
from visrec.storage.table_files import TableFile

_HEADER_BYTES = 1 << 16  # in which the header must end
_BLOCK_BYTES = 4 << 20  # read at a time; no row may be longer
_LINE_END = re.compile(r"\r\n|\r|\n")
_NULLS = ["", "NULL", "null", "\\N"]  # as SQL clients and Hive write it, without quotes
_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}


def read_csv(file: TableFile, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    """The declared columns of a CSV file, all as text: types are not guessed from the first rows.

    Raises:
        InputError: the file is empty, is not text, or is damaged.
        SchemaError: as `check_columns`.
    """
    codec = _CODECS.get(file.name.rpartition(".")[2].lower())  # pyarrow knows lower case only
    with file.open_input_stream(codec) as stream:
        head = stream.read(_HEADER_BYTES)
    encoding = _detect_encoding(head, file.where)
    lines = _LINE_END.split(head.decode(encoding, "replace").lstrip("\ufeff"))
    header_line = next((number for number, line in enumerate(lines) if line.strip()), 0)
    names, delimiter = _parse_header(lines[header_line], columns)
    present = file.select_columns(pa.schema([(name, TEXT) for name in names]), columns)
    if header_line == len(lines) - 1 and len(head) < _HEADER_BYTES:
        return  # no rows
    read = pacsv.ReadOptions(
        encoding=encoding,
        column_names=names,
        skip_rows=header_line + 1,
        block_size=_BLOCK_BYTES,
    )
    parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(present, TEXT),
        include_columns=present,
        strings_can_be_null=True,
        null_values=_NULLS,
        quoted_strings_can_be_null=False,
    )
    with (
        file.open_input_stream(codec) as stream,
        pacsv.open_csv(stream, read, parse, convert) as batches,
    ):
        yield from batches


def _detect_encoding(head: bytes, where: str) -> str:
    """The encoding of a CSV file, from its first bytes.

    Raises:
        InputError: the file is empty or not text.
    """
    if not head:
        raise InputError(f"{where} is empty; expected at least a header.")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in head or head.startswith((b"PAR1", b"\x1f\x8b", b"PK\x03\x04")):
        raise InputError(
            f"{where} cannot be read as a table: it starts with {head[:24]!r}, which is not text; "
            "expected CSV in UTF-8. Rename a Parquet file to .parquet and a compressed CSV file to "
            ".csv.gz."
        )
    return "utf8"


def _parse_header(line: str, columns: Sequence[Column]) -> tuple[list[str], str]:
    """The column names of a CSV file and the delimiter, which is the one that yields most of the
    declared columns."""
    declared = {column.name for column in columns}
    names_by_delimiter = {}
    for delimiter in ",;\t|":
        fields = next(csv.reader([line], delimiter=delimiter), [])
        names_by_delimiter[delimiter] = [field.strip() for field in fields]
    best = max(names_by_delimiter, key=lambda each: len(declared & {*names_by_delimiter[each]}))
    return names_by_delimiter[best], best
