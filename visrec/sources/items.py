"""The items table: which items may be recommended, and their category, artist and stock."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError
from visrec.ids import TEXT, index_in
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.tables import load_table


@dataclass(frozen=True)
class Items:
    """Columns of the items table for the N items of a catalogue, in its order.

    Attributes:
        available_N: (N,) whether an item may be recommended; true unless the table says otherwise.
        category_N: (N,) name of the category, null for none.
        artist_N: (N,) id of the artist, null for none.
        stock_N: (N,) number of copies, NaN if unknown; None if the table has no such column.
    """

    available_N: npt.NDArray[np.bool_]
    category_N: pa.LargeStringArray
    artist_N: pa.LargeStringArray
    stock_N: npt.NDArray[np.float64] | None = None


def read_items(table: InputTable | None, item_ids: pa.Array) -> Items:
    """The items table for these items; without a table all are available.

    Args:
        table: where it is, None without one.
        item_ids: (N,) ids of the catalogue.

    Raises:
        InputError: the table cannot be read, names an item twice, or no item is available.
    """
    null_N = pa.nulls(len(item_ids), TEXT)
    if table is None:
        return Items(np.ones(len(item_ids), bool), null_N, null_N)
    columns = _read_columns(table, schemas.ITEMS, item_ids)
    available, category, artist, stock = (
        columns.get(name) for name in ("available", "category", "artist_id", "stock")
    )
    available_N = np.ones(len(item_ids), bool)
    if available is not None:
        available_N = pc.fill_null(available, True).to_numpy(zero_copy_only=False)
    if not available_N.any():
        raise InputError(
            f"None of the {len(item_ids)} items is available in {table.uri} (--items).",
            path=table.uri,
            key="items",
        )
    return Items(
        available_N,
        null_N if category is None else category,
        null_N if artist is None else artist,
        None if stock is None else stock.to_numpy(zero_copy_only=False),
    )


def read_item_groups(table: InputTable, column: str, item_ids: pa.Array) -> pa.LargeStringArray:
    """(N,) the value of one column of the items table for each item, null for none.

    Raises:
        InputError: the table has no such column, or its type is not that of ids.
    """
    columns = _read_columns(table, (schemas.ITEMS[0], schemas.label_column(column)), item_ids)
    if column not in columns:
        raise InputError(
            f"{table.uri} (--items) has no column {column}; expected the one that --rules.cap_by "
            "names.",
            path=table.uri,
            key="items",
        )
    return columns[column]


def _read_columns(
    table: InputTable, columns: Sequence[schemas.Column], item_ids: pa.Array
) -> dict[str, pa.Array]:
    """The declared columns that the items table has, each with one value per item.

    Raises:
        InputError: the table cannot be read, names an item twice, or has none of these items.
    """
    items = load_table(table, columns)
    uri = table.uri
    require_one_row_per_item(items["item_id"], uri)
    row_N = index_in(item_ids, items["item_id"])
    if not (row_N >= 0).any():
        raise InputError(
            f"None of the {items.num_rows:,} items of {uri} (--items) has a feature; expected the "
            "same item ids in --items and --features. "
            f"{explain_id_mismatch(items['item_id'], 'The first', item_ids, 'the second')}",
            path=uri,
            key="items",
        )
    rows = pa.array(row_N, mask=row_N < 0)
    return {name: items[name].combine_chunks().take(rows) for name in items.column_names}


def require_one_row_per_item(item_ids: pa.ChunkedArray, uri: str) -> None:
    """Refuses an items table that names an item twice.

    Raises:
        InputError: it does; the message shows an example.
    """
    duplicates = len(item_ids) - pc.count_distinct(item_ids).as_py()
    if duplicates:
        raise InputError(
            f"{uri} (--items) has {duplicates} rows whose item_id occurs before, such as "
            f"{_first_duplicate(item_ids)!r}; expected one row per item.",
            path=uri,
            key="items",
        )


def _first_duplicate(ids: pa.ChunkedArray) -> str:
    counts = ids.value_counts()
    return str(counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py())


def category_codes(
    category_N: pa.LargeStringArray, categories: Sequence[str]
) -> npt.NDArray[np.int64]:
    """(N,) index of each category in `categories`, -1 for none and for any other."""
    return index_in(category_N, pa.array(categories, TEXT))


def category_names(category_N: pa.LargeStringArray) -> tuple[str, ...]:
    """The distinct categories, sorted."""
    return tuple(sorted(pc.unique(category_N.drop_null()).to_pylist()))


def artist_codes(artist_N: pa.LargeStringArray) -> npt.NDArray[np.int64] | None:
    """(N,) code of each artist, -1 for none; None if no item has an artist."""
    if artist_N.null_count == len(artist_N):
        return None
    codes = artist_N.dictionary_encode().indices
    return np.asarray(pc.fill_null(codes, -1).to_numpy(), np.int64)
