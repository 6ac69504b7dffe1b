"""The Ray Data step from a table of features made elsewhere to a features directory.

    plan    columns and ids of the whole table are checked; row groups are put together to chunks
    chain   a task a chunk: numbers checked and rounded to float16, parts written
    commit  the manifest names exactly the table's rows

What is known of the network is the name that the user gives it. So a changed table under the same
name takes the place of the one before, as changed pictures do, and models trained on that name go
on; another name is another network, and refused.
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
    require_same,
)
from visrec.progress import Timer
from visrec.storage.column_types import plain_type
from visrec.storage.s3_clients import translated
from visrec.storage.schemas import FEATURES, REJECTED, Column, check, conform
from visrec.storage.store import Store
from visrec.storage.tables import (
    digest_files,
    opened_parquet,
    require_unchanged,
    table_errors,
    table_files,
)

_PART_ROWS = 4096  # 42 MB at D = 1280 while they are checked as float64
_PRECISION = {"halffloat": "float16", "float": "float32", "double": "float64"}


@dataclass(frozen=True)
class Chunk:
    """Row groups of one file that one task reads."""

    file: str
    groups: list[int]
    rows: int


@dataclass(frozen=True)
class ImportPlan:
    """What is to be done.

    Args:
        table: where the files are.
        chunks: what to read; empty where the directory holds this very table.
        identity: of the features.
        digest: of the table's files.
        uri: of the table.
    """

    table: Store
    chunks: list[Chunk]
    identity: Identity
    digest: str
    uri: str

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)


def plan_import(uri: str, name: str, store: Store) -> ImportPlan:
    """Checks columns and ids of a whole table before anything is written.

    Holds the ids, about 100 bytes a row.

    Args:
        uri: a Parquet file, or a directory of them.
        name: of the network that made the features.
        store: the features directory.

    Raises:
        InputError: the table is empty, lacks a column, has an id twice or features of two types,
            or another network's features are in the directory.
    """
    table, files = table_files(uri, "table")
    digest = digest_files(uri, "table")
    ids: list[pa.ChunkedArray] = []
    chunks: list[Chunk] = []
    types = set()
    for file in files:
        with _opened(table, file) as parquet:
            kind = plain_type(parquet.schema_arrow.field("feature").type)
            if not pa.types.is_null(kind):  # as pandas writes a file without rows
                types.add(_PRECISION[str(kind.value_type)])
            groups = range(parquet.num_row_groups)
            ids += [rows["item_id"] for rows in _read(table, parquet, file, groups, FEATURES[:1])]
            chunks += _chunks(parquet, file)
    if not chunks:
        raise InputError(f"{uri} (--table) has no rows; expected at least one.")
    if len(types) > 1:
        raise SchemaError(
            f"{uri} (--table) has features in {' and '.join(sorted(types))}; expected one type in "
            "all of its files."
        )
    _require_distinct(pa.chunked_array(ids), uri)
    dim = _first_width(table, chunks[0])
    identity = Identity(
        backbone=name,
        weights_digest="unknown",
        preprocessing={},
        precision=types.pop(),
        dim=dim,
    )
    if store.exists(MANIFEST):
        manifest = read_manifest(store)
        require_same(manifest.identity, identity, store, "name")
        if manifest.limits == _limits(digest):
            chunks = []
    return ImportPlan(table, chunks, identity, digest, uri)


@contextmanager
def _opened(table: Store, file: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file with the declared columns, which is read by pieces."""
    where = _where(table, file)
    with (
        translated("read", table.uri(file)),
        table_errors(where),
        table.filesystem().open_input_file(f"{table.path}/{file}") as source,
        opened_parquet(source, where) as parquet,
    ):
        check(parquet.schema_arrow, FEATURES, where)
        yield parquet


def _where(table: Store, file: str) -> str:
    return f"{table.uri(file)} (--table)"


def _read(
    table: Store,
    parquet: pq.ParquetFile,
    file: str,
    groups: Sequence[int],
    columns: Sequence[Column],
    size: int = _PART_ROWS,
) -> Iterator[pa.Table]:
    """Row groups of an opened file, `size` rows at a time, columns as declared."""
    names = [column.name for column in columns]
    for batch in parquet.iter_batches(size, list(groups), names, use_threads=False):
        yield conform(pa.Table.from_batches([batch]), columns, _where(table, file))


def _chunks(parquet: pq.ParquetFile, file: str) -> Iterator[Chunk]:
    """The row groups of a file, small ones put together until they fill a part."""
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
    with _opened(table, chunk.file) as parquet:
        first = next(_read(table, parquet, chunk.file, chunk.groups, FEATURES[1:], size=1))
    width = len(first["feature"][0])
    if not width:
        raise InputError(
            f"The first feature of {_where(table, chunk.file)} is empty; expected numbers."
        )
    return width


def _require_distinct(item_ids: pa.ChunkedArray, uri: str) -> None:
    counts = item_ids.value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        some = ", ".join(sorted(row["values"] for row in twice[:5].to_pylist()))
        raise InputError(
            f"{len(twice)} item ids occur more than once in {uri} (--table), such as {some}; "
            "expected one feature an item. Drop the others from the table."
        )


def _limits(digest: str) -> dict[str, str]:
    return {"table": digest}


def import_chain(plan: ImportPlan, store: Store, tally: Any) -> Dataset:
    """The chain over a plan's chunks; its rows name the files that were written."""
    chunks = len(plan.chunks)
    return ray.data.range(chunks, override_num_blocks=chunks).map_batches(
        ImportChunk(plan, store, tally), batch_size=1, num_cpus=1
    )


@dataclass(frozen=True)
class ImportChunk:
    """A chunk's number in, the names of the files written of it out."""

    plan: ImportPlan
    store: Store
    tally: Any

    def __call__(self, batch: Any) -> dict[str, list[str]]:
        timer, table = Timer(self.tally), self.plan.table
        chunk = self.plan.chunks[int(batch["id"][0])]
        names: list[str] = []
        with _opened(table, chunk.file) as parquet:
            for rows in _read(table, parquet, chunk.file, chunk.groups, FEATURES):
                with timer.phase("write"):
                    names += self._write(rows, _where(table, chunk.file))
                timer.done(rows=len(rows))
        return {"name": names}

    def _write(self, rows: pa.Table, where: str) -> Iterator[str]:
        identity = self.plan.identity
        wide_BD = _matrix(rows, identity.dim, where)
        with np.errstate(over="ignore"):
            feature_BD = wide_BD.astype(np.float16)
        fits_B = np.isfinite(feature_BD).all(axis=1)
        if fits_B.any():
            part = rows.select(["item_id"]).filter(pa.array(fits_B))
            digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in feature_BD[fits_B]]
            part = part.append_column("digest", pa.array(digests))
            part = part.append_column("source", pa.nulls(len(digests), pa.string()))
            yield write_part(self.store, part, feature_BD[fits_B], identity)
        if not fits_B.all():
            bad_RD = wide_BD[~fits_B]
            # NaN comes before infinity, and infinity before the largest number.
            worst_R = np.take_along_axis(bad_RD, np.abs(bad_RD).argmax(axis=1)[:, None], 1)[:, 0]
            columns = {
                "item_id": rows["item_id"].filter(pa.array(~fits_B)),
                "reason": [
                    "feature_beyond_float16" if finite else "feature_not_finite"
                    for finite in np.isfinite(worst_R)
                ],
                "detail": [f"found {worst:g}" for worst in worst_R],
                "source": pa.nulls(len(bad_RD), pa.string()),
            }
            yield write_rejected(self.store, pa.table(columns), identity)


def _matrix(rows: pa.Table, dim: int, where: str) -> npt.NDArray[np.float64]:
    """(B, D) the features of a table, nulls as NaN.

    Raises:
        InputError: one has not D numbers.
    """
    feature = rows["feature"].combine_chunks()
    width_B = pc.list_value_length(feature).to_numpy()
    if (width_B != dim).any():
        at = int(np.flatnonzero(width_B != dim)[0])
        raise InputError(
            f"{where}: the feature of {rows['item_id'][at]} has {width_B[at]:g} numbers; expected "
            f"{dim}, as the first row has."
        )
    return np.asarray(feature.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim))


def commit_import(
    plan: ImportPlan, written: list[str], store: Store, max_rejected: float
) -> tuple[Manifest, dict[str, int]]:
    """Makes the features directory hold exactly the table's rows, removes what is left over.

    Returns:
        The manifest, and rejected rows by reason.

    Raises:
        InputError: more than `max_rejected` of the rows were rejected, or the table changed while
            it was read; nothing was committed.
        ConflictError: another run committed in the meantime.
    """
    version = manifest_version(store)
    require_unchanged({"table": plan.digest}, {"table": digest_files(plan.uri, "table")})
    refused = sorted(name for name in written if name.startswith(REJECTED_FOLDER))
    parts = sorted(set(written) - set(refused))
    live = read_index(store, parts, plan.identity, ["item_id", "digest"])
    rejected = read_index(store, refused, plan.identity, REJECTED.names)
    rejected = rejected.select(REJECTED.names).cast(REJECTED).sort_by("item_id")
    reasons = count_rejected(rejected, plan.rows, max_rejected, store, "rows")
    rows_P = np.bincount(live["part"].to_numpy(), minlength=len(parts)).tolist()
    files = zip(parts, rows_P, strict=True)
    limits = _limits(plan.digest)
    return commit_table(store, plan.identity, live, files, rejected, limits, version), reasons
