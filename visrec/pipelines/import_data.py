"""Imports data sets and exports of other systems into a workspace.

visrec import movielens ml-latest-small --workspace movies
visrec import retail orders_export.csv --workspace shop

A later import, such as that of each night's export, replaces the tables of the one before. Tables
from elsewhere are never replaced.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from visrec.cli.job import JobConfig
from visrec.cli.keys import config_keys
from visrec.cli.output import say
from visrec.cli.summary import Summary
from visrec.cli.workspace_keys import WorkspaceKeys, read_workspace_values
from visrec.config import check_fields
from visrec.errors import InputError
from visrec.importers import amazon, movielens, recbole, retail
from visrec.importers.base import PICTURE, Imported, Source
from visrec.pipelines.night_command import visrec_command
from visrec.storage.store import Store
from visrec.storage.tables import open_parquet
from visrec.storage.workspace_tables import find_workspace_table

SourceFormat = Literal["movielens", "recbole", "amazon", "retail"]
_INTERACTIONS, _ITEMS = "interactions.parquet", "items.parquet"
_PICTURES = "images/pictures.parquet"
_TABLES = {"interactions": _INTERACTIONS, "items": _ITEMS, "images": _PICTURES}
_IMPORTED = (
    b"visrec.import"  # in the metadata of a table's file: the format that it was imported from
)
# Beginnings of the keys that name tables, or columns of tables, that are imported.
_NAMES_OF_TABLES = ("images", "image_pattern", "interactions.path", "interactions.columns", "items")
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
    if config.workspace == JobConfig.workspace and "workspace" not in config.given_keys:
        raise InputError(  # the default is the demo's
            "Found no --workspace; expected the folder to import into, or s3://bucket/prefix.",
            key="workspace",
        )
    workspace = Store.at(config.workspace)
    _require_no_other_names(config.workspace)
    for name, table in _TABLES.items():
        found = find_workspace_table(workspace, name, name)
        files = [info.name for info in islice(workspace.list(f"{name}/", follow_links=True), 2)]
        if found is None and files:
            found = workspace.uri(name)  # where pictures would be beside the imported table
        if found is not None and not (files in ([], [table]) and _is_imported(workspace, table)):
            raise InputError(
                f"{found} exists already; expected a workspace without {name}, or with those of an "
                "earlier import. Remove it, or change --workspace.",
                path=found,
                key="workspace",
            )


def _require_no_other_names(workspace: str) -> None:
    """Refuses a workspace whose `visrec.yaml` names other tables, which jobs would read instead.

    Raises:
        InputError: it does.
    """
    remembered = read_workspace_values(workspace, config_keys(WorkspaceKeys))
    named = [key for key in remembered.values if key.startswith(_NAMES_OF_TABLES)]
    if named:
        raise InputError(
            f"Found {' and '.join(named)} in {remembered.path}; expected a workspace without, "
            "because jobs would read other tables or columns than the imported ones. Remove them, "
            "or change --workspace.",
            path=remembered.path,
            key="workspace",
        )


def _is_imported(workspace: Store, table: str) -> bool:
    """Whether a table is there and was written by an import."""
    if not workspace.exists(table):
        return False
    with workspace.open_input(table) as source, open_parquet(source, workspace.uri(table)) as file:
        return _IMPORTED in (file.schema_arrow.metadata or {})


def main(config: ImportDataJob, summary: Summary) -> None:
    workspace = Store.at(config.workspace)
    source = Source.at(config.path)
    imported = _READERS[config.format](source)
    for note in imported.notes:
        say(note)
    workspace.check_writable()
    before = {table for table in _TABLES.values() if workspace.exists(table)}
    summary.has_written = True
    try:
        with summary.phase("import"):
            rows = _write(workspace, imported, config.format)
            if not rows[_INTERACTIONS]:
                raise InputError(
                    f"Found no interactions at {config.path}; expected at least one. Left out: "
                    f"{dict(imported.left_out) or 'none'}. Change --path.",
                    key="path",
                )
    except Exception:
        workspace.delete(sorted({*_TABLES.values()} - before))
        raise
    workspace.delete(sorted(before - rows.keys()))
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
                f"usage: visrec import {name} PATH --workspace PATH [--key value ...]\n\n"
                "PATH is a file, or the folder of the files. visrec import --help lists every key."
            )
    return ""


def _write(store: Store, imported: Imported, format: SourceFormat) -> Counter[str]:
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
                schema = table.schema.with_metadata({_IMPORTED: format.encode()})
                writer = pq.ParquetWriter(sink, schema)
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
