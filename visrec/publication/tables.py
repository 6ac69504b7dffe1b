"""Tables for SQL readers, which show the published run and no other.

A reader who globs `run=*` sees runs that are not published. A table's log names the files of the
published run where they are, so no data is copied. It is committed right after the pointer, from
the same manifest. The pointer's file says which tables follow it, and

    nobody changes the pointer's file before every table is at the pointer (`read_settled_pointer`).

So a table has the lists of the published run, or, for a moment, those of the run before it. If a
process is killed in that moment, the next one that publishes, rolls back or removes runs moves the
table first. A commit replaces only the state of the table that this process has read, and it was
read while the pointer already named the run that the commit shows. So of two processes only one
commits, and a slow one cannot move a table back.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import get_args

from visrec.errors import InputError, did_you_mean
from visrec.publication.delta_table import DeltaTable
from visrec.publication.iceberg_table import IcebergTable
from visrec.publication.pointer import (
    Pointer,
    TableFormat,
    read_pointer,
    read_published,
    replace_pointer,
)
from visrec.publication.symlink_manifest import SymlinkManifest
from visrec.publication.table_content import Table, TableContent
from visrec.storage.store import Store

# Each reads the state of its table.
_TABLES: dict[TableFormat, Callable[[Store], Table]] = {
    "delta": DeltaTable,
    "iceberg": IcebergTable,
    "manifest": SymlinkManifest,
}


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """How lists reach readers who do not follow `_latest.json`.

    Attributes:
        table: tables for SQL readers, which show the published run and no other: delta, iceberg,
            manifest (Hive's symlink manifest), or several, separated by commas. They are moved by
            every later publication and rollback, too, whatever this key says then.
    """

    table: str | None = None

    def __post_init__(self) -> None:
        known = get_args(TableFormat)
        for name in self._names:
            if name not in known:
                raise InputError(
                    f"Found --publish.table {name}; expected {', '.join(known)}, or several of "
                    f"them, separated by commas{did_you_mean(name, known) or '.'}",
                    key="publish.table",
                )

    @property
    def tables(self) -> tuple[TableFormat, ...]:
        """The formats that are named."""
        return tuple(name for name in get_args(TableFormat) if name in self._names)

    @property
    def _names(self) -> list[str]:
        return [name for name in map(str.strip, (self.table or "").split(",")) if name]


def require_tables(recommendations: Store, tables: Collection[TableFormat]) -> None:
    """Checks that the tables which will follow the pointer can be read and written.

    Raises:
        InputError: a package is missing, or the log of a table is not what visrec wrote.
    """
    for name in {*tables, *read_pointer(recommendations)[0].tables}:
        _TABLES[name](recommendations)


def read_settled_pointer(recommendations: Store) -> tuple[Pointer, str | None]:
    """The pointer and the version of its file, once every table is at the pointer.

    A process that replaces that version knows that all tables showed the published run, so a table
    is at most one publication behind.

    Raises:
        InputError: the pointer or a table's log is damaged, or a package is missing.
    """
    while True:
        pointer, version = read_pointer(recommendations)
        if not pointer.tables:
            return pointer, version
        tables = [_TABLES[name](recommendations) for name in pointer.tables]
        content = _published_content(recommendations, pointer)
        if read_pointer(recommendations)[1] != version:
            continue
        behind = [table for table in tables if content and not table.shows(content)]
        if content is None or not behind:
            return pointer, version
        for table in behind:
            table.commit(content)


def add_tables(recommendations: Store, tables: Collection[TableFormat]) -> None:
    """Lets tables follow the pointer from now on, and brings them to the published run."""
    while True:
        pointer, version = read_settled_pointer(recommendations)
        followed = with_tables(pointer, tables)
        if followed == pointer or pointer.run_id is None:
            return
        replace_pointer(recommendations, followed, version)


def with_tables(pointer: Pointer, tables: Collection[TableFormat]) -> Pointer:
    """The pointer, followed by these tables in addition to those that follow it already."""
    followed = {*pointer.tables, *tables}
    return replace(pointer, tables=tuple(name for name in _TABLES if name in followed))


def _published_content(recommendations: Store, pointer: Pointer) -> TableContent | None:
    """What a table shows of the published run; None if nobody can read that run anyway, because
    its manifest is missing or damaged."""
    _, manifest = read_published(recommendations)
    if manifest is None:
        return None
    return TableContent(recommendations, manifest, pointer.sequence, str(pointer.manifest_sha256))
