"""Stable 64-bit hashes of ids, of rows of numbers and of lists, with no loop over them in Python.

A hash is the sum of its mixed 8-byte words, each mixed with its place, and of its mixed length
(splitmix64, Steele et al. 2014): the same on every machine and in every version of Python, numpy
and Arrow. They are for dealing and for noticing changes, not against who makes collisions on
purpose. Version 1; another computation gets another number, which is mixed in.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.ids import TEXT
from visrec.jagged import Jagged

Hashes = npt.NDArray[np.uint64]

_VERSION = 1
_STEP = np.uint64(0x9E3779B97F4A7C15)  # between the places of words: splitmix64's own
_NULL = np.uint64(0x6E756C6C)
_ROWS = 4096  # rows of numbers at a time


def _number(value: int) -> Hashes:
    """(1,) it: numpy's scalars warn where arrays wrap."""
    return np.array([value], np.uint64)


def splitmix64(value_X: Hashes) -> Hashes:
    """The finaliser of splitmix64."""
    value_X = (value_X ^ (value_X >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_X = (value_X ^ (value_X >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_X ^ (value_X >> np.uint64(31))


def _words(word_X: Hashes, place_X: Hashes) -> Hashes:
    """Words mixed with their places."""
    return splitmix64(word_X ^ splitmix64((place_X + np.uint64(_VERSION)) * _STEP))


def hash_strings(text: pa.Array) -> Hashes:
    """(N,) the hashes of strings by their UTF-8; nulls have one of their own."""
    text = text.cast(TEXT)
    count, first = len(text), text.offset
    _, offsets, data = text.buffers()
    begin_N, end_N = np.empty(0, np.int64), np.empty(0, np.int64)
    if count:
        offset_M = np.frombuffer(offsets, np.int64)[first : first + count + 1]
        begin_N, end_N = offset_M[:-1], offset_M[1:]
    length_N = end_N - begin_N
    hash_N = splitmix64(length_N.astype(np.uint64) + _STEP)
    # Every 8 bytes as a number, from any byte on; behind the last come zeros.
    size = 0 if data is None else data.size
    source = np.zeros(size + 8, np.uint8)
    if data is not None:
        source[:size] = np.frombuffer(data, np.uint8)
    word_B = np.ndarray((size + 1,), "<u8", source, strides=(1,))
    row_S, place = np.flatnonzero(length_N > 0), 0
    while len(row_S):
        left_S = length_N[row_S] - 8 * place
        word_S = word_B[begin_N[row_S] + 8 * place]
        unused_S = (8 * (8 - np.minimum(left_S, 8))).astype(np.uint64)
        word_S = word_S << unused_S >> unused_S
        hash_N[row_S] += _words(word_S, _number(place))
        row_S, place = row_S[left_S > 8], place + 1
    hash_N[text.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return hash_N


def hash_rows(number_NX: npt.NDArray[np.generic], row_M: npt.NDArray[np.int64]) -> Hashes:
    """(M,) the hashes of some rows of numbers by their bytes, the first axis N."""
    hash_M = np.empty(len(row_M), np.uint64)
    for start in range(0, len(row_M), _ROWS):
        part = number_NX[row_M[start : start + _ROWS]]
        byte_BX = np.ascontiguousarray(part.reshape(len(part), -1)).view(np.uint8)
        width = byte_BX.shape[1]
        word_BX = np.pad(byte_BX, ((0, 0), (0, -width % 8))).view("<u8")
        place_X = np.arange(word_BX.shape[1], dtype=np.uint64)
        hash_B = _words(word_BX, place_X).sum(axis=1, dtype=np.uint64)
        hash_M[start : start + _ROWS] = hash_B + splitmix64(_number(width) + _STEP)
    return hash_M


def hash_lists(value_V: Hashes, lists: Jagged) -> Hashes:
    """(B,) the hashes of lists by their values in order.

    Args:
        value_V: what stands for each of the lists' values.
        lists: B lists.
    """
    place_V = (np.arange(len(value_V)) - np.repeat(lists.offsets[:-1], lists.lengths)).astype(
        np.uint64
    )
    upto_V = np.zeros(len(value_V) + 1, np.uint64)
    np.cumsum(_words(value_V, place_V), out=upto_V[1:])  # wraps, and so do differences
    length_B = lists.lengths.astype(np.uint64)
    return np.asarray(
        upto_V[lists.offsets[1:]] - upto_V[lists.offsets[:-1]] + splitmix64(length_B + _STEP)
    )


def combined(*hashes: Hashes) -> Hashes:
    """(X,) hashes of hashes, in that order."""
    parts = [_words(hash_X, _number(place)) for place, hash_X in enumerate(hashes)]
    return np.asarray(np.add.reduce(parts))
