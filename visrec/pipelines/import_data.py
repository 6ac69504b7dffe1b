"""Data sets and exports of other systems into a workspace.

visrec import movielens ml-latest-small --workspace movies
visrec import retail orders_export.csv --workspace shop
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.cli.summary import Summary
from visrec.config import check_fields
from visrec.errors import InputError
from visrec.importers import amazon, movielens, recbole, retail
from visrec.importers.base import Imported, Source
from visrec.storage.store import Store
from visrec.storage.workspace_tables import find_workspace_table

SourceFormat = Literal["movielens", "recbole", "amazon", "retail"]
_INTERACTIONS, _ITEMS = "interactions.parquet", "items.parquet"
_PICTURES = "images/pictures.parquet"
_READERS: dict[SourceFormat, Callable[[Source], Imported]] = {
    "movielens": movielens.read,
    "recbole": recbole.read,
    "amazon": amazon.read,
    "retail": retail.read,
}


@dataclass(frozen=True, kw_only=True)
class ImportDataJob(JobConfig):
    """Data of another system into a workspace.

    Attributes:
        format: movielens, recbole, amazon (reviews as JSON lines) or retail (an order export).
        path: its file, or the folder of its files.
    """

    format: SourceFormat
    path: str

    def __post_init__(self) -> None:
        check_fields(self, "")


def check(config: ImportDataJob) -> None:
    workspace = Store.at(config.workspace)
    for name in ("interactions", "items", "images"):
        found = find_workspace_table(workspace, name, name)
        if found is not None:
            raise InputError(
                f"{found} exists already; expected a workspace without {name}. Remove it, or "
                "change --workspace.",
                path=found,
                key="workspace",
            )


def main(config: ImportDataJob, summary: Summary) -> None:
    workspace = Store.at(config.workspace)
    source = Source.at(config.path)
    imported = _READERS[config.format](source)
    for note in imported.notes:
        say(note)
    workspace.check_writable()
    summary.has_written = True
    try:
        with summary.phase("import"):
            rows = {name: _write(workspace, name, table) for name, table in _tables(imported)}
            if not rows[_INTERACTIONS]:
                raise InputError(
                    f"Found no interactions at {config.path}; expected at least one. Left out: "
                    f"{dict(imported.left_out) or 'none'}. Change --path.",
                    key="path",
                )
    except Exception:
        workspace.delete(name for name, _ in _tables(imported))  # else the next try is refused
        raise
    summary.rows = {
        "interactions": rows[_INTERACTIONS],
        "left out": dict(imported.left_out),
        "items": rows[_ITEMS],
        "pictures by address": rows[_PICTURES],
        "workspace": workspace.root,
    }


def _tables(imported: Imported) -> Iterator[tuple[str, Iterable[pa.Table]]]:
    yield _INTERACTIONS, imported.interactions
    yield _ITEMS, imported.items
    yield _PICTURES, imported.pictures


def _write(store: Store, name: str, tables: Iterable[pa.Table]) -> int:
    """Writes a table as one Parquet file, a batch at a time; nothing if there are no rows."""
    rows = 0
    batches = (table for table in tables if len(table))
    first = next(batches, None)
    if first is None:
        return 0
    with store.open_replacement(name) as sink, pq.ParquetWriter(sink, first.schema) as writer:
        for table in chain([first], batches):
            writer.write_table(table.select(first.column_names).cast(first.schema))
            rows += len(table)
    return rows
