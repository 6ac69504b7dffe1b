"""`_latest.json`: which run is published. Every change of it replaces exactly what was read.

Publications, rollbacks and retention meet here: retention writes the runs that it is about to
remove into this file, by the same conditional write by which others move it, so that nobody can
point to a run that is being removed, and nothing that is pointed to is removed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from visrec.errors import InputError
from visrec.storage.store import Store, parse_json, to_json

LATEST = "_latest.json"


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What the file says. The defaults stand for a file that is not there.

    Args:
        run_id: the run that is published.
        manifest: where its manifest is, below the recommendations.
        manifest_sha256: of that manifest's bytes.
        before: the second since 1970 before which its interactions count; of a run without a date,
            that of the publication before it.
        previous_run_id: the run that was published before; None for the first and after a rollback.
        published_at: when the pointer moved.
        rolled_back: runs that are not published again when they are found complete.
        sequence: how often the pointer has moved.
        removing: runs that retention is removing, each with the number of its removal.
        removals: how many removals were begun, so that no two states of the file are the same to
            the byte.
    """

    run_id: str | None = None
    manifest: str | None = None
    manifest_sha256: str | None = None
    before: float | None = None
    previous_run_id: str | None = None
    published_at: str | None = None
    rolled_back: tuple[str, ...] = ()
    sequence: int = 0
    removing: Mapping[str, int] = field(default_factory=dict)
    removals: int = 0


def read_pointer(recommendations: Store) -> tuple[Pointer, str | None]:
    """The pointer and its version; a pointer to nothing, and None, where there is no file.

    Raises:
        InputError: the file is not a pointer.
    """
    found = recommendations.read_if_exists(LATEST)
    if found is None:
        return Pointer(), None
    where = recommendations.uri(LATEST)
    data = parse_json(found[0], where)
    if not isinstance(data, dict) or not _is_pointer(data):
        raise InputError(
            f"{where} is damaged: expected the pointer that visrec wrote. Bring the file back from "
            "a copy; or remove it and run the job of a complete run again, which points to it."
        )
    data = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return Pointer(**data), found[1]


def replace_pointer(recommendations: Store, pointer: Pointer, version: str | None) -> bool:
    """Writes the pointer in place of the one that was read; False where another writer was first.

    Args:
        recommendations: where the runs are.
        pointer: the new one.
        version: of the one that was read, None where there was none.
    """
    return recommendations.exchange(LATEST, to_json(dataclasses.asdict(pointer)), version)


def _is_pointer(data: dict[str, Any]) -> bool:
    """Whether all fields are known ones of the right types, and those of a publication are there.

    The fields that are not of every publication were not always written.
    """
    wanted = {"run_id", "manifest", "manifest_sha256", "previous_run_id", "published_at"}
    return wanted <= data.keys() <= _TYPES.keys() and all(
        _TYPES[key](value) for key, value in data.items()
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _of(fits: Callable[[Any], bool], names: Iterable[str]) -> dict[str, Callable[[Any], bool]]:
    return dict.fromkeys(names, fits)


_TYPES = {
    **_of(_is_text, ("run_id", "manifest", "manifest_sha256", "published_at")),
    **_of(_is_count, ("sequence", "removals")),
    "rolled_back": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "removing": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "previous_run_id": _or_none(_is_text),
    "before": _or_none(lambda value: isinstance(value, int | float)),
}
