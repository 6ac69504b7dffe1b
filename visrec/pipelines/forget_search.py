"""The search, at the end of `visrec forget`, for what is left of the users in all files."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from visrec.interactions.prepared import PREPARED
from visrec.pipelines.export import LEASES
from visrec.storage.id_search import FoundFile, IdSearch, list_all_files, search_files
from visrec.storage.store import Store
from visrec.tasks import cluster_cpus, map_calls, split_among_tasks

File = TypeVar("File")
RUNS = ("recommendations", "similar_items")
# What visrec writes below a workspace. Everything else is the user's.
_WRITTEN = (
    *RUNS,
    "models",
    "training",
    "sweeps",
    "evaluation",
    "features",
    "nights",
    "summaries",
    "text_features",
    PREPARED,
    LEASES,
)
_MAY_HAVE_USERS = re.compile(
    r"\.(parquet|csv|tsv|jsonl?|ndjson|txt|html)(\.[a-z0-9]+)?$", re.IGNORECASE
)
_MOST_TASKS = 256
SHOWN = 3  # names in a message


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is left of the users after everything was removed.

    Attributes:
        searched: the number of files that were searched.
        own_files_with_ids: files that visrec wrote and that still have an id.
        own_files_not_searched: files that visrec wrote and that could not be searched.
        users_files_with_ids: the user's files with an id.
        users_files_not_searched: the user's files that could not be searched.
    """

    searched: int
    own_files_with_ids: Sequence[str]
    own_files_not_searched: Sequence[str]
    users_files_with_ids: Sequence[str]
    users_files_not_searched: Sequence[str]


def search_for_users(
    search: IdSearch, workspace: Store, extra_runs: Sequence[Store], users_uri: str
) -> Left:
    """Searches all files for the ids.

    Args:
        search: the ids to search for.
        workspace: everything in it but pictures is searched.
        extra_runs: directories of runs outside of it.
        users_uri: the file with the ids themselves.
    """
    names = [
        (store, file.name)
        for store in (workspace, *extra_runs)
        for file in list_all_files(store)
        if (store in extra_runs or _may_have_users(file))
        and store.uri(file.name) != Store.at(users_uri).root
    ]
    results = map_calls(search_files, [(search, share) for share in split_files(names)])
    with_ids = sorted(name for result in results for name in result.with_ids)
    not_searched = sorted(name for result in results for name in result.not_searched)
    own_with_ids, users_with_ids = _by_writer(with_ids, workspace, extra_runs)
    own_not_searched, users_not_searched = _by_writer(not_searched, workspace, extra_runs)
    return Left(
        searched=len(names),
        own_files_with_ids=own_with_ids,
        own_files_not_searched=own_not_searched,
        users_files_with_ids=users_with_ids,
        users_files_not_searched=users_not_searched,
    )


def split_files(files: Sequence[File]) -> list[Sequence[File]]:
    """Shares of files for tasks: two for each CPU, so that a large file holds up little."""
    return split_among_tasks(files, min(2 * cluster_cpus(), _MOST_TASKS))


def _may_have_users(file: FoundFile) -> bool:
    """Whether a file of the workspace may name users: not if it is a picture of the user's."""
    may_have = _is_written(file.name) or _MAY_HAVE_USERS.search(file.name)
    return bool(file.is_unlistable or may_have)


def _is_written(name: str) -> bool:
    """Whether visrec wrote a file, by its name below the workspace."""
    return name.partition("/")[0] in _WRITTEN


def _by_writer(
    locations: Sequence[str], workspace: Store, extra_runs: Sequence[Store]
) -> tuple[list[str], list[str]]:
    """The files that visrec wrote, and the user's own."""
    written = [
        location
        for location in locations
        if _is_written(location.removeprefix(f"{workspace.root}/"))
        or any(location.startswith(f"{other.root}/") for other in extra_runs)
    ]
    return written, [location for location in locations if location not in written]


def explain_ambiguous(search: IdSearch) -> str:
    ambiguous = len(search.ids) - len(search.distinctive)
    return f"{ambiguous:,} ids, which are short, numbers, or ids of items, too" if ambiguous else ""


def shown(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
