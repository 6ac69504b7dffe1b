"""The JSON records of a publication: frozen dataclasses with a version, read in one way."""

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, TypeVar

from visrec.errors import InputError
from visrec.storage.store import parse_json

VERSION = 1  # of the claim, the manifest and the pointer
JsonObject = dict[str, Any]  # values of any JSON type, which `from_dict` checks
Record = TypeVar("Record")


def now() -> str:
    """The time in UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_record(
    data: bytes, uri: str, from_dict: Callable[[JsonObject], Record], remedy: str
) -> Record:
    """The record in a JSON file.

    Args:
        data: the file's bytes.
        uri: the location of the file, for the error.
        from_dict: makes the record, or raises one of the errors caught below.
        remedy: sentences on what the file should have been and what to do now.

    Raises:
        InputError: the file is not such a record, or another version of visrec wrote it.
    """
    value = parse_json(data, uri)
    version = value.get("version") if isinstance(value, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise InputError(
            f"{uri} has version {version} of this record; expected version {VERSION}, the only one "
            "that this version of visrec reads. Use the version of visrec that wrote it.",
            path=uri,
        )
    try:
        if not isinstance(value, dict):
            raise TypeError(f"found {type(value).__name__}, expected an object")
        return from_dict(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{uri} is damaged: {remedy}") from error


def require_keys(
    data: JsonObject, required: Collection[str], optional: Collection[str] = ()
) -> None:
    """Checks the names of a record's fields, and its version.

    Raises:
        KeyError: a field is missing or unknown.
        ValueError: the record has another version.
    """
    known = {"version", *required, *optional}
    if wrong := (set(required) - data.keys()) | (data.keys() - known):
        raise KeyError(f"missing or unknown fields: {sorted(wrong)}")
    if data.get("version") != VERSION:
        raise ValueError(f"found version {data.get('version')}, expected {VERSION}")
