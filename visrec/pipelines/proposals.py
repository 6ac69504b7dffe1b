"""Keys that a workspace needs, proposed from what its files look like.

`visrec init` writes them down, and `visrec check` goes on with them, so that it finds all faults at
once. Jobs never use proposals.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from visrec.cli.job import JobConfig
from visrec.cli.workspace_keys import WorkspaceKeys, value_of
from visrec.errors import InputError, StorageError
from visrec.ids import DistinctIds
from visrec.pipelines.input_checks import require_pictures
from visrec.pipelines.job_tables import find_interactions, items_table, users_table
from visrec.sources.formats import item_id_from_name
from visrec.sources.images import PictureSource, list_pictures
from visrec.sources.name_patterns import (
    NamePattern,
    SuggestedPattern,
    guess_pattern,
    suggest_pattern,
)
from visrec.storage import schemas
from visrec.storage.column_guess import PLACEHOLDER, guess_columns
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import Column
from visrec.storage.store import Store
from visrec.storage.table_files import is_table_name
from visrec.storage.tables import column_names, read_batches
from visrec.storage.workspace_tables import has_role, is_block_list

_LISTED = 10_000  # files of a workspace that are looked at
_SAMPLED = 100_000  # names of pictures


@dataclass(frozen=True, kw_only=True)
class DataJob(WorkspaceKeys, JobConfig):
    """A job that looks at all data of a workspace."""


Data = TypeVar("Data", bound=DataJob)


@dataclass(frozen=True)
class Proposal:
    """A key proposed for a workspace.

    Attributes:
        key: dotted.
        value: as YAML has it.
        why: the reason for the value.
        is_needed: whether a night would refuse the data, or leave them out, without the key.
    """

    key: str
    value: Any
    why: str
    is_needed: bool = True


def propose(config: DataJob) -> list[Proposal]:
    """The keys that a workspace needs in addition to those that it has.

    Data that a job would refuse in any case give no proposal; `visrec check` says why.
    """
    proposals: dict[str, Proposal] = {}
    filled_in = config  # with all proposals, also those that name a COLUMN
    for find in (
        _interactions_path,
        _block_list,
        _interactions_columns,
        _items_columns,
        _users_columns,
        _blocked_columns,
        _availability,
        _images,
        _image_pattern,
    ):
        try:
            found = list(find(filled_in))
        except InputError:
            continue
        for proposal in found:
            if value_of(filled_in, proposal.key) == proposal.value:
                continue
            filled_in = with_key(filled_in, proposal.key, proposal.value)
            if before := proposals.get(proposal.key):
                why = f"{before.why}; {proposal.why}"
                proposal = dataclasses.replace(proposal, why=why, is_needed=before.is_needed)
            proposals[proposal.key] = proposal
    return [*proposals.values()]


def propose_optional(config: DataJob) -> list[Proposal]:
    """The keys with which a night would use more of what there is. Nothing large is read."""
    proposals: list[Proposal] = []
    for find in (_block_list, _availability):
        with suppress(InputError):
            proposals += find(config)
    return proposals


def with_key(config: Data, key: str, value: Any) -> Data:
    """The configuration with a dotted key set to a value, which has the type of the key."""
    group, dot, name = key.partition(".")
    if dot:
        value = dataclasses.replace(getattr(config, group), **{name: value})
    return dataclasses.replace(config, **{group: value})


def with_proposals(config: Data, proposals: Iterable[Proposal]) -> Data:
    """The configuration with the proposed keys, without columns that have yet to be filled in."""
    for proposal in proposals:
        value = proposal.value
        if isinstance(value, dict):
            value = {name: stored for name, stored in value.items() if stored != PLACEHOLDER}
        config = with_key(config, proposal.key, value)
    return config


def _interactions_path(config: DataJob) -> Iterator[Proposal]:
    """The only table of the workspace whose columns are named like a user, an item and a time."""
    if find_interactions(config, config.interactions) is not None:
        return
    required = _required(schemas.INTERACTIONS)
    workspace = Store.at(config.workspace)
    names = [name for name in _table_names(config) if not has_role(name)]
    uris = [workspace.uri(name) for name in names]
    candidates = [uri for uri in uris if _has_all(required, _column_names(uri))]
    if len(candidates) == 1:
        yield Proposal("interactions.path", candidates[0], "the table with users, items and times")


def _block_list(config: DataJob) -> Iterator[Proposal]:
    """The only table of the workspace that is named like a block list, and names items."""
    if config.rules.blocked is not None:
        return
    names = [name for name in _table_names(config) if is_block_list(name)]
    uris = [Store.at(config.workspace).uri(name) for name in names]
    candidates = [uri for uri in uris if _has_all(_required(schemas.BLOCKED), _column_names(uri))]
    if len(candidates) == 1:
        why = "by its name, the items that no list may hold"
        yield Proposal("rules.blocked", candidates[0], why, is_needed=False)
        for proposal in _blocked_columns(with_key(config, "rules.blocked", candidates[0])):
            yield dataclasses.replace(proposal, is_needed=False)


def _interactions_columns(config: DataJob) -> Iterator[Proposal]:
    uri = find_interactions(config, config.interactions)
    return _columns(config.interactions.table(uri) if uri else None, schemas.INTERACTIONS)


def _items_columns(config: DataJob) -> Iterator[Proposal]:
    return _columns(items_table(config, config.items, config.items_columns), schemas.ITEMS)


def _users_columns(config: DataJob) -> Iterator[Proposal]:
    return _columns(users_table(config, config.users, config.users_columns), schemas.USERS)


def _blocked_columns(config: DataJob) -> Iterator[Proposal]:
    return _columns(config.rules.blocked_table, schemas.BLOCKED)


def _columns(table: InputTable | None, columns: Sequence[Column]) -> Iterator[Proposal]:
    """Proposals for declared columns that the table stores under other names."""
    if table is None or table.columns_key is None:
        return
    names = column_names(table)
    missing = [name for name in _required(columns) if table.stored_name(name) not in names]
    guesses = {**dict.fromkeys(missing, PLACEHOLDER), **table.guess_names(columns, names)}
    if guesses and not any(schemas.NOT_UTF_8 in name for name in names):
        why = f"the table has {', '.join(names)}"
        yield Proposal(table.columns_key, {**table.columns, **guesses}, why)


def _availability(config: DataJob) -> Iterator[Proposal]:
    """Columns of the items table that say, under another name, which items are available."""
    table = items_table(config, config.items, config.items_columns)
    if table is None:
        return
    names = column_names(table)
    wanted = {"available": schemas.AVAILABLE, "stock": schemas.STOCK}
    if table.stored_name("available") in names:
        return
    missing = [name for name in wanted if table.stored_name(name) not in names]
    taken = {*table.columns.values(), *(column.name for column in schemas.ITEMS)}
    guesses = guess_columns(missing, [name for name in names if name not in taken])
    for name, stored in guesses.items():
        columns = {**table.columns, name: stored}
        renamed = dataclasses.replace(table, columns=columns)
        try:
            next(read_batches(renamed, [wanted[name]]), None)
        except InputError:
            continue  # its values are not those of such a column
        says = "which items are available" if name == "available" else "how many are in stock"
        yield Proposal("items_columns", columns, f"{stored} says {says}", is_needed=False)
        return


def _images(config: DataJob) -> Iterator[Proposal]:
    """Where the pictures are, if not in the folder `images`: the table images.parquet, or the only
    folder of the workspace with pictures."""
    if config.images is not None or _has_pictures(config.resolve(None, "images")):
        return
    workspace = Store.at(config.workspace)
    if table := config.resolve_file_if_exists(None, "images.parquet"):
        yield Proposal("images", table, "by its name, the table of pictures")
        return
    folders: dict[str, int] = defaultdict(int)
    for name in _names(workspace):
        folder, slash, file = name.partition("/")
        folders[folder] += bool(slash) and item_id_from_name(file) is not None
    non_empty = [folder for folder, pictures in folders.items() if pictures]
    if len(non_empty) == 1:
        yield Proposal("images", workspace.uri(non_empty[0]), "the folder with pictures")


def _has_pictures(uri: str) -> bool:
    try:
        require_pictures(PictureSource(uri))
    except InputError:
        return False
    return True


def _image_pattern(config: DataJob) -> Iterator[Proposal]:
    """The file name pattern that explains the pictures as views of known items."""
    if config.image_pattern is not None:
        return
    pictures = list_pictures(PictureSource(config.resolve(config.images, "images")))
    all_names = (str(name) for page in pictures for name in page["item_id"].to_pylist())
    names = list(islice(all_names, _SAMPLED))
    uri = find_interactions(config, config.interactions)
    if uri is None or config.interactions.columns.get("item_id") == PLACEHOLDER:
        if guess := guess_pattern(names):
            views = " and ".join(map(repr, guess[1]))
            yield Proposal("image_pattern", guess[0], f"{views} look like pictures of one item")
        return
    distinct = DistinctIds()
    for batch in read_batches(config.interactions.table(uri), [schemas.INTERACTIONS[1]]):
        distinct.add(batch["item_id"])
    items = {str(item) for item in distinct.ids.to_pylist()}
    named_like_items = set(names) & items
    other_names = [name for name in names if name not in items]
    suggestion = suggest_pattern(other_names, items)
    if suggestion is None:
        return
    # A picture that is named like an item stays that item's.
    if any(map(NamePattern(suggestion.pattern).split, named_like_items)):
        return
    if _explains_most(suggestion, other_names, items - named_like_items):
        why = f"{suggestion.name!r} is then a picture of {suggestion.item_id!r}"
        yield Proposal("image_pattern", suggestion.pattern, why)


def _explains_most(
    suggestion: SuggestedPattern, names: Sequence[str], unpictured_items: Set[str]
) -> bool:
    """Whether a pattern probably is that of the names, in one of three ways.

    - Under the pattern, most names are views of known items.
    - It gives most items without a picture one: most pictures may be of items that nobody has taken
      yet.
    - The names alone suggest the same pattern.

    Args:
        suggestion: the pattern.
        names: the names of pictures that are not ids of items.
        unpictured_items: the items of which no picture has the name.
    """
    if 2 * suggestion.names > len(names):
        return True
    pattern = NamePattern(suggestion.pattern)
    pictured = {split[0] for split in map(pattern.split, names) if split} & unpictured_items
    if 2 * len(pictured) > len(unpictured_items):
        return True
    guess = guess_pattern(names)
    return guess is not None and guess[0] == suggestion.pattern


def _required(columns: Iterable[Column]) -> list[str]:
    return [column.name for column in columns if column.required]


def _has_all(required: Sequence[str], names: Sequence[str]) -> bool:
    """Whether each required column exists in the table or has a guessed name."""
    return len(guess_columns(required, names)) == len(required)


def _table_names(config: DataJob) -> list[str]:
    """The files of the workspace that are tables."""
    names = [name for name in _names(Store.at(config.workspace)) if "/" not in name]
    return [name for name in names if is_table_name(name)]


def _names(workspace: Store) -> list[str]:
    """The first files of a workspace that visrec did not write, up to a folder that this user may
    not read."""
    names: list[str] = []
    with suppress(StorageError):
        names += (info.name for info in islice(workspace.list(follow_links=True), _LISTED))
    return [name for name in names if not name.startswith(("_", "."))]


def _column_names(uri: str) -> list[str]:
    """The columns of a table; none of a file that is no table."""
    try:
        return column_names(InputTable(uri=uri, key="interactions.path"))
    except InputError:
        return []
