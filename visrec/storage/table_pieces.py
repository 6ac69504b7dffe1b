"""Pieces of input tables, so that several processes read one file: row groups, or lines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa

from visrec.storage.csv_files import detect_dialect, read_csv, read_csv_lines
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import Column
from visrec.storage.table_files import TableFile, list_table_files, table_errors
from visrec.storage.tables import conform_batches, open_parquet, read_row_groups, stored_batches

PIECE_ROWS = 1_000_000  # of Parquet; a larger row group is one piece
PIECE_BYTES = 64 << 20  # of CSV, which a task holds in memory
_BYTES_PER_ROW = 32  # of uncompressed text, JSON lines too; for estimates
_COMPRESSED_BYTES_PER_ROW = 8


@dataclass(frozen=True)
class TablePiece:
    """Consecutive rows of one file.

    Attributes:
        file: the file that they are in.
        rows: how many; of text an estimate.
        span: for Parquet, the first row group and one past the last; of CSV, the bytes from the
            beginning of a line to the end of a line; None for the whole file.
    """

    file: TableFile
    rows: int
    span: tuple[int, int] | None = None


def split_file(file: TableFile, columns: Sequence[Column]) -> list[TablePiece]:
    """The pieces of a file, in the order of its rows.

    A CSV file is one piece if it is small, compressed, not in UTF-8, or contains quotes, which may
    enclose line ends. A file of JSON lines is always one piece.

    Raises:
        InputError: the file cannot be read, or lacks a declared column.
    """
    if file.format == "parquet":
        return list(_parquet_pieces(file, columns))
    with file.open_input() as source:
        size = source.size()
    ends = [size]
    if size > PIECE_BYTES and file.format == "csv" and file.codec is None:
        dialect = detect_dialect(file, columns)
        ends = _line_ends(file, size, dialect.header_lines) if dialect.encoding.is_utf_8 else ends
    if len(ends) == 1:
        return [TablePiece(file, size // _bytes_per_row(file))]
    spans = zip([0, *ends], ends, strict=False)
    return [TablePiece(file, (e - s) // _BYTES_PER_ROW, (s, e)) for s, e in spans]


def has_more_rows(table: InputTable, limit: int) -> bool:
    """Whether a table has more rows than this, about; no row is read, and no file more than it
    takes to say so."""
    rows = map(_estimate_file_rows, list_table_files(table))
    return any(total > limit for total in accumulate(rows))


def _estimate_file_rows(file: TableFile) -> int:
    with file.open_input() as source:
        if file.format != "parquet":
            return int(source.size()) // _bytes_per_row(file)
        with open_parquet(source, file.where) as parquet:
            return int(parquet.metadata.num_rows)


def _bytes_per_row(file: TableFile) -> int:
    return _BYTES_PER_ROW if file.codec is None else _COMPRESSED_BYTES_PER_ROW


def _parquet_pieces(file: TableFile, columns: Sequence[Column]) -> Iterator[TablePiece]:
    with file.open_input() as source, open_parquet(source, file.where) as parquet:
        file.select_columns(parquet.schema_arrow, columns)
        metadata = parquet.metadata
        first = rows = 0
        for group in range(metadata.num_row_groups):
            added = metadata.row_group(group).num_rows
            if rows and rows + added > PIECE_ROWS:
                yield TablePiece(file, rows, (first, group))
                first, rows = group, 0
            rows += added
        if rows:
            yield TablePiece(file, rows, (first, metadata.num_row_groups))


def _line_ends(file: TableFile, size: int, header_lines: int) -> list[int]:
    """Where the pieces of a CSV file end; only the end of the file if it cannot be split."""
    ends, position = [], 0
    with file.open_input_stream() as stream:
        while block := stream.read(PIECE_BYTES):
            rows = block if position else block.split(b"\n", header_lines)[-1]
            if b'"' in rows:
                return [size]
            if end := block.rfind(b"\n") + 1:
                ends.append(position + end)
            position += len(block)
    return [*(end for end in ends[:-1] if end < size), size]


def read_piece(
    piece: TablePiece, columns: Sequence[Column]
) -> Iterator[tuple[pa.Table, str | None]]:
    """The rows of a piece in batches, checked and cast as by `read_table_file`.

    Yields:
        A batch, and the unit of the timestamps so far, which must be the same in all pieces of a
        file.
    """
    file, span = piece.file, piece.span
    if span is None:
        batches = None
    elif file.format == "parquet":
        batches = read_row_groups(file, columns, range(*span))
    elif span[0] == 0:
        batches = read_csv(file, columns, span[1])
    else:
        batches = read_csv_lines(file, columns, span)
    with table_errors(file.where):
        yield from conform_batches(file, stored_batches(file, columns, batches), columns)
