"""What the lists would hold if everybody got the most popular items: a scale for the gates."""

import numpy as np
import numpy.typing as npt

from visrec.jagged import Jagged
from visrec.recommend.inputs import ScoringData

_CELLS = 1 << 24  # of users by popular items at once: a byte each, several times over


def popular_entries(data: ScoringData, k: int) -> npt.NDArray[np.int64]:
    """(N,) in how many lists each item would be, of the users whose lists are the model's own.

    Rules between the entries of a list are left out.

    Args:
        data: users, items and how often each was taken.
        k: entries of a list.
    """
    order = np.argsort(-data.count_N, kind="stable")
    order = order[data.available_N[order]]
    place_N = np.full(len(data.item_ids), -1)
    place_N[order] = np.arange(len(order))
    owners, listed_N = np.flatnonzero(~data.cold_U), np.zeros(len(data.item_ids), np.int64)
    closed = (data.profiles, data.blocked)
    most = int((data.profiles.lengths + data.blocked.lengths).max(initial=0))
    width = min(k + most, len(order))
    step = max(1, _CELLS // max(width, 1))
    for start in range(0, len(owners), step):
        some = owners[start : start + step]
        open_BM = np.ones((len(some), width), bool)
        for lists in closed:
            _close(open_BM, lists.take(some), place_N)
        kept_BM = open_BM & (np.cumsum(open_BM, axis=1, dtype=np.int32) <= k)
        listed_N[order[:width]] += kept_BM.sum(axis=0)
    return listed_N


def _close(open_BM: npt.NDArray[np.bool_], lists: Jagged, place_N: npt.NDArray[np.int64]) -> None:
    place_V = place_N[lists.values]
    inside_V = (place_V >= 0) & (place_V < open_BM.shape[1])
    open_BM[lists.owners[inside_V], place_V[inside_V]] = False
