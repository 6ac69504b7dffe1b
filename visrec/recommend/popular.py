"""How often each item would be listed if every user got the most popular items.

A gate uses this as the upper end of its scale.

Shapes: N items, B users, M most popular items that a list may reach.
"""

import numpy as np
import numpy.typing as npt

from visrec.jagged import Jagged
from visrec.recommend.inputs import ScoringData
from visrec.recommend.queries import Queries

_CELLS = 1 << 24  # pairs of a user and a popular item at once, a few bytes each


class PopularLists:
    """Counts how often each item would be listed if every user got the most popular items.

    Rules between the entries of a list are ignored.

    Args:
        data: items, and how many users took each.
        k: list length.
    """

    def __init__(self, data: ScoringData, k: int) -> None:
        order = np.argsort(-data.takers_N, kind="stable")
        self._k, self._order = k, order[data.available_N[order]]
        self._rank_N = np.full(len(data.item_ids), -1)
        self._rank_N[self._order] = np.arange(len(self._order))

    def counts(self, queries: Queries) -> npt.NDArray[np.int64]:
        """(N,) in how many lists of these users each item is; without users whom the model cannot
        score."""
        warm, count_N = np.flatnonzero(~queries.cold_U), np.zeros(len(self._rank_N), np.int64)
        excluded = (queries.profiles, queries.blocked)
        longest = int((queries.profiles.lengths + queries.blocked.lengths).max(initial=0))
        width = min(self._k + longest, len(self._order))
        step = max(1, _CELLS // max(width, 1))
        for start in range(0, len(warm), step):
            users = warm[start : start + step]
            eligible_BM = np.ones((len(users), width), bool)
            for lists in excluded:
                _exclude(eligible_BM, lists.take(users), self._rank_N)
            listed_BM = eligible_BM & (np.cumsum(eligible_BM, axis=1, dtype=np.int32) <= self._k)
            count_N[self._order[:width]] += listed_BM.sum(axis=0)
        return count_N


def _exclude(
    eligible_BM: npt.NDArray[np.bool_], lists: Jagged, rank_N: npt.NDArray[np.int64]
) -> None:
    rank_V = rank_N[lists.values]
    inside_V = (rank_V >= 0) & (rank_V < eligible_BM.shape[1])
    eligible_BM[lists.row_ids[inside_V], rank_V[inside_V]] = False
