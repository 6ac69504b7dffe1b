"""Paths of files as text: home directories, and names that are not UTF-8."""

import os
import re

from visrec.errors import InputError


def printable(name: str) -> str:
    """A name as text that any file and terminal takes: bytes that are not UTF-8 as \\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def require_utf8(uri: str) -> None:
    """Refuses a location that no table can hold, and by which pyarrow opens no file.

    Raises:
        InputError: it has bytes that are not UTF-8.
    """
    if printable(uri) != uri:
        raise InputError(
            f"Found the location {printable(uri)}, which is not UTF-8; expected a path that is. "
            "Rename its folders."
        )


def require_folder_name(name: str, key: str) -> None:
    """Refuses the name of a run, a model or a sweep that would lie elsewhere as a folder.

    Args:
        name: as it was given.
        key: where, without dashes.

    Raises:
        InputError: it is empty, begins with a dot, or has other signs than are expected.
    """
    if not re.fullmatch(r"[A-Za-z0-9_:-][A-Za-z0-9_:.-]*", name):
        raise InputError(
            f"Found --{key} {name!r}; expected letters, digits, '-', '_', ':' and '.', such as "
            "2026-11-22."
        )


def with_home(path: str) -> str:
    """The path with the home directory in place of ~.

    Raises:
        InputError: this user has none.
    """
    expanded = os.path.expanduser(path)
    if path.split("/")[0] == "~" and expanded == path:
        raise InputError(
            f"Found the location {path!r}, and this user has no home directory; expected a path "
            "without ~, or the variable HOME to be set."
        )
    return expanded
