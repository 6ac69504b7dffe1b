"""The pictures of one item, its views, in their order.

Shapes: R rows of a listing, V views of one item.
"""

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.ids import TEXT, index_in

MAX_VIEWS = 64  # of an item; all of them are in memory at once
_NUMBERS = re.compile(r"(\d+)")


def natural_key(view: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts numbers in texts by their value: `2` before `10`, and numbers before words."""
    return tuple(
        (0, int(part), "") if n % 2 else (1, 0, part)
        for n, part in enumerate(_NUMBERS.split(view))
        if part
    )


def order_views(listing: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The pictures of a listing by item and view, and those that are there twice.

    Files without a view are pictures of the same view, as `a.jpg` and `a.png`. Rows of a table
    without views are views in the order of the rows, unless they have one URI; they are numbered
    from 1 if there are several.

    Args:
        listing: rows as `visrec.sources.images.LISTING_SCHEMA`, in the order of the listing.

    Returns:
        One row for each view of each item, and the other rows.
    """
    is_row = pc.or_(pc.is_valid(listing["row_group"]), pc.is_null(listing["source"]))
    # Files are ordered by name as well; the sort keeps the order of a table's rows.
    name = pc.if_else(is_row, pa.scalar(None, TEXT), listing["uri"])
    keys = pa.table([listing["item_id"], _ranks(listing["view"]), name], ["item", "rank", "name"])
    order = pc.sort_indices(keys, [(key, "ascending") for key in keys.column_names])
    listing, is_row = listing.take(order).combine_chunks(), is_row.take(order)
    identities = _identities(listing, is_row)
    is_first_R = index_in(identities, identities) == np.arange(len(identities))
    views, others = listing.filter(pa.array(is_first_R)), listing.filter(pa.array(~is_first_R))
    return _number_rows(views, is_row.filter(pa.array(is_first_R))), others


def _ranks(views: pa.ChunkedArray) -> pa.Array:
    """(R,) position of each view in the natural order of all; 0 for pictures without a view."""
    distinct = pc.unique(views.drop_null()).cast(TEXT)
    ordered = sorted(distinct.to_pylist(), key=natural_key)
    return pa.array(index_in(views, pa.array(ordered, TEXT)) + 1)


def _identities(listing: pa.Table, is_row: pa.ChunkedArray) -> pa.ChunkedArray:
    """(R,) a text for each picture that is the same for the same view of the same item."""
    null = pa.scalar(None, TEXT)
    # Bytes of two rows may be the same, but only reading them would tell.
    bytes_at = pc.binary_join_element_wise(
        listing["row_group"].cast(TEXT), listing["row"].cast(TEXT), pa.scalar("/", TEXT)
    )
    in_table = pc.binary_join_element_wise(
        pc.fill_null(listing["uri"], ""), pc.fill_null(bytes_at, ""), pa.scalar("#", TEXT)
    )
    of_view = pc.binary_join_element_wise(
        pa.scalar("view", TEXT), listing["view"], pa.scalar(" ", TEXT)
    )
    what = pc.coalesce(of_view, pc.if_else(is_row, in_table, null), pa.scalar("", TEXT))
    return pc.binary_join_element_wise(listing["item_id"], what, pa.scalar("\0", TEXT))


def _number_rows(views: pa.Table, is_row: pa.ChunkedArray) -> pa.Table:
    """Numbers the views of items that have several rows of a table without a view."""
    starts = item_starts(views["item_id"])
    counts = np.diff(np.append(starts, len(views)))
    number = pa.array(np.arange(len(views)) - np.repeat(starts, counts) + 1).cast(TEXT)
    is_unnamed = pc.and_(is_row, pa.array(np.repeat(counts > 1, counts)))
    view = pc.coalesce(views["view"], pc.if_else(is_unnamed, number, pa.scalar(None, TEXT)))
    return views.set_column(views.column_names.index("view"), "view", view)


def item_starts(item_ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Position of the first row of each item; the rows of an item follow one another."""
    if not len(item_ids):
        return np.zeros(0, np.int64)
    ids = item_ids.combine_chunks() if isinstance(item_ids, pa.ChunkedArray) else item_ids
    is_new = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.append(True, is_new))
