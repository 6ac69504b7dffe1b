"""Writes `visrec.yaml` into a workspace: the keys that its data need, for every later command.

visrec init shop
visrec init shop --interactions.path orders.csv --images photos
visrec init s3://shop/visrec --interactions.path s3://shop/orders.csv.gz

The command looks at the tables and at the names of the pictures, proposes the names of columns and
the pattern of several pictures an item, and notes what each proposal is based on. Keys that are
given are kept. It needs no Ray, and changes nothing else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from visrec.cli.keys import config_keys
from visrec.cli.output import say
from visrec.cli.summary import Summary
from visrec.cli.workspace_keys import WORKSPACE_FILE, WorkspaceKeys
from visrec.errors import InputError
from visrec.pipelines.input_checks import require_pictures
from visrec.pipelines.job_tables import find_interactions, items_table, users_table
from visrec.pipelines.night_command import changed_keys, visrec_command
from visrec.pipelines.proposals import DataJob, propose, with_proposals
from visrec.sources.images import PictureSource
from visrec.storage.column_guess import PLACEHOLDER
from visrec.storage.csv_files import refuse_other_encodings
from visrec.storage.locations import normalize_location
from visrec.storage.schemas import NOT_UTF_8
from visrec.storage.store import Store
from visrec.storage.table_files import list_table_files
from visrec.storage.tables import column_names
from visrec.yaml_text import flow_yaml

_PATHS = {
    "images",
    "interactions.path",
    "items",
    "users",
    "rules.blocked",
    "features",
    "text_features",
}
# Keys that the file shows as comments unless they are set: an example and its meaning.
_EXAMPLES = {
    "interactions.min_rating": ("4", "rows with a lower rating do not count"),
    "items_columns": ("{item_id: sku}", "columns of items.* with other names"),
    "users_columns": ("{user_id: email}", "columns of users.* with other names"),
    "rules.blocked": (
        "blocked.csv",
        "items that no list may hold; rows with user_id count for that user only",
    ),
    "rules.blocked_columns": (
        "{item_id: sku}",
        "columns of the block list with other names",
    ),
    "publish.table": ("delta", "the published lists as a table for SQL: delta, iceberg, manifest"),
    "text.model": ("sentence-transformers/all-MiniLM-L6-v2", "embeds titles and descriptions"),
    "item_features": ("both", "what a model takes: pictures, text or both"),
}
_HEAD = """\
# What visrec knows of this workspace. Every command and visrec.Workspace read this file; a flag, or
# a file of --config, that sets the same key wins. `visrec check` says whether it fits the data.
"""


@dataclass(frozen=True, kw_only=True)
class InitJob(DataJob):
    """A workspace that remembers its keys."""


def main(config: InitJob, summary: Summary) -> None:
    workspace = Store.at(config.workspace)
    path = workspace.uri(WORKSPACE_FILE)
    if workspace.exists(WORKSPACE_FILE):
        raise InputError(
            f"Found {path} already; expected a workspace without it. Edit it, or remove it first.",
            path=path,
        )
    _require_given(config)
    proposals = propose(config)
    filled_in = with_proposals(config, proposals)
    _require_utf_8_names(filled_in)
    keys = _set_keys(filled_in)
    keys |= {p.key: p.value for p in proposals if PLACEHOLDER in str(p.value)}
    if not keys and not any(True for _ in workspace.list()):
        raise InputError(
            f"Found nothing at {config.workspace}; expected a workspace with pictures or "
            "interactions, or --interactions.path and --images that name them elsewhere.",
            path=workspace.root,
            key="workspace",
        )
    summary.has_written = True
    why = {proposal.key: proposal.why for proposal in proposals}
    text = _HEAD + "".join(f"{line}\n" for line in _lines(keys, why))
    if not workspace.create(WORKSPACE_FILE, text.encode()):
        raise InputError(f"Found {path} already: another process wrote it.", path=path)
    say(f"{path}:\n\n{text}")
    unknown = [key for key, value in keys.items() if PLACEHOLDER in str(value)]
    summary.rows = {
        "written": path,
        "proposed": ", ".join(why) or "nothing: the data need no key",
        "to be filled in": f"{', '.join(unknown)} ({PLACEHOLDER})" if unknown else "",
        "next": visrec_command("check", config.workspace),
    }


def _require_given(config: InitJob) -> None:
    """Raises an error if a configured path does not exist or is empty.

    Raises:
        InputError: names the key.
    """
    if config.images is not None:
        require_pictures(PictureSource(config.images, config.image_pattern))
    tables = [
        config.interactions.table(config.interactions.path) if config.interactions.path else None,
        items_table(config, config.items, config.items_columns) if config.items else None,
        users_table(config, config.users, config.users_columns) if config.users else None,
        config.rules.blocked_table,
    ]
    for table in filter(None, tables):
        column_names(table)


def _require_utf_8_names(config: DataJob) -> None:
    """Raises an error if a table has names that would be garbled; other faults are for
    `visrec check`.

    Raises:
        InputError: says how to convert the table.
    """
    interactions = find_interactions(config, config.interactions)
    tables = [
        config.interactions.table(interactions) if interactions else None,
        items_table(config, config.items, config.items_columns),
        users_table(config, config.users, config.users_columns),
        config.rules.blocked_table,
    ]
    for table in filter(None, tables):
        try:
            names = column_names(table)
        except InputError:
            continue
        file = next(list_table_files(table))
        if file.format == "csv" and any(NOT_UTF_8 in name for name in names):
            refuse_other_encodings(file)


def _set_keys(config: DataJob) -> dict[str, Any]:
    """The keys that are not at their defaults, dotted; with absolute paths, since jobs may run in
    other folders."""
    changed = changed_keys(config, WorkspaceKeys())
    return {
        key: normalize_location(value) if key in _PATHS else value for key, value in changed.items()
    }


def _lines(keys: Mapping[str, Any], why: Mapping[str, str]) -> Iterator[str]:
    """The keys as YAML, a group below its name, with comments; then keys that are not set."""
    groups: dict[str, list[str]] = {}
    for key in config_keys(WorkspaceKeys):
        group, dot, name = key.partition(".")
        if key in keys:
            note = f"  # {' '.join(why[key].split())}" if key in why else ""
            line = f"{name if dot else group}: {flow_yaml(keys[key])}{note}"
        elif key in _EXAMPLES:
            example, meaning = _EXAMPLES[key]
            line = f"# {name if dot else group}: {example}  # {meaning}"
        else:
            continue
        if dot:
            groups.setdefault(group, [f"{group}:"]).append(f"  {line}")
        else:
            groups[group] = [line]
    for lines in groups.values():
        yield from lines
