"""Ids in memory: strings with 64-bit offsets, since the ids of a large catalogue may exceed the
2 GiB that one array of `pa.string()` can hold. Files keep plain strings, which every tool reads.

All functions accept both string types, as one array or in chunks. When Arrow compares two columns,
it casts the second to the type of the first, so the first must not be the smaller type.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

TEXT = pa.large_string()  # type of all ids and texts in memory


def id_array(ids: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """The ids as one array; not copied if they are one array of that type already."""
    ids = ids.cast(TEXT)
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def index_in(
    ids: pa.Array | pa.ChunkedArray, value_set: pa.Array | pa.ChunkedArray
) -> npt.NDArray[np.int64]:
    """(V,) position of each id in the value set, -1 for ids that are null or not in it."""
    positions = pc.index_in(ids.cast(TEXT), value_set=value_set.cast(TEXT), skip_nulls=True)
    return np.asarray(pc.fill_null(positions, -1).to_numpy(zero_copy_only=False), np.int64)


def is_in(
    ids: pa.Array | pa.ChunkedArray, value_set: pa.Array | pa.ChunkedArray
) -> pa.BooleanArray | pa.ChunkedArray:
    """(V,) whether each id is in the value set, which must not contain nulls."""
    return pc.is_in(ids.cast(TEXT), value_set=value_set.cast(TEXT))
