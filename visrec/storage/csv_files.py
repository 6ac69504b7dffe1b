"""CSV files of any writer: their encoding, delimiter and header are detected.

A quote at the start of a value opens it, and line ends belong to it until the quote that closes it.
In a file whose writer does not quote, one stray quote would make a value of all rows up to the next
one, so a value with line ends is read only if it does not look like rows.
"""

import re
import shlex
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from visrec.errors import InputError, SchemaError
from visrec.ids import TEXT
from visrec.storage.arrow_values import NULL_WORDS
from visrec.storage.schemas import NOT_UTF_8, Column
from visrec.storage.table_files import TableFile
from visrec.storage.text_encoding import Encoding, detect_encoding, detect_foreign_encoding

_HEAD_BYTES = 1 << 16  # that are looked at; more if the header is longer
_BLOCK_BYTES = 4 << 20  # read at a time
_CHECKED_BYTES = 1 << 14  # for quotes, at a time: patterns read only those that need them
_MAX_ROW_BYTES = 4 << 20
_SAMPLE_LINES = 100  # that decide about the delimiter
_LINE_END = re.compile(rb"[\r\n]")
# At the end of a text, a return may be the first half of a line end.
_WHOLE_LINE_END = rb"(?:\n|\r\n|\r(?!\n|\Z))"
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
# Excel writes it. The delimiter itself may be white space.
_SEPARATOR_LINE = re.compile(rb'\s*"?sep=([\t !#-~])"?[,;]*\s*', re.IGNORECASE)
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_EXPECTED = "CSV in UTF-8. Rename a Parquet file to .parquet and a compressed CSV file to .csv.gz."


@dataclass(frozen=True)
class CsvDialect:
    """How a CSV file is written.

    Attributes:
        encoding: the encoding of its text.
        delimiter: between two fields.
        names: the names of its columns.
        header_lines: lines before the first row, including the line ends of quoted names.
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
        InputError: the file is empty, is not text, is in another encoding, or is damaged.
        SchemaError: as `TableFile.select_columns`.
    """
    dialect = detect_dialect(file, columns)
    if stop is not None:
        yield from _parse(file, columns, dialect, _read_bytes(file, 0, stop), dialect.header_lines)
    elif dialect.has_rows:
        with file.open_input_stream() as stream:
            yield from _parse(file, columns, dialect, stream, dialect.header_lines)
    else:
        _select_columns(file, dialect, columns)


def read_csv_lines(
    file: TableFile, columns: Sequence[Column], span: tuple[int, int]
) -> Iterator[pa.RecordBatch]:
    """`read_csv` of rows between two bytes, after the header.

    Args:
        file: a file of the table, in UTF-8.
        columns: the declared columns.
        span: where the first row begins, and where the last one ends.
    """
    dialect = detect_dialect(file, columns)
    yield from _parse(file, columns, dialect, _read_bytes(file, *span), 0, start=span[0])


def _read_bytes(file: TableFile, start: int, stop: int) -> pa.NativeFile:
    with file.open_input() as source:
        return pa.BufferReader(source.read_at(stop - start, start))


def _select_columns(
    file: TableFile, dialect: CsvDialect, columns: Sequence[Column]
) -> Sequence[str]:
    """As `TableFile.select_columns`; names in another encoding are not those that it expects."""
    try:
        return file.select_columns(pa.schema([(name, TEXT) for name in dialect.names]), columns)
    except SchemaError:
        if any(NOT_UTF_8 in name for name in dialect.names):
            refuse_other_encodings(file)
        raise


def refuse_other_encodings(file: TableFile) -> None:
    """Reads a whole CSV file, and refuses one that is not UTF-8 or UTF-16.

    Raises:
        InputError: says how to convert it.
    """
    with file.open_input_stream() as stream:
        blocks = iter(lambda: stream.read(_BLOCK_BYTES), b"")
        encoding = detect_foreign_encoding(blocks, file.where, _EXPECTED)
    if encoding.name != "cp1252":
        return
    name, convert = file.name.rpartition("/")[2], "Convert it"
    if file.codec is not None:
        name, convert = name.rpartition(".")[0], "Decompress and convert it"
    raise InputError(
        f"{file.where} looks like {encoding.label}; expected UTF-8 (in Excel: CSV UTF-8). "
        f"{convert} with `iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(name)} > utf8.csv`, or use "
        "`visrec import retail`, which reads Windows-1252.",
        path=file.store.uri(file.name),
        key=file.table.key,
    )


def _parse(
    file: TableFile,
    columns: Sequence[Column],
    dialect: CsvDialect,
    source: pa.NativeFile,
    skipped_lines: int,
    start: int = 0,
) -> Iterator[pa.RecordBatch]:
    present = _select_columns(file, dialect, columns)
    parse = pacsv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True)
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(present, TEXT),
        include_columns=present,
        strings_can_be_null=True,
        null_values=NULL_WORDS,
        quoted_strings_can_be_null=False,
    )
    for rows in _RowBlocks(file, dialect, source, skipped_lines, start):
        read = pacsv.ReadOptions(column_names=dialect.names, block_size=len(rows) + 1)
        try:
            table = pacsv.read_csv(pa.BufferReader(rows), read, parse, convert)
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                refuse_other_encodings(file)
            raise
        yield from table.to_batches()


# The header.


def detect_dialect(file: TableFile, columns: Sequence[Column]) -> CsvDialect:
    """How a file is written, from its first lines.

    Raises:
        InputError: the file is empty or not text, or its header does not end.
    """
    declared = {file.table.stored_name(column.name) for column in columns}
    head = b""
    with file.open_input_stream() as stream:
        while True:
            wanted = max(_HEAD_BYTES, len(head))
            more = stream.read(wanted)
            head += more
            encoding = detect_encoding(head, file.where, _EXPECTED)
            if not encoding.decode(head):
                raise InputError(f"{file.where} is empty; expected at least a header.")
            is_whole = len(more) < wanted
            if dialect := _find_dialect(encoding, head, is_whole, declared):
                return dialect
            if is_whole or len(head) >= _MAX_ROW_BYTES:
                raise InputError(
                    f"{file.where} cannot be read as a table: its header has a quote that does not "
                    f"close, or is longer than {_MAX_ROW_BYTES >> 20} MiB; expected the names of "
                    "the columns in the first line.",
                    path=file.store.uri(file.name),
                    key=file.table.key,
                )


def _find_dialect(
    encoding: Encoding, head: bytes, is_whole: bool, declared: set[str]
) -> CsvDialect | None:
    """How a file is written.

    Args:
        encoding: of its text.
        head: its first bytes.
        is_whole: whether they are the whole file.
        declared: the names in the file of the declared columns.

    Returns:
        None if more bytes are needed.
    """
    lines = _LINE.findall(encoding.decode(head).encode())
    if not is_whole:
        lines = lines[:-1]  # the last one may be cut
    header = next((number for number, line in enumerate(lines) if line.strip()), 0)
    separator = _SEPARATOR_LINE.fullmatch(lines[header]) if lines else None
    if separator and (header + 1 < len(lines) or not is_whole):
        header += 1
    sample = b"".join(lines[header : header + _SAMPLE_LINES])
    delimiter = separator[1].decode() if separator else _detect_delimiter(sample, declared)
    match = _patterns(delimiter).row.match(sample)
    if match is None or not match[0]:
        return None
    header += len(_LINE.findall(match[0]))
    return CsvDialect(
        encoding=encoding,
        delimiter=delimiter,
        names=_header_names(match[0], delimiter),
        header_lines=header,
        has_rows=not is_whole or header < len(lines),
    )


def _header_names(row: bytes, delimiter: str) -> list[str]:
    names = []
    for quoted, rest, unquoted in _patterns(delimiter).value.findall(row.rstrip(b"\r\n")):
        text = unquoted or quoted.replace(b'""', b'"') + rest
        names.append(text.decode().strip())
    return names


def _detect_delimiter(sample: bytes, declared: set[str]) -> str:
    """The delimiter that yields most of the declared columns; if their names are unknown, the one
    that cuts all lines into the same number of fields, the larger number the better."""
    return max(_DELIMITERS, key=lambda delimiter: _fitness(sample, delimiter, declared))


def _fitness(sample: bytes, delimiter: str, declared: set[str]) -> tuple[int, float, int]:
    patterns = _patterns(delimiter)
    rows, position = [], 0
    while position < len(sample) and (match := patterns.row.match(sample, position)):
        rows += [match[0]] if match[0].strip(b"\r\n") else []
        position = match.end()
    if not rows:
        return 0, 0.0, 0
    names = _header_names(rows[0], delimiter)
    widths = [len(patterns.value.findall(row.rstrip(b"\r\n"))) for row in rows[1:]]
    same = sum(width == len(names) for width in widths) / len(widths) if widths else 1.0
    return len(declared & {*names}), same if len(names) > 1 else 0.0, len(names)


# Rows, whose values have line ends only where they are meant.


@dataclass(frozen=True)
class _Patterns:
    """Patterns of the text of one delimiter, as pyarrow reads it.

    Attributes:
        value: a value with the delimiter before it; the text between quotes, the text after them,
            and the text without quotes.
        row: a row with its line end, or up to the end of the text; no match if a quote does not
            close.
        whole_row: the same of a row with its line end alone.
        plain_rows: any number of whole rows, none of whose values has a line end.
    """

    value: re.Pattern[bytes]
    row: re.Pattern[bytes]
    whole_row: re.Pattern[bytes]
    plain_rows: re.Pattern[bytes]


@cache
def _patterns(delimiter: str) -> _Patterns:
    d = re.escape(delimiter)
    rest = rf"[^{d}\r\n]*+"
    unquoted = rf'[^"{d}\r\n]{rest}'

    def quoted(excluded: str) -> str:
        return rf'[^"{excluded}]*+(?:""[^"{excluded}]*+)*+'

    def row(excluded: str) -> str:
        value = rf'(?:"{quoted(excluded)}"{rest}|{unquoted}|)'
        return rf"{value}(?:{d}{value})*+"

    line_end = _WHOLE_LINE_END.decode()
    value = rf'(?:\A|{d})(?:"({quoted("")})"({rest})|({unquoted})|)'
    texts = (
        value,
        rf"{row('')}(?:\r\n|\r|\n|\Z)",
        row("") + line_end,
        rf"(?:{row(chr(13) + chr(10))}{line_end})*+",
    )
    return _Patterns(*(re.compile(text.encode()) for text in texts))


class _RowBlocks:
    """Blocks of whole rows in UTF-8, without the header.

    Args:
        file: the file that they are in, for errors.
        dialect: how it is written.
        source: its bytes.
        skipped_lines: lines of the header.
        start: at which byte of the file the source begins.
    """

    def __init__(
        self,
        file: TableFile,
        dialect: CsvDialect,
        source: pa.NativeFile,
        skipped_lines: int,
        start: int,
    ) -> None:
        self._file, self._dialect, self._source = file, dialect, source
        self._skipped_lines, self._start = skipped_lines, start
        self._patterns = _patterns(dialect.delimiter)
        self._line = 1  # in which the next row begins

    def __iter__(self) -> Iterator[bytes]:
        """The blocks, about 4 MiB each.

        Raises:
            InputError: a quote does not close, or makes one value of several rows.
        """
        rest, is_first = b"", self._skipped_lines > 0
        for block in self._read():
            text = rest + block
            if is_first:
                header = _header_pattern(self._skipped_lines).match(text)
                if header is None:
                    rest = text
                    continue
                is_first, self._line = False, self._skipped_lines + 1
                text = text[header.end() :]
            end = self._end_of_rows(text)
            if text[:end].strip(b"\r\n"):
                yield text[:end]
            rest = text[end:]
            if len(rest) > _MAX_ROW_BYTES:
                raise self._error(
                    f"the row that begins in line {self._line:,} is longer than "
                    f"{_MAX_ROW_BYTES >> 20} MiB, or has a quote that does not close"
                )
        if rest:
            raise self._error(
                f"the row that begins in line {self._line:,} has a quote that does not close"
            )

    def _read(self) -> Iterator[bytes]:
        """The text in UTF-8, with a line end after the last line."""
        encoding = self._dialect.encoding
        decoder = getincrementaldecoder(encoding.name)()
        while block := self._source.read(_BLOCK_BYTES):
            yield block if encoding.is_utf_8 else decoder.decode(block).encode()
        yield decoder.decode(b"", final=True).encode() + b"\n"

    def _end_of_rows(self, text: bytes) -> int:
        """Where the last whole row of a text ends that begins with a row."""
        end, checked = 0, _CHECKED_BYTES if b'"' in text else len(text)
        while True:
            stop = _end_of_lines(text, end, end + checked)
            if self._are_rows(text[end:stop]):
                self._line += _count_lines(text[end:stop])
                end = stop
                continue
            end, is_last = self._read_rows(text, end, stop)
            if is_last:
                return end

    def _are_rows(self, lines: bytes) -> bool:
        """Whether each of these lines is a row: all their quotes open or close a value or are
        doubled, and none is open where a line ends. False if there is no line.

        It takes a fraction of the time of the patterns.
        """
        if b'"' not in lines:
            return bool(lines)
        bytes_N = np.frombuffer(lines, np.uint8)
        is_quote_N = bytes_N == ord('"')
        is_inside_N = np.logical_xor.accumulate(is_quote_N)  # with the quote that opens
        is_end_N = (bytes_N == ord("\n")) | (bytes_N == ord("\r"))
        if (is_inside_N & is_end_N).any():
            return False
        # After a quote, it is the second one of two.
        may_follow_N = is_end_N | is_quote_N | (bytes_N == ord(self._dialect.delimiter))
        opens_N = is_quote_N & is_inside_N
        return not (opens_N[1:] & ~may_follow_N[:-1]).any()

    def _read_rows(self, text: bytes, start: int, stop: int) -> tuple[int, bool]:
        """Reads the rows that begin in a part of a text.

        Args:
            text: any text.
            start: where the first row begins.
            stop: the end of the part.

        Returns:
            Where the last whole row ends, and whether the text has no more of them.
        """
        end = start
        while True:
            if plain := self._patterns.plain_rows.match(text, end, stop):
                self._line += _count_lines(plain[0])
                end = plain.end()
            row = self._patterns.whole_row.match(text, end)
            if row is None:
                return end, True
            self._require_one_row(row[0])
            self._line += _count_lines(row[0])
            end = row.end()
            if end >= stop:
                return end, False

    def _require_one_row(self, row: bytes) -> None:
        """Refuses a row with line ends in a value if these seem to be the ends of other rows."""
        values = self._patterns.value.findall(row.rstrip(b"\r\n"))
        lines = [line for line in _LINE.findall(row) if line.strip()]
        after = next((rest for text, rest, _ in values if rest and _LINE_END.search(text)), None)
        last = self._line + _count_lines(row) - 1
        found = f"the quote in line {self._line:,} closes in line {last:,}"
        if after is not None:
            raise self._error(f"{found}, before {after[:40].decode('utf-8', 'replace')!r}")
        is_chance = (len(lines) - 1) * (len(values) - 1) < 2  # one delimiter, as prose may have
        if not is_chance and all(self._is_like_row(line, len(values)) for line in lines):
            raise self._error(f"{found}, and each of these lines is like a row")

    def _is_like_row(self, line: bytes, width: int) -> bool:
        """Whether a line has the delimiters of a row, none of them before a space as in prose."""
        delimiter = self._dialect.delimiter.encode()
        return line.count(delimiter) == width - 1 and delimiter + b" " not in line

    def _error(self, found: str) -> InputError:
        if self._start:
            found = f"{found} (lines counted from byte {self._start:,})"
        return InputError(
            f"{self._file.where} cannot be read as a table: {found}; expected quotes only around "
            'whole values, and a quote within such a value twice (""). Remove the quote, or export '
            "the file again with a program that quotes.",
            path=self._file.store.uri(self._file.name),
            key=self._file.table.key,
        )


@cache
def _header_pattern(lines: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?:[^\r\n]*+%s){%d}" % (_WHOLE_LINE_END, lines))


def _end_of_lines(text: bytes, start: int, stop: int) -> int:
    """Where the last whole line of a part of a text ends; its start if there is none."""
    end = text.rfind(b"\n", start, stop) + 1
    # A return at the end of the part may be the first half of a line end.
    return end or text.rfind(b"\r", start, min(stop, len(text)) - 1) + 1 or start


def _count_lines(text: bytes) -> int:
    return text.count(b"\n") or text.count(b"\r")
