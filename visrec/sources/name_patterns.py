"""Which item and which view of it the name of a picture's file means."""

import re
from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cached_property

from visrec.errors import InputError
from visrec.sources.formats import item_id_from_name

ITEM, VIEW = "{item_id}", "{view}"
# What shops do; the last ones are suggested only if no other fits.
_USUAL = (
    "{item_id}/{view}",
    "{item_id}_{view}",
    "{item_id}-{view}",
    "{item_id}.{view}",
    "{item_id} {view}",
    "{item_id} ({view})",
    "{item_id}__{view}",
    "*/{item_id}_{view}",
    "*/{item_id}-{view}",
    "{view}/{item_id}",
    "{view}_{item_id}",
)
_EXPECTED = f"{ITEM} once and {VIEW} at most once with something between them, such as "
_EXPECTED += "'{item_id}_{view}.jpg' or '{item_id}/{view}.jpg'"
# Names that look like views without any table to prove it: a few of each item, and everywhere the
# same few.
_MAX_AVERAGE_VIEWS, _MAX_DISTINCT_VIEWS = 20, 50


@dataclass(frozen=True)
class NamePattern:
    """A pattern such as `{item_id}_{view}.jpg` for the names of files.

    `{item_id}` stands for as much as possible, `{view}` for anything without a slash, and `*` for
    anything without a slash that says nothing. The extension does not count.

    Attributes:
        pattern: as the user wrote it.

    Raises:
        InputError: a name could be split in several ways, or in none.
    """

    pattern: str

    def __post_init__(self) -> None:
        rest = self.pattern.replace(ITEM, "", 1).replace(VIEW, "", 1)
        touching = re.search(r"[}*][{*]", self.pattern)
        if ITEM not in self.pattern or touching or re.search(r"[{}]", rest):
            raise InputError(
                f"Found --image_pattern {self.pattern!r}; expected {_EXPECTED}.",
                key="image_pattern",
            )

    def split(self, name: str) -> tuple[str, str] | None:
        """Item id and view of a name without its extension; None if the pattern does not match.

        A pattern without `{view}` makes the name itself the view.
        """
        match = self._regex.fullmatch(name)
        return (match["item_id"], match.groupdict().get("view", name)) if match else None

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        pattern = re.sub(r"\.\*$", "", self.pattern)  # any extension
        text = re.escape(item_id_from_name(pattern) or pattern)
        text = text.replace(re.escape(ITEM), "(?P<item_id>.+)", 1)
        text = text.replace(re.escape(VIEW), "(?P<view>[^/]+?)", 1)
        return re.compile(text.replace(re.escape("*"), "[^/]*"), re.DOTALL)


@dataclass(frozen=True)
class SuggestedPattern:
    """A pattern under which names are views of known items.

    Attributes:
        pattern: to give.
        item_id: one of the known items.
        name: a view of it.
        items: number of known items that have a view.
        names: number of names that are views of them.
    """

    pattern: str
    item_id: str
    name: str
    items: int
    names: int


def suggest_pattern(names: Iterable[str], item_ids: Set[str]) -> SuggestedPattern | None:
    """The pattern under which most names are views of known items, if any is.

    Args:
        names: the names of pictures, without extensions, taken for item ids.
        item_ids: ids of another table; none of the names is one of them.
    """
    best: SuggestedPattern | None = None
    every = list(names)
    for usual in _USUAL:
        pattern = NamePattern(usual)
        hits = []
        for name in every:
            split = pattern.split(name)
            if split is not None and split[0] in item_ids:
                hits.append((split[0], name))
        if hits and (best is None or len(hits) > best.names):
            found = {item_id for item_id, _ in hits}
            best = SuggestedPattern(usual, *hits[0], len(found), len(hits))
    return best


def guess_pattern(names: Iterable[str]) -> tuple[str, list[str]] | None:
    """The pattern under which most names look like views of few items, if any does.

    Returns:
        The pattern, and some names of one item.
    """
    sample = list(names)
    for usual in _USUAL:
        pattern = NamePattern(usual)
        by_item: dict[str, list[str]] = defaultdict(list)
        views = set()
        for name in sample:
            if split := pattern.split(name):
                by_item[split[0]].append(name)
                views.add(split[1])
        several = [found for found in by_item.values() if len(found) > 1]
        count = sum(map(len, several))
        if (
            2 * count > len(sample)
            and count <= _MAX_AVERAGE_VIEWS * len(several)
            and len(views) <= min(_MAX_DISTINCT_VIEWS, len(sample) / 2)
        ):
            return usual, sorted(several[0])[:2]
    return None
