"""The items table in: what may be recommended, and what kind of thing each item is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError
from visrec.ids import TEXT, rows_of
from visrec.sources.id_mismatch import differing_ids
from visrec.storage import schemas
from visrec.storage.tables import read_whole


@dataclass(frozen=True)
class Items:
    """Facts of the N items of a catalogue, in its order.

    Args:
        available_N: whether it may be recommended: yes, unless the table says otherwise.
        category_N: its category's name, null where it has none.
        artist_N: its artist's id, null where it has none.
        stock_N: how many there are, NaN where the table does not say; None where it has no such
            column.
    """

    available_N: npt.NDArray[np.bool_]
    category_N: pa.LargeStringArray
    artist_N: pa.LargeStringArray
    stock_N: npt.NDArray[np.float64] | None = None


def read_items(uri: str | None, item_ids: pa.Array) -> Items:
    """The facts of these items; without a table all are available, and no more is known of them.

    Raises:
        InputError: the table cannot be read, names an item twice, or no item is available.
    """
    nothing = pa.nulls(len(item_ids), TEXT)
    if uri is None:
        return Items(np.ones(len(item_ids), bool), nothing, nothing)
    columns = _of_items(uri, schemas.ITEMS, item_ids)
    available, category, artist, stock = (
        columns.get(name) for name in ("available", "category", "artist_id", "stock")
    )
    available_N = np.ones(len(item_ids), bool)
    if available is not None:
        available_N = pc.fill_null(available, True).to_numpy(zero_copy_only=False)
    if not available_N.any():
        raise InputError(f"None of the {len(item_ids)} items is available in {uri} (--items).")
    return Items(
        available_N,
        nothing if category is None else category,
        nothing if artist is None else artist,
        None if stock is None else stock.to_numpy(zero_copy_only=False),
    )


def read_groups(uri: str, column: str, item_ids: pa.Array) -> pa.LargeStringArray:
    """(N,) each item's value of a column of the items table, null for items without one.

    Raises:
        InputError: the table has no such column, or one of other types than ids.
    """
    found = _of_items(uri, (schemas.ITEMS[0], schemas.an_id(column)), item_ids)
    if column not in found:
        raise InputError(
            f"{uri} (--items) has no column {column}; expected the one that --rules.cap_by names."
        )
    return found[column]


def _of_items(
    uri: str, columns: Sequence[schemas.Column], item_ids: pa.Array
) -> dict[str, pa.Array]:
    """The columns that the items table has, a value for each of these items.

    Raises:
        InputError: the table cannot be read, names an item twice, or none of these items.
    """
    table = read_whole(uri, columns, "items")
    twice = table.num_rows - pc.count_distinct(table["item_id"]).as_py()
    if twice:
        raise InputError(
            f"{uri} (--items) has {twice} rows with an item_id that another row has, such as "
            f"{_repeated(table['item_id'])!r}; expected one row an item."
        )
    row_N = rows_of(item_ids, table["item_id"])
    if not (row_N >= 0).any():
        raise InputError(
            f"None of the {table.num_rows:,} items of {uri} (--items) has a feature; expected the "
            "same item ids in --items and --features. "
            f"{differing_ids(table['item_id'], 'The first', item_ids, 'the second')}"
        )
    places = pa.array(row_N, mask=row_N < 0)
    return {name: table[name].combine_chunks().take(places) for name in table.column_names}


def _repeated(ids: pa.ChunkedArray) -> str:
    counts = ids.value_counts()
    return str(counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py())


def category_codes(category_N: pa.LargeStringArray, known: Sequence[str]) -> npt.NDArray[np.int64]:
    """(N,) the place of each category among the known ones, -1 for none and for others."""
    return rows_of(category_N, pa.array(known, TEXT))


def category_names(category_N: pa.LargeStringArray) -> tuple[str, ...]:
    """The distinct categories, sorted."""
    return tuple(sorted(pc.unique(category_N.drop_null()).to_pylist()))


def artist_codes(artist_N: pa.LargeStringArray) -> npt.NDArray[np.int64] | None:
    """(N,) a number for each artist, -1 for none; None where no item has one."""
    if artist_N.null_count == len(artist_N):
        return None
    codes = artist_N.dictionary_encode().indices
    return np.asarray(pc.fill_null(codes, -1).to_numpy(), np.int64)
