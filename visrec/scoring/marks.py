"""Marks of items and of the owners of lists: hashes of all that scoring knows of them.

Equal marks mean equal scores, under the same model: 64 bits, of which a chance collision among a
million items or users has a probability of 3e-8.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.ragged import Ragged

Marks = npt.NDArray[np.uint64]


def item_marks(names: Sequence[pa.Array], columns: Sequence[npt.NDArray[np.generic]]) -> Marks:
    """(N,) the marks of items.

    Args:
        names: strings of each, null where there is none; the id among them.
        columns: numbers of each, the first axis N.
    """
    columns = [np.ascontiguousarray(column) for column in columns]
    rows = zip(*(name.to_pylist() for name in names), strict=True)
    return _marks(
        [*(b"" if text is None else b"1" + text.encode() for text in texts),
         *(column[row].tobytes() for column in columns)]
        for row, texts in enumerate(rows)
    )  # fmt: skip


def owner_marks(mark_N: Marks, flags_BF: npt.NDArray[np.bool_], *lists: Ragged) -> Marks:
    """(B,) the marks of owners: their items in order, and whatever else is told of them.

    Args:
        mark_N: of the items.
        flags_BF: facts of each owner.
        lists: B lists of items each.
    """
    marks = [(mark_N[part.values], part.offsets) for part in lists]
    return _marks(
        [flags_F.tobytes(), *(mark_V[o[b] : o[b + 1]].tobytes() for mark_V, o in marks)]
        for b, flags_F in enumerate(flags_BF)
    )


def _marks(parts: Iterable[list[bytes]]) -> Marks:
    return np.fromiter(map(_mark, parts), np.uint64)


def _mark(parts: list[bytes]) -> int:
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return int.from_bytes(hashed.digest(), "little")
