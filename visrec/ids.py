"""Ids in memory: text with 64-bit offsets, since the ids of a whole catalogue may exceed the 2 GiB
that `pa.string()` holds in one array. Files that others read have plain strings all the same.

Everything here takes either kind of text, as one array or in chunks. Arrow casts the *second* of
two columns that it compares to the type of the first, which must not be the smaller one.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

TEXT = pa.large_string()  # of all ids and texts in memory, whose bytes together may exceed 2 GiB


def id_array(ids: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """The ids as one array; not copied where they are one of the right type already."""
    ids = ids.cast(TEXT)
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def rows_of(
    ids: pa.Array | pa.ChunkedArray, known: pa.Array | pa.ChunkedArray
) -> npt.NDArray[np.int64]:
    """(V,) the place of each id among the known ones, -1 for none."""
    places = pc.index_in(ids.cast(TEXT), value_set=known.cast(TEXT), skip_nulls=True)
    return np.asarray(pc.fill_null(places, -1).to_numpy(zero_copy_only=False), np.int64)


def is_among(
    ids: pa.Array | pa.ChunkedArray, known: pa.Array | pa.ChunkedArray
) -> pa.BooleanArray | pa.ChunkedArray:
    """(V,) whether each id is one of the known ones, of which none is null."""
    return pc.is_in(ids.cast(TEXT), value_set=known.cast(TEXT))
