"""The compiled kernel for dot products on this processor.

A processor without AVX-512 VNNI, or a machine without a C++ compiler, has none: `library()` is then
None and `missing()` says why. Scoring goes on with torch, some times slower, to the same lists.
"""

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visrec.jagged import Jagged
from visrec.native import compiled, pointers

_SOURCE = Path(__file__).with_name("kernel.cpp")
_BLOCK = 64  # kItems of the source
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class PackedItems:
    """The items' vectors as bytes, a quarter of their size, for exact searches.

    Args:
        vectors_Nd: finite; kept, for the last step is done with them.
        available_N: which items may be found; None for all.
        kernel: see `library`.
    """

    def __init__(
        self, vectors_Nd: Floats, available_N: npt.NDArray[np.bool_] | None, kernel: ctypes.CDLL
    ) -> None:
        self._vectors_Nd, self._kernel = _floats(vectors_Nd), kernel
        n, d = self._vectors_Nd.shape
        padded, quads = -(-n // _BLOCK) * _BLOCK, -(-d // 4)
        closed_N = None if available_N is None else np.ascontiguousarray(~available_N)
        self._packed = _aligned(padded * quads * 4, np.dtype(np.uint8))
        self._scale = _aligned(padded, np.dtype(np.float32))
        self._bounds = np.empty((padded // _BLOCK, 2), np.float32)
        self._mean_d, exponent = np.empty(d), np.empty(1, np.int32)
        kernel.visrec_pack(
            *pointers(self._vectors_Nd, closed_N),
            *map(ctypes.c_int64, (n, d)),
            *pointers(self._packed, self._scale, self._bounds, self._mean_d, exponent),
        )
        self._exponent = int(exponent[0])

    def top_k(self, user_Bd: Floats, excluded: Jagged, k: int, threads: int) -> tuple[Ints, Floats]:
        """(B, k) rows and scores, best first, ties to the lower row; -1 and -inf behind the last.

        Args:
            user_Bd: finite.
            excluded: B lists of rows that are not to be found for that user, in any order.
            k: how many.
            threads: that search, each some of the users.
        """
        user_Bd, excluded = _floats(user_Bd), _sorted(excluded)
        (b, d), n = user_Bd.shape, len(self._vectors_Nd)
        rows, scores = np.empty((b, k), np.int64), np.empty((b, k), np.float32)
        self._kernel.visrec_top_k(
            *pointers(self._vectors_Nd, self._packed, self._scale, self._bounds, self._mean_d),
            *map(ctypes.c_int64, (n, d, self._exponent)),
            *pointers(user_Bd),
            ctypes.c_int64(b),
            *pointers(excluded.offsets, excluded.values),
            *map(ctypes.c_int64, (k, threads)),
            *pointers(rows, scores),
        )
        return rows, scores


def rank(
    vectors_Nd: Floats,
    user_Bd: Floats,
    profiles: Jagged,
    targets: Jagged,
    wide_B: npt.NDArray[np.bool_],
    threads: int,
    kernel: ctypes.CDLL,
) -> tuple[Ints, Ints, Ints]:
    """(P,) each: items above each target, those that are no targets above it, and equal to it.

    Products are added up in float32 in one order, whatever the users beside. Equal items of a lower
    row are above; what is no number is above all.

    Args:
        vectors_Nd: the items'.
        user_Bd: the users'.
        profiles: B lists of rows that are left out.
        targets: B lists of rows, none of which is in the profile.
        wide_B: (B,) users whose products are added up in float64.
        threads: that rank, each some of the users.
        kernel: see `library`.
    """
    vectors_Nd, user_Bd = _floats(vectors_Nd), _floats(user_Bd)
    lists = [*_lists(profiles), *_lists(targets)]
    above_P, others_above_P, others_equal_P = np.empty((3, len(targets.values)), np.int64)
    kernel.visrec_rank(
        *pointers(vectors_Nd),
        *map(ctypes.c_int64, vectors_Nd.shape),
        *pointers(user_Bd),
        ctypes.c_int64(len(user_Bd)),
        *pointers(*lists, np.ascontiguousarray(wide_B, bool)),
        ctypes.c_int64(threads),
        *pointers(above_P, others_above_P, others_equal_P),
    )
    return above_P, others_above_P, others_equal_P


def nearest(
    vectors_Nd: Floats, profiles: Jagged, row_BK: Ints, threads: int, kernel: ctypes.CDLL
) -> Ints:
    """(B, K) the profile row nearest by cosine to each row, the first of equals; -1 for none.

    Args:
        vectors_Nd: where near means alike.
        profiles: B lists of rows.
        row_BK: rows, -1 for none.
        threads: that search.
        kernel: see `library`.
    """
    vectors_Nd, row_BK = _floats(vectors_Nd), np.ascontiguousarray(row_BK, np.int64)
    lists = _lists(profiles)
    found = np.empty(row_BK.shape, np.int64)
    kernel.visrec_nearest(
        *pointers(vectors_Nd),
        ctypes.c_int64(vectors_Nd.shape[1]),
        *pointers(row_BK),
        *map(ctypes.c_int64, row_BK.shape),
        *pointers(*lists),
        ctypes.c_int64(threads),
        *pointers(found),
    )
    return found


def library() -> ctypes.CDLL | None:
    """The kernel, or None where there can be none."""
    return compiled(_SOURCE)[0]


def missing() -> str | None:
    """Why there is no kernel here; None where there is one."""
    return compiled(_SOURCE)[1]


def _aligned(count: int, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    """Zeros that begin at a multiple of 64 bytes, as a register's worth of them must."""
    raw = np.zeros(count * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * dtype.itemsize].view(dtype)


# The kernel takes addresses: whatever an array is of, it must be of these by then.


def _floats(array: npt.NDArray[np.generic]) -> Floats:
    return np.ascontiguousarray(array, np.float32)


def _lists(lists: Jagged) -> tuple[Ints, Ints]:
    offsets, values = (np.ascontiguousarray(a, np.int64) for a in (lists.offsets, lists.values))
    return offsets, values


def _sorted(lists: Jagged) -> Jagged:
    """Each list in rising order."""
    most = int(lists.values.max(initial=0)) + 1
    key_V = np.sort(lists.owners * most + lists.values)
    return Jagged(key_V - lists.owners * most, lists.offsets.astype(np.int64))
