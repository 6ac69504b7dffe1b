"""RecBole's atomic files: https://recbole.io/docs/user_guide/data/atomic_files.html

A file has tabs and a header of `name:type`. `.inter` has the interactions, `.item` the items. The
parts of one data set, such as x.train.inter, x.valid.inter and x.test.inter, are read as one table.
"""

import re
from collections.abc import Iterator
from itertools import chain

import pyarrow as pa

from visrec.errors import InputError
from visrec.importers.base import KEY, Imported, Source
from visrec.storage.schemas import INTERACTIONS, ITEMS, label_column

_PARTS = ("train", "valid", "test")  # in this order
_INTER = re.compile(r"(.*?)(?:\.(train|valid|test|part[0-9]+))?\.inter", re.IGNORECASE)
_TITLES = ("title", "item_name", "movie_title", "name")
_CATEGORIES = ("category", "categories", "class", "genre", "genres")


def read(source: Source) -> Imported:
    """The interactions, and the items where there is an `.item` file.

    Raises:
        InputError: there is no `.inter` file, there are files of several data sets, or a file has
            no user, item or timestamp.
    """
    interactions = source.require_all(r".*\.inter", "a .inter file of RecBole")
    items = source.find_all(r".*\.item")
    _require_one_data_set(source, interactions, items)
    interactions.sort(key=_position)
    mapping = _mapping(source, interactions[0])
    for name in interactions[1:]:
        if (other := _mapping(source, name)) != mapping:
            raise InputError(
                f"{source.store.uri(interactions[0])} has the fields "
                f"{', '.join(mapping.values())}, and {source.store.uri(name)} has "
                f"{', '.join(other.values())}; expected the same in all parts. Change --{KEY}.",
                key=KEY,
            )
    columns = [column for column in INTERACTIONS if column.name in mapping]
    joined = f"{', '.join(interactions)} become one table, which training splits anew."
    return Imported(
        chain.from_iterable(source.read(name, columns, mapping) for name in interactions),
        _items(source, items[0]) if items else (),
        notes=(joined,) if len(interactions) > 1 else (),
    )


def _require_one_data_set(source: Source, interactions: list[str], items: list[str]) -> None:
    """Refuses files of several data sets, and parts beside a whole."""
    names = {_data_set(name) for name in interactions}
    are_parts = len(interactions) == 1 or all(map(_part, interactions))
    if len(names) > 1 or not are_parts or {name[: -len(".item")] for name in items} - names:
        raise source.refuse(
            [*interactions, *items],
            "the files of one data set: x.inter, or its parts such as x.train.inter and "
            "x.test.inter, and x.item",
        )


def _data_set(name: str) -> str:
    """The data set that an `.inter` file belongs to, with its folder."""
    match = _INTER.fullmatch(name)
    return match[1] if match else name


def _part(name: str) -> str:
    """Which part of a data set an `.inter` file has; empty for the whole."""
    match = _INTER.fullmatch(name)
    return (match[2] or "").lower() if match else ""


def _position(name: str) -> int:
    """Where a part of a data set is in `_PARTS`; numbered parts stay in the order of names."""
    part = _part(name)
    return _PARTS.index(part) if part in _PARTS else 0


def _mapping(source: Source, name: str) -> dict[str, str]:
    """The stored name of each declared field of an `.inter` file."""
    header = _fields(source, name)
    mapping = {
        field: stored
        for field, stored in header.items()
        if field in ("user_id", "item_id", "timestamp", "rating")
    }
    missing = [field for field in ("user_id", "item_id", "timestamp") if field not in mapping]
    if missing:
        raise InputError(
            f"{source.store.uri(name)} has the fields {', '.join(header.values())}; expected "
            f"user_id, item_id and timestamp, and {', '.join(missing)} is missing. Change --{KEY}.",
            key=KEY,
        )
    return mapping


def _fields(source: Source, name: str) -> dict[str, str]:
    """The stored name of each field by its name without a type."""
    return {stored.partition(":")[0]: stored for stored in source.header(name)}


def _items(source: Source, name: str) -> Iterator[pa.Table]:
    header = _fields(source, name)
    mapping = {"item_id": header.get("item_id", "item_id")}
    for column, names in (("title", _TITLES), ("category", _CATEGORIES)):
        stored = next((header[each] for each in names if each in header), None)
        if stored is not None:
            mapping[column] = stored
    columns = [column for column in ITEMS if column.name in mapping]
    others = {field: stored for field, stored in header.items() if stored not in mapping.values()}
    labels = [label_column(field) for field in others if field not in {c.name for c in ITEMS}]
    mapping |= {label.name: others[label.name] for label in labels}
    yield from source.read(name, [*columns, *labels], mapping)
