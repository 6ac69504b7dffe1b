"""Ids in memory: strings with 64-bit offsets, since the ids of a large catalogue may exceed the
2 GiB that one array of `pa.string()` can hold. Files keep plain strings, which every tool reads.

All functions accept both string types, as one array or in chunks. When Arrow compares two columns,
it casts the second to the type of the first, so the first must not be the smaller type.
"""

import difflib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

TEXT = pa.large_string()  # type of all ids and texts in memory
_SIMILARITY = 0.75  # ids of one shop resemble each other
_COMPARED = 20_000  # ids, about 0.3 s
_PENDING_IDS = 1 << 20  # that `DistinctIds` collects before it looks for repeats


def id_array(ids: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """The ids as one array; not copied if they are one array of that type already."""
    ids = ids.cast(TEXT)
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def index_in(
    ids: pa.Array | pa.ChunkedArray, value_set: pa.Array | pa.ChunkedArray
) -> npt.NDArray[np.int64]:
    """(V,) position of each id in the value set, -1 for ids that are null or not in it."""
    if pa.types.is_dictionary(ids.type):
        return _index_codes_in(ids, value_set)
    positions = pc.index_in(ids.cast(TEXT), value_set=value_set.cast(TEXT), skip_nulls=True)
    return np.asarray(pc.fill_null(positions, -1).to_numpy(zero_copy_only=False), np.int64)


def _index_codes_in(
    ids: pa.DictionaryArray | pa.ChunkedArray, value_set: pa.Array | pa.ChunkedArray
) -> npt.NDArray[np.int64]:
    """`index_in` that looks up each id of the dictionary once."""
    chunks = ids.unify_dictionaries().chunks if isinstance(ids, pa.ChunkedArray) else [ids]
    if not chunks:
        return np.zeros(0, np.int64)
    # Nulls have the code -1, which is the last row.
    position_D = np.append(index_in(chunks[0].dictionary, value_set), -1)
    return np.concatenate([position_D[pc.fill_null(c.indices, -1).to_numpy()] for c in chunks])


def encode_ids(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The ids as codes into a dictionary for each chunk, which they may be already."""
    if not pa.types.is_dictionary(ids.type):
        return ids.cast(TEXT).dictionary_encode()
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(TEXT))
        for chunk in ids.chunks
    ]
    return pa.chunked_array(chunks, pa.dictionary(pa.int32(), TEXT))


def is_in(
    ids: pa.Array | pa.ChunkedArray, value_set: pa.Array | pa.ChunkedArray
) -> pa.BooleanArray | pa.ChunkedArray:
    """(V,) whether each id is in the value set, which must not contain nulls."""
    return pc.is_in(ids.cast(TEXT), value_set=value_set.cast(TEXT))


def nearest_id(found: str, known: pa.Array | pa.ChunkedArray) -> str:
    """The end of a sentence about an unknown id: the known one that was probably meant, if any.

    Ids that differ by case, white space or leading zeros come first, then the most similar of
    those of about the same length.
    """
    ids = pc.unique(id_array(known).drop_null())
    for normalize in (pc.utf8_trim_whitespace, pc.utf8_lower, _without_zeros):
        same = ids.filter(pc.equal(normalize(ids), normalize(pa.scalar(found, TEXT))))
        if len(same):
            return f"; did you mean {same[0].as_py()!r}?"
    difference = pc.abs(pc.subtract(pc.utf8_length(ids), len(found)))
    sample = ids.filter(pc.less_equal(difference, 2))[:_COMPARED].to_pylist()
    close = difflib.get_close_matches(found, sample, n=1, cutoff=_SIMILARITY)
    return f"; did you mean {close[0]!r}?" if close else ""


def _without_zeros(ids: pa.Array | pa.Scalar) -> pa.Array | pa.Scalar:
    return pc.utf8_ltrim(pc.utf8_lower(ids), characters="0")


class DistinctIds:
    """The distinct ids of columns that are added one after another; holds each id about twice."""

    def __init__(self) -> None:
        self._ids: pa.LargeStringArray = pa.array([], TEXT)
        self._pending: list[pa.Array] = []
        self._pending_ids = 0

    def add(self, column: pa.Array | pa.ChunkedArray) -> None:
        """Adds the ids of a column that are not null."""
        ids = pc.unique(column.cast(TEXT).drop_null())
        self._pending.append(ids)
        self._pending_ids += len(ids)
        if self._pending_ids > max(_PENDING_IDS, len(self._ids)):
            self._merge()

    @property
    def ids(self) -> pa.LargeStringArray:
        """The distinct ids, in the order in which they were added first."""
        self._merge()
        return self._ids

    def _merge(self) -> None:
        self._ids = pc.unique(pa.chunked_array([self._ids, *self._pending]))
        self._pending, self._pending_ids = [], 0
