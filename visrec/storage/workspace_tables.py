"""The tables that a workspace has, found by their names in whatever format they are."""

from itertools import islice

from visrec.errors import InputError
from visrec.storage.store import Store
from visrec.storage.table_files import is_table_name

_LISTED = 10_000  # names that are looked at to say what a workspace has instead
FORMATS = ".parquet, .csv, .tsv or .jsonl, the last three also .gz"


def find_workspace_table(workspace: Store, name: str, key: str) -> str | None:
    """The location of a table: a file `<name>.csv`, also of another format or compressed, or a
    directory `<name>` or `<name>.parquet`; None if there is none.

    Args:
        workspace: where to look.
        name: of the table, such as interactions.
        key: the configuration key that would name the table, for the error.

    Raises:
        InputError: there are several, so that it is unknown which one counts.
    """
    found: dict[str, None] = {}
    for info in workspace.list(name, follow_links=True):
        top, slash, _ = info.name.partition("/")
        is_directory = bool(slash) and top == name
        if is_directory or (is_table_name(top) and top.partition(".")[0] == name):
            found[top] = None
    if len(found) > 1:
        raise InputError(
            f"Found {' and '.join(sorted(found))} in {workspace.root}; expected one of them. "
            f"Remove the others, or name one with --{key}.",
            path=workspace.root,
            key=key,
        )
    return next((workspace.uri(top) for top in found), None)


def missing_table(workspace: Store, name: str, key: str) -> InputError:
    """The error for a workspace without a table that is needed."""
    files = (info.name for info in islice(workspace.list(), _LISTED))
    others = sorted(file for file in files if "/" not in file and is_table_name(file))
    shown = f", only {', '.join(others[:3])}" if others else ""
    path = workspace.uri(others[0] if len(others) == 1 else "PATH")
    return InputError(
        f"Found no {name} in {workspace.root}{shown}; expected a file {name}.* ({FORMATS}) or a "
        f"directory {name} of such files. Put them there, or name them: --{key} {path}",
        path=workspace.root,
        key=key,
    )
