"""Stable 64-bit hashes of strings, numeric rows and lists, vectorized over the rows.

The bytes of a value are read as 8-byte words. Each word is mixed with its position by splitmix64
(Steele et al. 2014), the mixed words are summed, and the mixed length is added. Hashes are the same
on every machine and in every version of Python, numpy and Arrow. They assign shards and detect
changes; they do not resist deliberate collisions. A different computation needs a different
`_VERSION`, which is mixed in.

Shapes: N strings, M selected rows, V values of B lists, X any.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.ids import TEXT
from visrec.jagged import Jagged

Hashes = npt.NDArray[np.uint64]

_VERSION = 1
_STEP = np.uint64(0x9E3779B97F4A7C15)  # between the positions of words: splitmix64's increment
_NULL = np.uint64(0x6E756C6C)
_BLOCK_ROWS = 4096  # bounds the memory that `hash_rows` takes


def _scalar(value: int) -> Hashes:
    """(1,) the value: numpy warns where scalars overflow, but not where arrays do."""
    return np.array([value], np.uint64)


def splitmix64(value_X: Hashes) -> Hashes:
    """The finaliser of splitmix64."""
    value_X = (value_X ^ (value_X >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_X = (value_X ^ (value_X >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_X ^ (value_X >> np.uint64(31))


def _mix_words(word_X: Hashes, position_X: Hashes) -> Hashes:
    """Mixes words with their positions."""
    return splitmix64(word_X ^ splitmix64((position_X + np.uint64(_VERSION)) * _STEP))


def hash_strings(text: pa.Array) -> Hashes:
    """(N,) the hashes of strings by their UTF-8 bytes; all nulls share one hash."""
    text = text.cast(TEXT)
    count, first = len(text), text.offset
    _, offsets, data = text.buffers()
    begin_N, end_N = np.empty(0, np.int64), np.empty(0, np.int64)
    if count:
        offset_M = np.frombuffer(offsets, np.int64)[first : first + count + 1]
        begin_N, end_N = offset_M[:-1], offset_M[1:]
    length_N = end_N - begin_N
    hash_N = splitmix64(length_N.astype(np.uint64) + _STEP)
    # A view of 8 bytes from every byte on. Zeros follow the last byte.
    size = 0 if data is None else data.size
    source = np.zeros(size + 8, np.uint8)
    if data is not None:
        source[:size] = np.frombuffer(data, np.uint8)
    word_B = np.ndarray((size + 1,), "<u8", source, strides=(1,))
    row_S, position = np.flatnonzero(length_N > 0), 0
    while len(row_S):
        left_S = length_N[row_S] - 8 * position
        word_S = word_B[begin_N[row_S] + 8 * position]
        unused_S = (8 * (8 - np.minimum(left_S, 8))).astype(np.uint64)
        word_S = word_S << unused_S >> unused_S
        hash_N[row_S] += _mix_words(word_S, _scalar(position))
        row_S, position = row_S[left_S > 8], position + 1
    hash_N[text.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return hash_N


def hash_rows(value_NX: npt.NDArray[np.generic], row_M: npt.NDArray[np.int64]) -> Hashes:
    """(M,) the hashes of rows of a numeric array by their bytes.

    Args:
        value_NX: N rows of any shape.
        row_M: (M,) the rows to hash.
    """
    hash_M = np.empty(len(row_M), np.uint64)
    for start in range(0, len(row_M), _BLOCK_ROWS):
        block = value_NX[row_M[start : start + _BLOCK_ROWS]]
        byte_BX = np.ascontiguousarray(block.reshape(len(block), -1)).view(np.uint8)
        width = byte_BX.shape[1]
        word_BX = np.pad(byte_BX, ((0, 0), (0, -width % 8))).view("<u8")
        position_X = np.arange(word_BX.shape[1], dtype=np.uint64)
        hash_B = _mix_words(word_BX, position_X).sum(axis=1, dtype=np.uint64)
        hash_M[start : start + _BLOCK_ROWS] = hash_B + splitmix64(_scalar(width) + _STEP)
    return hash_M


def hash_lists(hash_V: Hashes, lists: Jagged) -> Hashes:
    """(B,) the hashes of lists by their values in order.

    Args:
        hash_V: (V,) the hash of each value.
        lists: B lists with V values.
    """
    position_V = (np.arange(len(hash_V)) - np.repeat(lists.offsets[:-1], lists.lengths)).astype(
        np.uint64
    )
    sum_V = np.zeros(len(hash_V) + 1, np.uint64)
    # The sums wrap around, and their differences wrap back.
    np.cumsum(_mix_words(hash_V, position_V), out=sum_V[1:])
    length_B = lists.lengths.astype(np.uint64)
    return np.asarray(
        sum_V[lists.offsets[1:]] - sum_V[lists.offsets[:-1]] + splitmix64(length_B + _STEP)
    )


def combine_hashes(*hashes: Hashes) -> Hashes:
    """(X,) one hash of several; their order counts."""
    mixed = [_mix_words(hash_X, _scalar(position)) for position, hash_X in enumerate(hashes)]
    return np.asarray(np.add.reduce(mixed))
