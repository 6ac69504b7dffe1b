"""RecBole's atomic files: https://recbole.io/docs/user_guide/data/atomic_files.html

A file has tabs and a header of `name:type`. `.inter` has the interactions, `.item` the items.
"""

from collections.abc import Iterator

import pyarrow as pa

from visrec.errors import InputError
from visrec.importers.base import KEY, Imported, Source
from visrec.storage.schemas import INTERACTIONS, ITEMS, label_column

_TITLES = ("title", "item_name", "movie_title", "name")
_CATEGORIES = ("category", "categories", "class", "genre", "genres")


def read(source: Source) -> Imported:
    """The interactions, and the items where there is an `.item` file.

    Raises:
        InputError: there is no `.inter` file, or it has no user, item or timestamp.
    """
    interactions = source.require("a .inter file of RecBole", r".*\.inter")
    header = _fields(source, interactions)
    mapping = {
        name: stored
        for name, stored in header.items()
        if name in ("user_id", "item_id", "timestamp", "rating")
    }
    missing = [name for name in ("user_id", "item_id", "timestamp") if name not in mapping]
    if missing:
        found = ", ".join(header.values())
        raise InputError(
            f"{source.store.uri(interactions)} has the fields {found}; expected user_id, item_id "
            f"and timestamp, and {', '.join(missing)} is missing. Change --{KEY}.",
            key=KEY,
        )
    items = source.find(r".*\.item")
    columns = [column for column in INTERACTIONS if column.name in mapping]
    return Imported(
        source.read(interactions, columns, mapping), _items(source, items) if items else ()
    )


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
