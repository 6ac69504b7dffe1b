"""What an import has to do: the columns and ids of the whole table, checked before any write."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.errors import InputError, SchemaError
from visrec.features.table import FEATURES_MANIFEST, Identity, read_manifest, require_same_identity
from visrec.storage.arrow_values import decoded_type
from visrec.storage.schemas import FEATURES, Column, check_columns, conform
from visrec.storage.store import Store
from visrec.storage.table_files import find_table_files, table_errors
from visrec.storage.tables import digest_files, open_parquet

PART_ROWS = 4096  # 42 MB at D = 1280 while the rows are checked as float64
_PRECISION = {"halffloat": "float16", "float": "float32", "double": "float64"}


@dataclass(frozen=True)
class Chunk:
    """Row groups of one file that one task reads.

    Attributes:
        file: name of the file.
        row_groups: numbers of the row groups.
        rows: number of rows in them.
    """

    file: str
    row_groups: list[int]
    rows: int


@dataclass(frozen=True)
class ImportPlan:
    """What an import has to do.

    Attributes:
        table: directory of the table's files.
        chunks: what to read; empty if the features directory holds this very table already.
        identity: the identity of the features.
        digest: the digest of the table's files.
        uri: location of the table.
    """

    table: Store
    chunks: list[Chunk]
    identity: Identity
    digest: str
    uri: str

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)


def plan_import(uri: str, backbone: str, store: Store) -> ImportPlan:
    """Checks columns and ids of a whole table before anything is written.

    Holds all ids, about 100 bytes a row.

    Args:
        uri: a Parquet file, or a directory of them.
        backbone: name of the network that made the features.
        store: the features directory.

    Raises:
        InputError: the table is empty, lacks a column, has an id twice or features of two types,
            or the directory holds another network's features.
    """
    table, files = find_table_files(uri, "table")
    digest = digest_files(uri, "table")
    precision, dim, chunks = _scan(table, files, uri)
    identity = Identity(
        backbone=backbone,
        weights_digest="unknown",
        preprocessing={},
        precision=precision,
        dim=dim,
    )
    if store.exists(FEATURES_MANIFEST):
        manifest = read_manifest(store)
        require_same_identity(manifest.identity, identity, store, "backbone")
        if manifest.settings == import_settings(digest):
            chunks = []
    return ImportPlan(table, chunks, identity, digest, uri)


def _scan(table: Store, files: Sequence[str], uri: str) -> tuple[str, int, list[Chunk]]:
    """The type of the features, D, and the chunks of a table, whose ids are checked on the way.

    Raises:
        InputError: as `plan_import`.
    """
    ids: list[pa.ChunkedArray] = []
    chunks: list[Chunk] = []
    precisions = set()
    for file in files:
        with open_table(table, file) as parquet:
            dtype = decoded_type(parquet.schema_arrow.field("feature").type)
            if not pa.types.is_null(dtype):  # pandas writes the type null for a file without rows
                precisions.add(_PRECISION[str(dtype.value_type)])
            groups = range(parquet.num_row_groups)
            ids += [
                rows["item_id"] for rows in read_rows(table, parquet, file, groups, FEATURES[:1])
            ]
            chunks += _chunks(parquet, file)
    if not chunks:
        raise InputError(
            f"{uri} (--table) has no rows; expected at least one.", path=uri, key="table"
        )
    if len(precisions) > 1:
        raise SchemaError(
            f"{uri} (--table) has features in {' and '.join(sorted(precisions))}; expected one "
            "type in all of its files.",
            path=uri,
            key="table",
            column="feature",
        )
    _require_distinct(pa.chunked_array(ids), uri)
    dim = _first_width(table, chunks[0])  # refuses nulls, so that there is a type
    return precisions.pop(), dim, chunks


@contextmanager
def open_table(table: Store, file: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file, to read it in pieces, and checks its columns."""
    where = table_location(table, file)
    with (
        table.open_input(file) as source,
        table_errors(where),
        open_parquet(source, where) as parquet,
    ):
        check_columns(parquet.schema_arrow, FEATURES, where)
        yield parquet


def table_location(table: Store, file: str) -> str:
    """The file and its key, for errors."""
    return f"{table.uri(file)} (--table)"


def read_rows(
    table: Store,
    parquet: pq.ParquetFile,
    file: str,
    groups: Sequence[int],
    columns: Sequence[Column],
    size: int = PART_ROWS,
) -> Iterator[pa.Table]:
    """Some columns of the row groups of an open file, `size` rows at a time, as declared."""
    names = [column.name for column in columns]
    for batch in parquet.iter_batches(size, list(groups), names, use_threads=False):
        yield conform(pa.Table.from_batches([batch]), columns, table_location(table, file))


def _chunks(parquet: pq.ParquetFile, file: str) -> Iterator[Chunk]:
    """The row groups of a file; small ones are grouped until they fill a part."""
    groups: list[int] = []
    rows = 0
    for group in range(parquet.num_row_groups):
        more = parquet.metadata.row_group(group).num_rows
        if rows and rows + more > PART_ROWS:
            yield Chunk(file, groups, rows)
            groups, rows = [], 0
        groups.append(group)
        rows += more
    if rows:
        yield Chunk(file, groups, rows)


def _first_width(table: Store, chunk: Chunk) -> int:
    """D of the first row.

    Raises:
        InputError: its feature is empty.
    """
    with open_table(table, chunk.file) as parquet:
        first = next(read_rows(table, parquet, chunk.file, chunk.row_groups, FEATURES[1:], size=1))
    width = len(first["feature"][0])
    if not width:
        raise InputError(
            f"The first feature of {table_location(table, chunk.file)} is empty; expected numbers.",
            path=table.uri(chunk.file),
            key="table",
        )
    return width


def _require_distinct(item_ids: pa.ChunkedArray, uri: str) -> None:
    counts = item_ids.value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        examples = ", ".join(sorted(row["values"] for row in repeated[:5].to_pylist()))
        raise InputError(
            f"{len(repeated)} item ids occur more than once in {uri} (--table), such as "
            f"{examples}; expected one feature per item. Remove the repeated rows from the table.",
            path=uri,
            key="table",
        )


def import_settings(digest: str) -> dict[str, str]:
    """The `settings` of the manifest of an imported table."""
    return {"table": digest}
