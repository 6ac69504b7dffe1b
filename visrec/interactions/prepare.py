"""Prepares tables in tasks: assigns rows to partitions by a hash of the user, and sorts each
partition.

The tables are those that name users: the interactions, the users table and the block list. A task
reads a piece of a table, which is a part of one file. While the files of a table are unchanged,
nothing is read. If files were added whose names sort after those that are there, only these are
read, and only the partitions of their users are rewritten. Each file that is written is named by a
digest of its inputs, so a job continues where another one was killed. Readers see only what the
manifest names.

Shapes: P partitions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visrec.capacity import partition_count
from visrec.config import digest
from visrec.errors import ConflictError, MissingFileError
from visrec.interactions.partition_rows import PartitionedPiece, partition_piece, write_partition
from visrec.interactions.prepared import (
    MANIFEST_VERSION,
    OPTIONAL_COLUMNS,
    PREPARED_MANIFEST,
    PreparedManifest,
    PreparedTable,
)
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import INTERACTIONS, Column
from visrec.storage.store import Store, parse_json, to_json
from visrec.storage.table_files import MISSING, TableFile, file_fingerprints, list_table_files
from visrec.storage.table_pieces import TablePiece, split_file
from visrec.storage.tables import require_same_unit
from visrec.tasks import map_calls

_PIECES = "pieces"


def prepare_table(
    table: InputTable, columns: Sequence[Column], root: Store, partitions: int | None = None
) -> PreparedTable:
    """Prepares a table that names users, as far as it is not prepared already.

    Args:
        table: where its files are.
        columns: those that are declared of it: of interactions, users or a block list.
        root: contains a directory for each table.
        partitions: P; by default a power of two that follows the number of rows.

    Raises:
        InputError: the table cannot be read.
        ConflictError: other processes changed the table, or the prepared files, in both tries.
        MissingFileError: another process removed a file while it was used, in both tries.
    """
    try:
        return _prepare(table, columns, root, partitions)
    except (ConflictError, MissingFileError):
        # The files changed, or another process committed first and has removed the pieces.
        return _prepare(table, columns, root, partitions)


def prepare_if_possible(
    config: InteractionsConfig, uri: str | None, root: Store | None
) -> PreparedTable | None:
    """The prepared interactions; None if the files themselves are to be read.

    This is the case if there are no interactions or no directory to prepare them in, or if other
    processes keep changing the files: one may keep growing by rows after the cutoff.
    """
    if uri is None or root is None:
        return None
    try:
        return prepare_table(config.table(uri), INTERACTIONS, root)
    except (ConflictError, MissingFileError):
        return None


def _prepare(
    table: InputTable, columns: Sequence[Column], root: Store, partitions: int | None
) -> PreparedTable:
    # A file may be two tables: the interactions are also the users table of a shop, for example.
    names = [column.name for column in columns]
    store = root / table.identify(digest(Store.at(table.uri).root, names))
    files = list(list_table_files(table))
    inputs = _fingerprints(files)
    last, version = _read_manifest(store)
    listed = {info.name for info in store.list()}
    if last and not last.fits(partitions, listed):
        last = None
    if last and last.inputs == inputs:
        return PreparedTable(table, store, last)
    plan = _plan(files, columns, inputs, last, partitions)
    pieces = {f"{stem}.{type_}" for stem in plan.piece_stems for type_ in ("arrow", "json")}
    partitioned = _partition(plan, store)
    if _fingerprints(files) != inputs:
        store.delete(pieces)  # they may hold rows of the changed files
        raise ConflictError(f"The files at {table.uri} changed while they were read.")
    manifest = _sort(plan, partitioned, store)
    if not store.compare_and_swap(PREPARED_MANIFEST, to_json(manifest.to_dict()), version):
        raise ConflictError(
            f"Other jobs keep changing the prepared table at {store.root}; run again when they "
            "have ended.",
            path=store.uri(PREPARED_MANIFEST),
        )
    # Processes that read the last manifest may still be reading its partitions. Files that another
    # process has committed since `listed` are not this one's to remove.
    named = {PREPARED_MANIFEST, *manifest.parts_P, *(last.parts_P if last else ())}
    store.delete((listed | pieces) - named)
    return PreparedTable(table, store, manifest)


def _fingerprints(files: Sequence[TableFile]) -> dict[str, str]:
    """What changes with the content of each file.

    Raises:
        ConflictError: a file is not listed, so its changes would not be seen.
    """
    found = file_fingerprints(files)
    if unseen := [name for name, fingerprint in found.items() if fingerprint == MISSING]:
        raise ConflictError(f"{files[0].store.uri(unseen[0])} is no longer listed.")
    return found


def _read_manifest(store: Store) -> tuple[PreparedManifest | None, str | None]:
    """The manifest and the version of its file, for a conditional write.

    Both are None if there is no file; the manifest alone is None if another release of visrec wrote
    it.
    """
    found = store.read_if_exists(PREPARED_MANIFEST)
    if found is None:
        return None, None
    data, version = found
    return PreparedManifest.from_dict(parse_json(data, store.uri(PREPARED_MANIFEST))), version


@dataclass(frozen=True)
class _Plan:
    """What is read, and what is kept.

    Attributes:
        columns: the declared ones.
        inputs: the fingerprints of all files.
        base: the partitions that are kept; without any if everything is read.
        pieces: those of the added files, in the order of their rows.
    """

    columns: Sequence[Column]
    inputs: Mapping[str, str]
    base: PreparedManifest
    pieces: Sequence[TablePiece]

    @property
    def piece_stems(self) -> list[str]:
        """The names of the files of the partitioned pieces, without extension."""
        return [
            f"{_PIECES}/{digest(p.file.name, self.inputs[p.file.name], p.span, self._version)}"
            for p in self.pieces
        ]

    def part_name(self, partition: int, files: Sequence[str]) -> str:
        """The name of a partition's file once these pieces are added to it."""
        content = digest(self.base.parts_P[partition], files, self._version)
        return f"partition={partition}/{content}.parquet"

    @property
    def _version(self) -> tuple[int, int]:
        return MANIFEST_VERSION, self.base.partitions


def _plan(
    files: Sequence[TableFile],
    columns: Sequence[Column],
    inputs: Mapping[str, str],
    last: PreparedManifest | None,
    partitions: int | None,
) -> _Plan:
    """What to read: only the files that were added, or all if files changed or P is too small."""
    base = last if last and last.is_prefix_of(inputs) else PreparedManifest.empty(partitions or 1)
    added = [file for file in files if file.name not in base.inputs]
    splits = _map(split_file, [(file, columns) for file in added])
    pieces = [piece for split in splits for piece in split]
    wanted = partitions or partition_count(sum(base.rows_P) + sum(piece.rows for piece in pieces))
    if not base.inputs:
        base = PreparedManifest.empty(wanted)
    elif wanted > 2 * base.partitions:  # P is too small: start over, without a base
        return _plan(files, columns, inputs, None, partitions)
    return _Plan(columns, inputs, base, pieces)


def _partition(plan: _Plan, store: Store) -> list[PartitionedPiece]:
    calls = [
        (piece, plan.columns, store, stem, plan.base.partitions)
        for piece, stem in zip(plan.pieces, plan.piece_stems, strict=True)
    ]
    partitioned: list[PartitionedPiece] = _map(partition_piece, calls)
    units: dict[str, str | None] = {}
    for piece, output in zip(plan.pieces, partitioned, strict=True):
        file = piece.file
        known = units.get(file.name)
        units[file.name] = require_same_unit(known, output.unit, "timestamp", file.where)
    return partitioned


def _sort(plan: _Plan, partitioned: Sequence[PartitionedPiece], store: Store) -> PreparedManifest:
    """Writes the partitions to which pieces add rows; returns the new manifest."""
    base = plan.base
    partitions = plan.base.partitions
    parts_P, rows_P = list(base.parts_P), list(base.rows_P)
    touched = [p for p in range(partitions) if any(output.rows_P[p] for output in partitioned)]
    calls = []
    for p in touched:
        files = [output.file for output in partitioned if output.rows_P[p]]
        parts_P[p] = plan.part_name(p, files)
        calls.append((store, parts_P[p], (p, partitions), base.parts_P[p], files))
    for p, rows in zip(touched, _map(write_partition, calls), strict=True):
        rows_P[p] = rows
    found = {name for output in partitioned for name in output.columns}
    pairs = zip(plan.pieces, partitioned, strict=True)
    lacking = {piece.file.where for piece, output in pairs if "rating" in output.lacking}
    return PreparedManifest(
        inputs=plan.inputs,
        parts_P=parts_P,
        rows_P=rows_P,
        columns=[name for name in OPTIONAL_COLUMNS if name in found | {*base.columns}],
        without_rating=[*base.without_rating, *sorted(lacking)],
    )


def _map(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The results of several calls, in tasks; one alone is no faster in a process of its own."""
    return map_calls(function, calls) if len(calls) > 1 else [function(*call) for call in calls]
