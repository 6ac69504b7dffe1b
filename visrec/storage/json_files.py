"""JSON lines: one object a line, read a block of lines at a time."""

import json
import math
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.storage.arrow_values import EXACT_LIMIT
from visrec.storage.schemas import Column
from visrec.storage.table_files import MISSING, TableFile, file_fingerprints
from visrec.storage.text_encoding import Encoding, detect_encoding

_BLOCK_BYTES = 4 << 20  # read at a time
_HEAD_BYTES = 1024  # that tell the encoding
_MAX_LINE_BYTES = 64 << 20
_SAMPLE_ROWS = 100  # of a block, which decide how it is parsed
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: TEXT}
_EXPECTED = (
    "JSON lines in UTF-8. Rename a Parquet file to .parquet and a compressed file to .jsonl.gz."
)


def read_json_lines(file: TableFile, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    """The declared columns of a file of JSON lines, which are the same in all batches; a key that a
    row lacks is null.

    Raises:
        InputError: the file is not text, or a line is not a JSON object.
        SchemaError: as `TableFile.select_columns`.
    """
    stored = tuple(file.table.stored_name(column.name) for column in columns)
    schema = _find_schema(file, stored)
    present = [] if schema is None else file.select_columns(schema, columns)
    for lines in _read_lines(file):
        yield lines.parse(present)


def json_names(file: TableFile) -> list[str]:
    """The keys of the first lines of a file; raises as `read_json_lines`."""
    first = next(_read_lines(file), None)
    return [] if first is None else first.schema().names


# Schemas of files that were looked through, by the file, its fingerprint and the names that were
# looked for: jobs check a table before they read it.
_schemas: dict[tuple[str, str, tuple[str, ...]], pa.Schema] = {}


def _find_schema(file: TableFile, names: tuple[str, ...]) -> pa.Schema | None:
    """The keys of the first lines of a file, and those of these names that first occur later; None
    for a file without lines.

    Writers leave out keys without a value, so that a rare one may begin anywhere: the file is read
    until all names are found.
    """
    fingerprint = file_fingerprints([file])[file.name]
    key = (file.store.uri(file.name), fingerprint, names)
    if key in _schemas and fingerprint != MISSING:
        return _schemas[key]
    schema: pa.Schema | None = None
    for lines in _read_lines(file):
        schema = lines.schema() if schema is None else schema
        missing = {*names} - {*schema.names, *file.partition_values}
        if not missing:
            break
        for name in filter(lines.has, sorted(missing)):
            values = lines.parse([name]).column(name)
            if values.null_count < len(values):
                schema = schema.append(pa.field(name, values.type))
    if schema is not None:
        _schemas[key] = schema
    return schema


def detect_json_encoding(file: TableFile) -> Encoding:
    """The encoding of a file, from its first bytes; raises as `read_json_lines`."""
    with file.open_input_stream() as stream:
        return detect_encoding(stream.read(_HEAD_BYTES), file.where, _EXPECTED)


def _read_lines(file: TableFile) -> Iterator["_Lines"]:
    first_line = 1
    for block in _blocks(file):
        yield _Lines(file, block, first_line)
        first_line += block.count(b"\n")


def _blocks(file: TableFile) -> Iterator[bytes]:
    """Whole lines in UTF-8, about 4 MiB at a time, without blocks of blank lines."""
    encoding = detect_json_encoding(file)
    decoder = getincrementaldecoder(encoding.name)()
    with file.open_input_stream() as stream:
        stream.read(len(encoding.bom))
        rest, is_first = b"", True
        while block := stream.read(_BLOCK_BYTES):
            text = rest + (block if encoding.is_utf_8 else decoder.decode(block).encode())
            if is_first and text.lstrip().startswith(b"["):
                raise InputError(
                    f"{file.where} is a JSON array; expected one object a line, as `jq -c '.[]'` "
                    "writes them."
                )
            is_first = False
            end = text.rfind(b"\n") + 1
            if text[:end].strip():
                yield text[:end]
            rest = text[end:]
            if len(rest) > _MAX_LINE_BYTES:
                raise InputError(
                    f"{file.where} has a line longer than {_MAX_LINE_BYTES >> 20} MiB; expected "
                    "one object a line."
                )
        if rest.strip():
            yield rest


class _Lines:
    """Lines of a file, parsed by pyarrow as far as each column has one type.

    Args:
        file: the file that they are from.
        block: whole lines.
        first_line: number of the first line in the file.
    """

    def __init__(self, file: TableFile, block: bytes, first_line: int) -> None:
        self._file, self._block, self._first_line = file, block, first_line
        self._sample = list(islice(self._rows(), _SAMPLE_ROWS))

    def schema(self) -> pa.Schema:
        """The keys of the first rows, with the types of their first values."""
        types: dict[str, pa.DataType] = {}
        for row in self._sample:
            for name, value in row.items():
                if pa.types.is_null(types.get(name, pa.null())):
                    types[name] = _type(value)
        return pa.schema(list(types.items()))

    def has(self, name: str) -> bool:
        """Whether any row may have this key."""
        spellings = {json.dumps(name, ensure_ascii=ascii).encode() for ascii in (True, False)}
        return any(re.search(re.escape(text) + rb"\s*:", self._block) for text in spellings)

    def parse(self, names: Sequence[str]) -> pa.RecordBatch:
        """The columns of these names."""
        types = dict(zip(self.schema().names, self.schema().types, strict=True))
        known = {name: types.get(name, pa.null()) for name in names}
        schema = pa.schema([(n, TEXT if pa.types.is_null(t) else t) for n, t in known.items()])
        options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            table = pajson.read_json(pa.BufferReader(self._block), parse_options=options)
        except pa.ArrowInvalid:  # a column has values of several types, or a line is damaged
            rows = list(self._rows())
            columns = {n: pa.array([_text(row.get(n)) for row in rows], TEXT) for n in names}
            return pa.record_batch(columns)
        arrays = [table[name].combine_chunks() for name in names]
        return pa.record_batch(arrays, list(names))

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows as Python objects, whose values are of any type.

        Raises:
            InputError: a line is not a JSON object.
        """
        for number, line in enumerate(self._block.split(b"\n"), self._first_line):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise InputError(
                    f"{self._file.where} cannot be read as a table: line {number}, "
                    f"{line[:60].decode('utf-8', 'replace')!r}, is not a JSON object; expected one "
                    "on each line."
                )
            yield row


def _type(value: object) -> pa.DataType:
    """The Arrow type of a JSON value; for a list or an object one that no column takes."""
    if value is None:
        return pa.null()
    nested = pa.list_(pa.null()) if isinstance(value, list) else pa.struct([])
    return _TYPES.get(type(value), nested)


def _text(value: object) -> str | None:
    """A JSON value as text, as a column of its type has it: NaN is null, and 7.0 is 7."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT_LIMIT[64]:
        return str(int(value))
    return json.dumps(value)
