"""Imports data sets and exports of other systems into a workspace.

visrec import movielens ml-latest-small --workspace movies
visrec import retail orders_export.csv --workspace shop
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.cli.summary import Summary
from visrec.config import check_fields
from visrec.errors import InputError
from visrec.importers import amazon, movielens, recbole, retail
from visrec.importers.base import PICTURE, Imported, Source
from visrec.pipelines.night_command import visrec_command
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
    """Imports data of another system into a workspace.

    Attributes:
        format: movielens, recbole, amazon (reviews as JSON lines) or retail (an order export).
        path: its file, or the folder of its files.
    """

    format: SourceFormat
    path: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "")
        if not self.path:
            raise InputError(
                f"Found no path; expected the file or the folder to import, as in `visrec import "
                f"{self.format} PATH`.",
                key="path",
            )


def check(config: ImportDataJob) -> None:
    workspace = Store.at(config.workspace)
    for name in ("interactions", "items", "images"):
        found = find_workspace_table(workspace, name, name)
        if found is None and any(True for _ in workspace.list(f"{name}/", follow_links=True)):
            found = workspace.uri(name)  # where pictures would be beside the imported table
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
            rows = _write(workspace, imported)
            if not rows[_INTERACTIONS]:
                raise InputError(
                    f"Found no interactions at {config.path}; expected at least one. Left out: "
                    f"{dict(imported.left_out) or 'none'}. Change --path.",
                    key="path",
                )
    except Exception:
        workspace.delete([_INTERACTIONS, _ITEMS, _PICTURES])  # else the next try is refused
        raise
    summary.rows = {
        "interactions": rows[_INTERACTIONS],
        "left out": dict(imported.left_out),
        "encodings": source.foreign_encodings,
        "items": rows[_ITEMS],
        "pictures by address": rows[_PICTURES],
        "workspace": workspace.root,
        "next": visrec_command("check", config.workspace),
    }


def format_help(name: str) -> str:
    """What `visrec import` reads in a format, and the command; empty if there is no such format."""
    for format, reader in _READERS.items():
        if format == name:
            return (
                f"{sys.modules[reader.__module__].__doc__}\n"
                f"usage: visrec import {name} PATH [--workspace PATH] [--key value ...]\n\n"
                "PATH is a file, or the folder of the files. visrec import --help lists every key."
            )
    return ""


def _write(store: Store, imported: Imported) -> Counter[str]:
    """Writes each table as one Parquet file, a batch at a time, and counts its rows; no file if
    there are none."""
    rows: Counter[str] = Counter()
    writers: dict[str, pq.ParquetWriter] = {}
    with ExitStack() as open_files:
        for name, table in _batches(imported):
            if not len(table):
                continue
            if name not in writers:
                sink = open_files.enter_context(store.open_replacement(name))
                writer = pq.ParquetWriter(sink, table.schema)
                writers[name] = open_files.enter_context(writer)
            schema = writers[name].schema
            writers[name].write_table(table.select(schema.names).cast(schema))
            rows[name] += len(table)
    return rows


def _batches(imported: Imported) -> Iterator[tuple[str, pa.Table]]:
    """The batches of all tables, each with the name of its table."""
    for table in imported.complete_interactions():
        yield _INTERACTIONS, table
    for table in imported.distinct_items():
        if PICTURE in table.column_names:
            pictures = table.select(["item_id", PICTURE]).rename_columns(["item_id", "uri"])
            yield _PICTURES, pictures.filter(pictures["uri"].is_valid())
            table = table.drop_columns(PICTURE)
        yield _ITEMS, table
