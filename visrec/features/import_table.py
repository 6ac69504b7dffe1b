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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data import Dataset

from visrec.errors import InputError
from visrec.features.commit import (
    TableContent,
    commit_table,
    count_rejected,
    manifest_version,
    write_part,
    write_rejected,
)
from visrec.features.import_planning import (
    ImportPlan,
    import_settings,
    open_table,
    read_rows,
    table_location,
)
from visrec.features.table import REJECTED_FOLDER, Manifest, read_index
from visrec.progress import ProgressHandle, Timer
from visrec.storage.schemas import FEATURES, REJECTED
from visrec.storage.store import Store
from visrec.storage.tables import digest_files, require_unchanged


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
        with open_table(table, chunk.file) as parquet:
            for rows in read_rows(table, parquet, chunk.file, chunk.row_groups, FEATURES):
                with timer.phase("write"):
                    names += self._write(rows, table_location(table, chunk.file))
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
        plan: the import's plan.
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
        settings=import_settings(plan.digest),
    )
    return commit_table(store, content, version), reasons
