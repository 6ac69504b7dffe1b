"""Paths as text: home directories, folder names, and file names that are not UTF-8."""

import os
import re
from pathlib import Path

from visrec.errors import InputError


def escape_non_utf8(name: str) -> str:
    r"""A name that any file and any terminal can hold: bytes that are not UTF-8 become \xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def require_utf8(uri: str) -> None:
    """Refuses a location that no table can store and no pyarrow function can open.

    Raises:
        InputError: it contains bytes that are not UTF-8.
    """
    escaped = escape_non_utf8(uri)
    if escaped != uri:
        raise InputError(
            f"Found the location {escaped}, which is not UTF-8; expected a UTF-8 path. Rename its "
            "folders.",
            path=escaped,
        )


def require_folder_name(name: str, key: str) -> None:
    """Refuses a name of a run, a model or a sweep that would resolve to another folder.

    Args:
        name: the configured name.
        key: the configuration key, without dashes.

    Raises:
        InputError: the name is empty, starts with a dot, or contains other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9_:-][A-Za-z0-9_:.-]*", name):
        raise InputError(
            f"Found --{key} {name!r}; expected letters, digits, '-', '_', ':' and '.', such as "
            "2026-11-22.",
            key=key,
        )


def expand_home(path: str) -> str:
    """The path with ~ replaced by the home directory.

    Raises:
        InputError: this user has no home directory.
    """
    expanded = os.path.expanduser(path)
    if path.split("/")[0] == "~" and expanded == path:
        raise InputError(
            f"Found the location {path!r}, but this user has no home directory; expected a path "
            "without ~, or HOME to be set.",
            path=path,
        )
    return expanded


def shipped(name: str) -> str:
    """Path of a YAML file that comes with visrec, such as `tune_spaces/vbpr.yaml`.

    A wheel has these files inside the package, a checkout beside it.
    """
    package = Path(__file__).parent
    inside = package / name
    return str(inside if inside.exists() else package.parent / name)
