"""The compiled kernel for exact search and ranking by dot product.

It requires a processor with AVX-512 VNNI and a C++ compiler. Without either, `load_kernel()`
returns None and `kernel_unavailable_reason()` says why; torch then finds the same lists, several
times slower. The kernel uses as many threads as torch, which divide the users between them.

Shapes: B users, K list length, N items, P held-out items of all users, V entries of lists, d width.
"""

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from visrec.jagged import Jagged
from visrec.native import compile_and_load, pointers

_SOURCE = Path(__file__).with_name("kernel.cpp")
_BLOCK = 64  # kItems in kernel.cpp
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class PackedItems:
    """Items packed for exact search: their vectors rounded to bytes, and the vectors.

    Args:
        vectors_Nd: finite vectors; kept, because the last step of a search uses them.
        available_N: which items may be found; None for all.
        kernel: see `load_kernel`.
    """

    def __init__(
        self, vectors_Nd: Floats, available_N: npt.NDArray[np.bool_] | None, kernel: ctypes.CDLL
    ) -> None:
        self._vectors_Nd, self._kernel = _floats(vectors_Nd), kernel
        n, d = self._vectors_Nd.shape
        padded, quads = -(-n // _BLOCK) * _BLOCK, -(-d // 4)
        unavailable_N = None if available_N is None else np.ascontiguousarray(~available_N)
        self._packed = _aligned(padded * quads * 4, np.dtype(np.uint8))
        self._scale = _aligned(padded, np.dtype(np.float32))
        self._bounds = np.empty((padded // _BLOCK, 2), np.float32)
        self._mean_d, exponent = np.empty(d), np.empty(1, np.int32)
        kernel.visrec_pack(
            *pointers(self._vectors_Nd, unavailable_N),
            *map(ctypes.c_int64, (n, d)),
            *pointers(self._packed, self._scale, self._bounds, self._mean_d, exponent),
        )
        self._exponent = int(exponent[0])

    def top_k(self, user_Bd: Floats, excluded: Jagged, k: int) -> tuple[Ints, Floats]:
        """(B, k) rows and scores, best first, ties to the lower row; -1 and -inf after the last.

        Args:
            user_Bd: the users' finite vectors.
            excluded: B lists of rows that may not be found for that user, in any order.
            k: list length.
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
            *map(ctypes.c_int64, (k, torch.get_num_threads())),
            *pointers(rows, scores),
        )
        return rows, scores


def rank(
    vectors_Nd: Floats,
    user_Bd: Floats,
    profiles: Jagged,
    targets: Jagged,
    wide_B: npt.NDArray[np.bool_],
    kernel: ctypes.CDLL,
) -> tuple[Ints, Ints, Ints]:
    """(P,) each: items above a target, non-targets above it, and non-targets equal to it.

    Products are summed in float32 in a fixed order that does not depend on the other users. In the
    first count, equal items with a lower row are above. NaN is above everything.

    Args:
        vectors_Nd: the items' vectors.
        user_Bd: the users' vectors.
        profiles: B lists of rows that are left out.
        targets: B lists of rows, none of which is in the profile.
        wide_B: (B,) users whose products are summed in float64.
        kernel: see `load_kernel`.
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
        ctypes.c_int64(torch.get_num_threads()),
        *pointers(above_P, others_above_P, others_equal_P),
    )
    return above_P, others_above_P, others_equal_P


def nearest(vectors_Nd: Floats, profiles: Jagged, row_BK: Ints, kernel: ctypes.CDLL) -> Ints:
    """(B, K) the profile row with the largest cosine to each row, the first one in case of ties.

    Args:
        vectors_Nd: the vectors to compare.
        profiles: B lists of rows.
        row_BK: rows, -1 for none; these get -1.
        kernel: see `load_kernel`.
    """
    vectors_Nd, row_BK = _floats(vectors_Nd), np.ascontiguousarray(row_BK, np.int64)
    lists = _lists(profiles)
    nearest_BK = np.empty(row_BK.shape, np.int64)
    kernel.visrec_nearest(
        *pointers(vectors_Nd),
        ctypes.c_int64(vectors_Nd.shape[1]),
        *pointers(row_BK),
        *map(ctypes.c_int64, row_BK.shape),
        *pointers(*lists),
        ctypes.c_int64(torch.get_num_threads()),
        *pointers(nearest_BK),
    )
    return nearest_BK


def load_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if it is not available here."""
    return compile_and_load(_SOURCE)[0]


def kernel_for(vectors_Nd: torch.Tensor) -> ctypes.CDLL | None:
    """The compiled kernel, or None if it is not available or does not take these vectors.

    It takes float32 vectors on a CPU. The caller then computes the same results with torch.
    """
    is_supported = vectors_Nd.device.type == "cpu" and vectors_Nd.dtype == torch.float32
    return load_kernel() if is_supported else None


def kernel_unavailable_reason() -> str | None:
    """Why the kernel is not available here; None if it is."""
    return compile_and_load(_SOURCE)[1]


def _aligned(count: int, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    """Zeros that start at a multiple of 64 bytes, as loads of whole registers require."""
    raw = np.zeros(count * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * dtype.itemsize].view(dtype)


# The kernel reads memory by address, so arrays are first converted to the types it expects.


def _floats(array: npt.NDArray[np.generic]) -> Floats:
    return np.ascontiguousarray(array, np.float32)


def _lists(lists: Jagged) -> tuple[Ints, Ints]:
    offsets, values = (np.ascontiguousarray(a, np.int64) for a in (lists.offsets, lists.values))
    return offsets, values


def _sorted(lists: Jagged) -> Jagged:
    """Each list sorted."""
    stride = int(lists.values.max(initial=0)) + 1
    list_V = lists.row_ids
    key_V = np.sort(list_V * stride + lists.values)
    return Jagged(key_V - list_V * stride, lists.offsets.astype(np.int64))
