"""The tables that a workspace has, found by their names in whatever format they are."""

import re
from contextlib import suppress
from itertools import islice

from visrec.errors import InputError, StorageError
from visrec.storage.store import Store
from visrec.storage.table_files import is_table_name

# Names that are looked at: to say what a workspace has instead of a table, or whether a folder has
# tables; those of pictures may be many.
_LISTED = 10_000
# Tables with a role of their own, so that no other key is meant to name them.
_KNOWN = ("interactions", "items", "users", "images", "features")
# Words in the name of a block list, such as blocked.csv or do-not-recommend.csv; not within other
# words, as in woodblock_orders.csv, and not orders_excluding_vat.csv.
_BLOCK_LIST = re.compile(
    r"(?<![a-z])(blocked|block_?list|black_?list|deny_?list|excluded|exclu(des?|sions?)(?![a-z])|"
    r"banned|do_not_recommend|gesperrt|sperrliste)"
)
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
FORMATS = ".parquet, .csv, .tsv or .jsonl, the last three also .gz"


def find_workspace_table(workspace: Store, name: str, key: str) -> str | None:
    """The location of a table: a file `<name>.csv`, also of another format or compressed, or a
    directory `<name>` or `<name>.parquet`; None if there is none. A directory `<name>` without
    tables is another one, such as `items` with the pictures of the items.

    Args:
        workspace: where to look.
        name: the name of the table, such as interactions.
        key: the configuration key that would name the table, for the error.

    Raises:
        InputError: there are several, so that it is unknown which one counts.
    """
    tops = (info.name.partition("/")[0] for info in workspace.list(f"{name}.", follow_links=True))
    found = dict.fromkeys(filter(is_table_name, tops))
    files = workspace.list(f"{name}/", follow_links=True)
    if any(is_table_name(info.name) for info in islice(files, _LISTED)):
        found[name] = None
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
    others: list[str] = []
    with suppress(StorageError):  # some folder below, which this user may not read
        files = (info.name for info in islice(workspace.list(), _LISTED))
        tables = (file for file in files if "/" not in file and is_table_name(file))
        others += (file for file in tables if not has_role(file))
    others.sort()
    shown = f", only {', '.join(others[:3])}" if others else ""
    path = workspace.uri(others[0] if len(others) == 1 else "PATH")
    return InputError(
        f"Found no {name} in {workspace.root}{shown}; expected a file {name}.* ({FORMATS}) or a "
        f"directory {name} of such files. Put them there, or name them: --{key} {path}",
        path=workspace.root,
        key=key,
    )


def has_role(name: str) -> bool:
    """Whether a table's file name says what it is, so that it is not one that is looked for."""
    return name.partition(".")[0] in _KNOWN or is_block_list(name)


def is_block_list(name: str) -> bool:
    """Whether a file is named like a block list."""
    words = _CAMEL_CASE.sub("_", name).lower().replace("-", "_").replace(" ", "_")
    return _BLOCK_LIST.search(words) is not None
