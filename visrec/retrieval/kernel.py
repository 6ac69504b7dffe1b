"""The compiled kernel for exact search and ranking by dot product.

It comes with the package for several instruction sets (`visrec/isas.py`), or is compiled on first
use. Where neither is possible, `load_kernel()` returns None and `kernel_unavailable_reason()` says
why; torch then finds the same lists, several times slower. The kernel uses as many threads as
torch, which divide the users between them.

Shapes: B users, K list length, N items, P held-out items of all users, V entries of lists, d width.
"""

import ctypes
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from visrec.jagged import Jagged
from visrec.native import compile_and_load, loaded_isa, pointers, require_rows
from visrec.retrieval.rotation import Rotation, choose_rotation, users_before_choice

_SOURCE = Path(__file__).with_name("kernel.cpp")
_BLOCK = 64  # kItems in kernel.cpp
_REGISTER = 64  # bytes of the widest one
_PACKED_AT_A_TIME = 1024  # items: 1.6 MB in float64 at a width of 200; a multiple of a block
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class PackedItems:
    """Items packed for exact search: their vectors rounded to bytes, and the vectors.

    They are packed when the first users are searched for, and again if so many users are searched
    for that a rotation pays (`rotation.py`).

    Args:
        vectors_Nd: finite vectors; kept, because the last step of a search uses them.
        available_N: which items may be found; None for all.
        kernel: see `load_kernel`.
    """

    def __init__(
        self, vectors_Nd: Floats, available_N: npt.NDArray[np.bool_] | None, kernel: ctypes.CDLL
    ) -> None:
        self._vectors_Nd, self._kernel = _floats(vectors_Nd), kernel
        self._available_N = available_N
        self._packed: _Packed | None = None
        self._choose_after = users_before_choice(*self._vectors_Nd.shape)
        self._seen: list[Floats] = []  # the users' vectors until then

    def top_k(self, user_Bd: Floats, excluded: Jagged, k: int) -> tuple[Ints, Floats]:
        """(B, k) rows and scores, best first, ties to the lower row; -1 and -inf after the last.

        Args:
            user_Bd: the users' finite vectors.
            excluded: B lists of rows that may not be found for that user, in any order.
            k: list length.
        """
        user_Bd = _floats(user_Bd)
        packed, (b, d) = self._packed_for(user_Bd, k), user_Bd.shape
        excluded = _sorted(Jagged(packed.position_N[excluded.values], excluded.offsets))
        rows, scores = np.empty((b, k), np.int64), np.empty((b, k), np.float32)
        self._kernel.visrec_top_k(
            *pointers(self._vectors_Nd, packed.rows, *packed.arrays, packed.mean_d, packed.user_dd),
            *map(ctypes.c_int64, (len(self._vectors_Nd), d, packed.lead)),
            *map(ctypes.c_int64, (packed.rest_bytes, packed.exponent)),
            *pointers(user_Bd),
            ctypes.c_int64(b),
            *pointers(excluded.offsets, excluded.values),
            *map(ctypes.c_int64, (k, torch.get_num_threads())),
            *pointers(rows, scores),
        )
        return rows, scores

    def _packed_for(self, user_Bd: Floats, k: int) -> "_Packed":
        """The items, packed or packed again if these users make it worthwhile."""
        rotation = None
        if self._choose_after is not None:
            self._seen.append(user_Bd)
            if sum(map(len, self._seen)) >= self._choose_after:
                rotation = choose_rotation(self._vectors_Nd, np.concatenate(self._seen), k)
                self._choose_after, self._seen = None, []
        if self._packed is None or rotation:
            self._packed = None  # before the other is made: there is room for one
            self._packed = _pack(self._vectors_Nd, self._available_N, rotation, self._kernel)
        return self._packed


@dataclass(frozen=True)
class _Packed:
    """`Items` in kernel.cpp."""

    rows: npt.NDArray[np.int32]
    position_N: Ints
    arrays: list[npt.NDArray[np.generic]]  # packed, scale, bounds, rest, rest_scale, rest_length
    mean_d: npt.NDArray[np.float64]
    lead: int
    rest_bytes: int
    exponent: int
    user_dd: npt.NDArray[np.float64] | None


def _order(n: int) -> Ints:
    """The row at each position. A random order lets the search guess the k-th score early."""
    return np.random.default_rng(0).permutation(n)


def _pack(
    vectors_Nd: Floats,
    available_N: npt.NDArray[np.bool_] | None,
    rotation: Rotation | None,
    kernel: ctypes.CDLL,
) -> _Packed:
    n, d = vectors_Nd.shape
    padded, lead = -(-n // _BLOCK) * _BLOCK, rotation.lead if rotation else d
    rest_bytes = -(-(d - lead) // _REGISTER) * _REGISTER
    arrays: list[npt.NDArray[np.generic]] = [
        _aligned(padded * -(-lead // 8) * 8, np.dtype(np.uint8)),
        _aligned(padded, np.dtype(np.float32)),
        np.zeros((padded // _BLOCK, 4), np.float32),
        _aligned(padded * rest_bytes, np.dtype(np.uint8)),
        np.zeros(padded, np.float32),
        np.zeros(padded, np.float32),
    ]
    arrays[1].fill(np.nan)  # no item
    mean_d = vectors_Nd.mean(axis=0, dtype=np.float64)
    row_N = _order(n)
    largest = float(max(vectors_Nd.max(initial=0), -vectors_Nd.min(initial=0)))
    exponent = math.frexp(largest)[1]
    for start in range(0, n, _PACKED_AT_A_TIME):
        row_P = row_N[start : start + _PACKED_AT_A_TIME]
        wide_Pd = vectors_Nd[row_P] - mean_d
        wide_Pd *= 2.0**-exponent
        if rotation:
            wide_Pd = wide_Pd @ rotation.item_dd
        unavailable_P = np.zeros(len(row_P), bool) if available_N is None else ~available_N[row_P]
        kernel.visrec_pack(
            *pointers(wide_Pd, unavailable_P),
            *map(ctypes.c_int64, (start, len(row_P), d, lead, rest_bytes)),
            *pointers(*arrays),
        )
    position_N = np.empty(n, np.int64)
    position_N[row_N] = np.arange(n)
    rows = np.zeros(padded, np.int32)
    rows[:n] = row_N
    user_dd = np.ascontiguousarray(rotation.user_dd) if rotation else None
    return _Packed(rows, position_N, arrays, mean_d, lead, rest_bytes, exponent, user_dd)


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

    Raises:
        IndexError: a row is not one of `vectors_Nd`.
    """
    vectors_Nd, user_Bd = _floats(vectors_Nd), _floats(user_Bd)
    lists = [*_lists(profiles, len(vectors_Nd)), *_lists(targets, len(vectors_Nd))]
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
        vectors_Nd: float32, the vectors to compare; the first columns of a wider array are not
            copied.
        profiles: B lists of rows.
        row_BK: rows, -1 for none; these get -1.
        kernel: see `load_kernel`.

    Raises:
        IndexError: a row is not one of `vectors_Nd`.
    """
    if vectors_Nd.strides[1] != vectors_Nd.itemsize:
        vectors_Nd = _floats(vectors_Nd)
    row_BK = np.ascontiguousarray(row_BK, np.int64)
    require_rows(row_BK, len(vectors_Nd), least=-1)
    lists = _lists(profiles, len(vectors_Nd))
    nearest_BK = np.empty(row_BK.shape, np.int64)
    kernel.visrec_nearest(
        *pointers(vectors_Nd),
        ctypes.c_int64(vectors_Nd.strides[0] // vectors_Nd.itemsize),
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

    The kernel takes float32 vectors on a CPU only. A caller that gets None computes with
    torch: lists that are equal, and ranks and reasons that may differ where scores are equal up to
    rounding.
    """
    is_supported = vectors_Nd.device.type == "cpu" and vectors_Nd.dtype == torch.float32
    return load_kernel() if is_supported else None


def kernel_unavailable_reason() -> str | None:
    """Why the kernel is not available here; None if it is."""
    return compile_and_load(_SOURCE)[1]


def kernel_label() -> str:
    """The instruction set that the kernel uses here; if it is not available, torch, and why."""
    isa = loaded_isa(_SOURCE)
    return isa.name if isa else f"torch ({kernel_unavailable_reason()})"


def _aligned(count: int, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    """Zeros that start at a multiple of 64 bytes, so that no register spans two cache lines."""
    raw = np.zeros(count * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * dtype.itemsize].view(dtype)


# The kernel reads memory by address, so arrays are first converted to the types it expects.


def _floats(array: npt.NDArray[np.generic]) -> Floats:
    return np.ascontiguousarray(array, np.float32)


def _lists(lists: Jagged, rows: int) -> tuple[Ints, Ints]:
    require_rows(lists.values, rows)
    offsets, values = (np.ascontiguousarray(a, np.int64) for a in (lists.offsets, lists.values))
    return offsets, values


def _sorted(lists: Jagged) -> Jagged:
    """Each list sorted."""
    stride = int(lists.values.max(initial=0)) + 1
    list_V = lists.row_ids
    key_V = np.sort(list_V * stride + lists.values)
    return Jagged(key_V - list_V * stride, lists.offsets.astype(np.int64))
