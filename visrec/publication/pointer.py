"""`_latest.json`: which run is published. Every change is a compare-and-swap.

Publications, rollbacks and retention meet in this file. Retention writes the runs that it is about
to remove into it, by the same conditional write that moves the pointer. So nobody can move the
pointer to a run that is being removed, and no run that the pointer names is removed. In the same
way, `forget.py` writes the new manifests of runs into it before it replaces the old ones.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from visrec.errors import InputError
from visrec.publication.manifest import RunManifest, parse_manifest, read_manifest_bytes
from visrec.publication.records import VERSION, JsonObject, read_record, require_keys
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store, to_json

LATEST = "_latest.json"
TableFormat = Literal["delta", "iceberg", "manifest"]


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Which run is published. The defaults stand for a file that does not exist.

    Attributes:
        run_id: the published run.
        manifest: path of its manifest, below the recommendations.
        manifest_sha256: SHA-256 of the manifest's bytes.
        cutoff_timestamp: the published run knows interactions before this second of Unix time; if
            it has no cutoff, that of the publication before it.
        previous_run_id: the run that was published before; None for the first and after a rollback.
        published_at: when the pointer moved.
        rolled_back: runs that are not published again when a job finds them complete.
        sequence: how often the pointer has moved.
        removing: runs that retention is removing, each with the number of its removal.
        rewriting: runs from which users are being removed, each with the SHA-256 of its new
            manifest. Whoever moves the pointer to such a run names that manifest (`forget.py`).
        removals: how many removals of runs, or of users from runs, were begun; so no two states of
            the file have the same bytes.
        tables: tables for SQL readers that follow the pointer (`tables.py`).
        version: the version of this record.
    """

    run_id: str | None = None
    manifest: str | None = None
    manifest_sha256: str | None = None
    cutoff_timestamp: float | None = None
    previous_run_id: str | None = None
    published_at: str | None = None
    rolled_back: tuple[str, ...] = ()
    sequence: int = 0
    removing: Mapping[str, int] = field(default_factory=dict)
    rewriting: Mapping[str, str] = field(default_factory=dict)
    removals: int = 0
    tables: tuple[TableFormat, ...] = ()
    version: int = VERSION

    def to_dict(self) -> JsonObject:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: JsonObject) -> "Pointer":
        """The pointer with these fields; raises KeyError or TypeError for others."""
        require_keys(data, _REQUIRED, _TYPES.keys() - _REQUIRED)
        if wrong := [key for key, value in data.items() if not _TYPES[key](value)]:
            raise TypeError(f"found fields of the wrong type: {wrong}")
        tuples = {name: tuple(data.get(name, ())) for name in ("rolled_back", "tables")}
        return cls(**{**data, **tuples})


def read_pointer(recommendations: Store) -> tuple[Pointer, str | None]:
    """The pointer and the version of its file. Without a file: an empty pointer and None.

    Raises:
        InputError: the file is not a pointer.
    """
    found = recommendations.read_if_exists(LATEST)
    if found is None:
        return Pointer(), None
    remedy = (
        "expected the pointer that visrec wrote. Bring the file back from a copy; or remove it and "
        "run the job of a complete run again, which publishes that run."
    )
    return read_record(found[0], recommendations.uri(LATEST), Pointer.from_dict, remedy), found[1]


def replace_pointer(recommendations: Store, pointer: Pointer, version: str | None) -> bool:
    """Writes the pointer in place of the one that was read; False if another writer was first.

    Args:
        recommendations: where the runs are.
        pointer: the new pointer.
        version: the version of the file that was read, None if there was none.
    """
    return recommendations.compare_and_swap(LATEST, to_json(pointer.to_dict()), version)


def _read_published_bytes(recommendations: Store) -> tuple[Pointer, bytes | None]:
    """The pointer, and the bytes of the manifest that it names.

    While users are removed from the run, the manifest is replaced and may have a name of its own.

    Returns:
        For the manifest None if nothing is published, or if it is missing or is not what was
        published.

    Raises:
        InputError: the pointer is damaged.
    """
    while True:
        pointer, version = read_pointer(recommendations)
        if pointer.run_id is None:
            return pointer, None
        run = run_store(recommendations, pointer.run_id)
        data = read_manifest_bytes(run, str(pointer.manifest_sha256))
        if data is not None or read_pointer(recommendations)[1] == version:
            return pointer, data


def open_published(recommendations: Store) -> tuple[Pointer, RunManifest | None]:
    """The pointer and the published run's manifest, which is None if nothing is published.

    Raises:
        InputError: the pointer is damaged; or the manifest is missing, or is not what was
            published, or another version of visrec wrote it.
    """
    pointer, data = _read_published_bytes(recommendations)
    if pointer.run_id is None:
        return pointer, None
    uri = recommendations.uri(str(pointer.manifest))
    if data is None:
        raise InputError(
            f"{uri} is missing or is not the manifest that was published. Go back to the run "
            "before with `visrec rollback`, or make the run again.",
            path=uri,
        )
    return pointer, parse_manifest(data, uri)


def read_published(
    recommendations: Store, say: Callable[[str], None] = lambda _: None
) -> tuple[Pointer, RunManifest | None]:
    """The pointer and the published run's manifest, which is None if there is none to be used.

    This is for those who can go on without the last publication. If its manifest is missing or is
    not what was published, it counts as absent, and `say` gets a message.

    Raises:
        InputError: the pointer is damaged.
    """
    pointer, data = _read_published_bytes(recommendations)
    if pointer.run_id is None:
        return pointer, None
    uri = recommendations.uri(str(pointer.manifest))
    if data is None:
        problem = "is missing or is not what was published"
    else:
        try:
            return pointer, parse_manifest(data, uri)
        except InputError:  # the bytes are right, so another version of visrec wrote them
            problem = "was written by another version of visrec"
    say(
        f"The manifest of the last publication, {uri}, {problem}: this run goes on as if nothing "
        "had been published before it."
    )
    return pointer, None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int)


def _is_time_or_none(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and set(value) <= set(get_args(TableFormat))


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _are_hashes(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


_REQUIRED = {"run_id", "manifest", "manifest_sha256", "previous_run_id", "published_at"}
_TYPES: dict[str, Callable[[object], bool]] = {
    "run_id": _is_text,
    "manifest": _is_text,
    "manifest_sha256": _is_text,
    "cutoff_timestamp": _is_time_or_none,
    "previous_run_id": _is_text_or_none,
    "published_at": _is_text,
    "rolled_back": _are_texts,
    "sequence": _is_count,
    "removing": _are_counts,
    "rewriting": _are_hashes,
    "removals": _is_count,
    "tables": _are_tables,
    "version": _is_count,
}
