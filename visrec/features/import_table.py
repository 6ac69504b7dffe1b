"""The Ray Data steps from a table of features computed elsewhere to a features directory.

    plan    checks columns and ids of the whole table; groups small row groups into chunks
    chain   one task per chunk checks the numbers, rounds them to float16 and writes parts
    commit  moves the manifest to exactly the table's rows

The only thing known about the network is the name that the user gives it. So a changed table under
the same name replaces the table before it, as changed pictures do, and models trained on that name
stay valid. Another name means another network, and is refused.

Shapes: B rows, R rejected rows, P parts, D features.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from ray.data import Dataset

from visrec.errors import InputError, SchemaError
from visrec.features.commit import (
    TableContent,
    commit_table,
    count_rejected,
    manifest_version,
    write_part,
    write_rejected,
)
from visrec.features.table import (
    MANIFEST,
    REJECTED_FOLDER,
    Identity,
    Manifest,
    read_index,
    read_manifest,
    require_same_identity,
)
from visrec.progress import ProgressHandle, Timer
from visrec.storage.arrow_values import decoded_type
from visrec.storage.schemas import FEATURES, REJECTED, Column, check_columns, conform
from visrec.storage.store import Store
from visrec.storage.table_files import find_table_files, table_errors
from visrec.storage.tables import digest_files, open_parquet, require_unchanged

_PART_ROWS = 4096  # 42 MB at D = 1280 while the rows are checked as float64
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
        identity: of the features.
        digest: of the table's files.
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
    precision, chunks = _scan(table, files, uri)
    identity = Identity(
        backbone=backbone,
        weights_digest="unknown",
        preprocessing={},
        precision=precision,
        dim=_first_width(table, chunks[0]),
    )
    if store.exists(MANIFEST):
        manifest = read_manifest(store)
        require_same_identity(manifest.identity, identity, store, "backbone")
        if manifest.settings == _settings(digest):
            chunks = []
    return ImportPlan(table, chunks, identity, digest, uri)


def _scan(table: Store, files: Sequence[str], uri: str) -> tuple[str, list[Chunk]]:
    """The type of the features and the chunks of a table, whose ids are checked on the way.

    Raises:
        InputError: as `plan_import`.
    """
    ids: list[pa.ChunkedArray] = []
    chunks: list[Chunk] = []
    precisions = set()
    for file in files:
        with _open(table, file) as parquet:
            dtype = decoded_type(parquet.schema_arrow.field("feature").type)
            if not pa.types.is_null(dtype):  # pandas writes the type null for a file without rows
                precisions.add(_PRECISION[str(dtype.value_type)])
            groups = range(parquet.num_row_groups)
            ids += [rows["item_id"] for rows in _read(table, parquet, file, groups, FEATURES[:1])]
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
    return precisions.pop(), chunks


@contextmanager
def _open(table: Store, file: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file, to read it in pieces, and checks its columns."""
    where = _where(table, file)
    with (
        table.open_input(file) as source,
        table_errors(where),
        open_parquet(source, where) as parquet,
    ):
        check_columns(parquet.schema_arrow, FEATURES, where)
        yield parquet


def _where(table: Store, file: str) -> str:
    """The file and its key, for errors."""
    return f"{table.uri(file)} (--table)"


def _read(
    table: Store,
    parquet: pq.ParquetFile,
    file: str,
    groups: Sequence[int],
    columns: Sequence[Column],
    size: int = _PART_ROWS,
) -> Iterator[pa.Table]:
    """Some columns of the row groups of an open file, `size` rows at a time, as declared."""
    names = [column.name for column in columns]
    for batch in parquet.iter_batches(size, list(groups), names, use_threads=False):
        yield conform(pa.Table.from_batches([batch]), columns, _where(table, file))


def _chunks(parquet: pq.ParquetFile, file: str) -> Iterator[Chunk]:
    """The row groups of a file; small ones are grouped until they fill a part."""
    groups: list[int] = []
    rows = 0
    for group in range(parquet.num_row_groups):
        more = parquet.metadata.row_group(group).num_rows
        if rows and rows + more > _PART_ROWS:
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
    with _open(table, chunk.file) as parquet:
        first = next(_read(table, parquet, chunk.file, chunk.row_groups, FEATURES[1:], size=1))
    width = len(first["feature"][0])
    if not width:
        raise InputError(
            f"The first feature of {_where(table, chunk.file)} is empty; expected numbers.",
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


def _settings(digest: str) -> dict[str, str]:
    """The `settings` of the manifest of an imported table."""
    return {"table": digest}


def import_chain(plan: ImportPlan, store: Store, progress_actor: ProgressHandle) -> Dataset:
    """The chain over a plan's chunks; its rows name the files that were written."""
    chunks = len(plan.chunks)
    return ray.data.range(chunks, override_num_blocks=chunks).map_batches(
        ImportChunk(plan, store, progress_actor), batch_size=1, num_cpus=1
    )


@dataclass(frozen=True)
class ImportChunk:
    """The number of a chunk in, the names of the files written for it out."""

    plan: ImportPlan
    store: Store
    progress_actor: ProgressHandle

    # Ray Data types the argument of a step as a union of all batch formats.
    def __call__(self, batch: Any) -> dict[str, list[str]]:
        timer, table = Timer(self.progress_actor), self.plan.table
        chunk = self.plan.chunks[int(batch["id"][0])]
        names: list[str] = []
        with _open(table, chunk.file) as parquet:
            for rows in _read(table, parquet, chunk.file, chunk.row_groups, FEATURES):
                with timer.phase("write"):
                    names += self._write(rows, _where(table, chunk.file))
                timer.report(rows=len(rows))
        return {"name": names}

    def _write(self, rows: pa.Table, where: str) -> Iterator[str]:
        """Writes rows that fit into float16 to a part, and the others to a file of rejections."""
        identity = self.plan.identity
        wide_BD = _matrix(rows, identity.dim, where)
        with np.errstate(over="ignore"):
            feature_BD = wide_BD.astype(np.float16)
        is_finite_B = np.isfinite(feature_BD).all(axis=1)
        if is_finite_B.any():
            part = rows.select(["item_id"]).filter(pa.array(is_finite_B))
            digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in feature_BD[is_finite_B]]
            part = part.append_column("digest", pa.array(digests))
            part = part.append_column("source", pa.nulls(len(digests), pa.string()))
            yield write_part(self.store, part, feature_BD[is_finite_B], identity)
        if not is_finite_B.all():
            item_ids = rows["item_id"].filter(pa.array(~is_finite_B))
            yield write_rejected(self.store, _rejected(item_ids, wide_BD[~is_finite_B]), identity)


def _rejected(item_ids: pa.ChunkedArray, wide_RD: npt.NDArray[np.float64]) -> pa.Table:
    """The rejections of features that do not fit into float16, with the value to blame."""
    # argmax finds NaN before infinity, and infinity before the largest number.
    largest_R = np.take_along_axis(wide_RD, np.abs(wide_RD).argmax(axis=1)[:, None], 1)[:, 0]
    return pa.table(
        {
            "item_id": item_ids,
            "reason": [
                "feature_beyond_float16" if is_finite else "feature_not_finite"
                for is_finite in np.isfinite(largest_R)
            ],
            "detail": [f"found {value:g}" for value in largest_R],
            "source": pa.nulls(len(item_ids), pa.string()),
        }
    )


def _matrix(rows: pa.Table, dim: int, where: str) -> npt.NDArray[np.float64]:
    """(B, D) features of a table, with nulls as NaN.

    Raises:
        InputError: a feature does not have D numbers.
    """
    feature = rows["feature"].combine_chunks()
    width_B = pc.list_value_length(feature).to_numpy()
    if (width_B != dim).any():
        b = int(np.flatnonzero(width_B != dim)[0])
        raise InputError(
            f"{where}: the feature of {rows['item_id'][b]} has {width_B[b]:g} numbers; expected "
            f"{dim}, as in the first row.",
            key="table",
        )
    return np.asarray(feature.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim))


def commit_import(
    plan: ImportPlan, written: list[str], store: Store, max_rejected: float
) -> tuple[Manifest, dict[str, int]]:
    """Makes the features directory hold exactly the table's rows.

    Args:
        plan: of the import.
        written: names of the files that the import has written.
        store: the features directory.
        max_rejected: the largest share of the rows that may be rejected.

    Returns:
        The manifest, and the number of rejected rows by reason.

    Raises:
        InputError: a larger share was rejected, or the table changed while it was read; nothing
            was committed.
        ConflictError: another run committed in the meantime.
    """
    version = manifest_version(store)
    require_unchanged({"table": plan.digest}, {"table": digest_files(plan.uri, "table")})
    rejected_names = sorted(name for name in written if name.startswith(REJECTED_FOLDER))
    parts = sorted(set(written) - set(rejected_names))
    rows = read_index(store, parts, plan.identity, ["item_id", "digest"])
    rejected = read_index(store, rejected_names, plan.identity, REJECTED.names)
    rejected = rejected.select(REJECTED.names).cast(REJECTED).sort_by("item_id")
    reasons = count_rejected(rejected, plan.rows, max_rejected, store, "rows")
    rows_P = np.bincount(rows["part"].to_numpy(), minlength=len(parts)).tolist()
    content = TableContent(
        identity=plan.identity,
        rows=rows,
        files=dict(zip(parts, rows_P, strict=True)),
        rejected=rejected,
        settings=_settings(plan.digest),
    )
    return commit_table(store, content, version), reasons
