"""Prepares interactions in tasks: deals the rows of pieces to partitions, and sorts each partition.

Nothing is read while the files of the interactions are the same. Where files were added after them,
only those are read, and only the partitions of their users are written again. The name of a
file is a digest of its sources, so a run continues where another one was killed. Readers see only
what the manifest names.

Shapes: P partitions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visrec.config import digest
from visrec.errors import ConflictError, MissingFileError
from visrec.interactions.partition_rows import DealtPiece, deal_piece, write_partition
from visrec.interactions.prepared import (
    MANIFEST,
    MANIFEST_VERSION,
    OPTIONAL_COLUMNS,
    PreparedInteractions,
    PreparedManifest,
)
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import INTERACTIONS
from visrec.storage.store import Store, parse_json, to_json
from visrec.storage.table_files import MISSING, TableFile, file_fingerprints, list_table_files
from visrec.storage.table_pieces import TablePiece, split_file
from visrec.storage.tables import require_same_unit
from visrec.tasks import map_calls

_PARTITION_ROWS = 2_000_000  # aimed at, up to twice as many before P grows; a task holds 200 B each
_PIECES = "pieces"


def prepare_interactions(
    table: InputTable, root: Store, partitions: int | None = None
) -> PreparedInteractions:
    """Prepares interactions, as far as they are not prepared already.

    Args:
        table: the interactions.
        root: contains a directory for each table.
        partitions: P; by default a power of two that follows the number of rows.

    Raises:
        InputError: the interactions cannot be read.
        ConflictError: others keep changing the interactions or what is prepared of them.
    """
    try:
        return _prepare(table, root, partitions)
    except (ConflictError, MissingFileError):
        # Another process committed first, and has removed the pieces.
        return _prepare(table, root, partitions)


def prepare_if_asked(
    config: InteractionsConfig, uri: str | None, root: Store | None
) -> PreparedInteractions | None:
    """`prepare_interactions`; None if they are to be read from their own files.

    That is so without interactions, without a directory for it, and while others keep changing
    them: a file may grow by rows after the cutoff all the time.
    """
    if uri is None or root is None:
        return None
    try:
        return prepare_interactions(config.table(uri), root)
    except ConflictError:
        return None


def partition_count(rows: int) -> int:
    """The number of partitions for so many rows: a power of two, so that it rarely changes."""
    return 1 << max(0, (rows - 1) // _PARTITION_ROWS).bit_length()


def _prepare(table: InputTable, root: Store, partitions: int | None) -> PreparedInteractions:
    store = root / table.identify(digest(Store.at(table.uri).root))
    files = list(list_table_files(table))
    inputs = _fingerprints(files)
    last, version = _read_manifest(store)
    listed = {info.name for info in store.list()}
    if last and not last.fits(partitions, listed):
        last = None
    if last and last.inputs == inputs:
        return PreparedInteractions(table, store, last)
    plan = _plan(files, inputs, last, partitions)
    pieces = {f"{name}.{end}" for name in plan.piece_names for end in ("arrow", "json")}
    dealt = _deal(plan, store)
    if _fingerprints(files) != inputs:
        store.delete(pieces)  # their rows may be those of later files
        raise ConflictError(f"The interactions at {table.uri} changed while they were read.")
    manifest = _sort(plan, dealt, store)
    if not store.compare_and_swap(MANIFEST, to_json(manifest.to_dict()), version):
        raise ConflictError(
            f"Other jobs keep changing the prepared interactions at {store.root}; run again when "
            "they have ended.",
            path=store.uri(MANIFEST),
        )
    # Processes that read the last manifest may still be reading its partitions, and those of a
    # process that has committed since are not ours to remove.
    named = {MANIFEST, *manifest.parts_P, *(last.parts_P if last else ())}
    store.delete((listed | pieces) - named)
    return PreparedInteractions(table, store, manifest)


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
    """The manifest and the version of its file; None as far as there is none."""
    found = store.read_if_exists(MANIFEST)
    if found is None:
        return None, None
    data, version = found
    return PreparedManifest.from_dict(parse_json(data, store.uri(MANIFEST))), version


@dataclass(frozen=True)
class _Plan:
    """What is to be read.

    Attributes:
        inputs: the fingerprints of all files.
        base: what stays; empty where everything is read.
        pieces: of the other files, in the order of their rows.
    """

    inputs: Mapping[str, str]
    base: PreparedManifest
    pieces: Sequence[TablePiece]

    @property
    def piece_names(self) -> list[str]:
        """The names of the dealt pieces, without extension."""
        return [
            f"{_PIECES}/{digest(p.file.name, self.inputs[p.file.name], p.span, self._version)}"
            for p in self.pieces
        ]

    def part_name(self, partition: int, dealt: Sequence[str]) -> str:
        """The name of a partition's file once these pieces are added to it."""
        content = digest(self.base.parts_P[partition], dealt, self._version)
        return f"partition={partition}/{content}.parquet"

    @property
    def _version(self) -> tuple[int, int]:
        return MANIFEST_VERSION, self.base.partitions


def _plan(
    files: Sequence[TableFile],
    inputs: Mapping[str, str],
    last: PreparedManifest | None,
    partitions: int | None,
) -> _Plan:
    """Reads only what was added, unless files changed or there are too many rows for P."""
    base = last if last and last.starts(inputs) else PreparedManifest.empty(partitions or 1)
    added = [file for file in files if file.name not in base.inputs]
    splits = _map(split_file, [(file, INTERACTIONS) for file in added])
    pieces = [piece for split in splits for piece in split]
    wanted = partitions or partition_count(sum(base.rows_P) + sum(piece.rows for piece in pieces))
    if not base.inputs:
        base = PreparedManifest.empty(wanted)
    elif wanted > 2 * base.partitions:
        return _plan(files, inputs, None, partitions)
    return _Plan(inputs, base, pieces)


def _deal(plan: _Plan, store: Store) -> list[DealtPiece]:
    calls = [
        (piece, store, name, plan.base.partitions)
        for piece, name in zip(plan.pieces, plan.piece_names, strict=True)
    ]
    dealt: list[DealtPiece] = _map(deal_piece, calls)
    units: dict[str, str | None] = {}
    for piece, one in zip(plan.pieces, dealt, strict=True):
        file = piece.file
        known = units.get(file.name)
        units[file.name] = require_same_unit(known, one.unit, "timestamp", file.where)
    return dealt


def _sort(plan: _Plan, dealt: Sequence[DealtPiece], store: Store) -> PreparedManifest:
    """Writes the partitions that have rows of the pieces."""
    base, partitions = plan.base, plan.base.partitions
    parts_P, rows_P = list(base.parts_P), list(base.rows_P)
    touched = [p for p in range(partitions) if any(piece.rows_P[p] for piece in dealt)]
    calls = []
    for p in touched:
        names = [piece.name for piece in dealt if piece.rows_P[p]]
        parts_P[p] = plan.part_name(p, names)
        calls.append((store, parts_P[p], (p, partitions), base.parts_P[p], names))
    for p, rows in zip(touched, _map(write_partition, calls), strict=True):
        rows_P[p] = rows
    found = {name for piece in dealt for name in piece.columns}
    read = zip(plan.pieces, dealt, strict=True)
    lacking = {piece.file.where for piece, one in read if "rating" in one.lacking}
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
