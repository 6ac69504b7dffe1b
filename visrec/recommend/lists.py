"""The lists of a shard's owners: carried over where they still hold, else searched for."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.jagged import Jagged
from visrec.models.scorers import DotScorer, Scorer
from visrec.progress import Timer
from visrec.publication.list_tables import lists_table, similar_table
from visrec.publication.run_spec import RunSpec
from visrec.recommend.incremental import Carried, IncrementalScorer, Last
from visrec.recommend.inputs import ScoringData
from visrec.retrieval.rules import RuledTopK
from visrec.retrieval.topk import MostPopular, TopK, TopKResult, empty, nearest_of_profile, put

COLD = "visrec.cold_users"  # how many, in a file's metadata
_BLOCK = 1024  # users scored between two progress reports; 100 lists of them are 2 MB


class ShardLists:
    """From a shard's number to the table of its lists.

    Args:
        data: who has lists, and of what.
        scorer: the scores.
        target: k, layout and kind.
        last: the publication from which lists may be carried over.
        timer: told of phases and owners done.
    """

    def __init__(
        self, data: ScoringData, scorer: Scorer, target: RunSpec, last: Last | None, timer: Timer
    ) -> None:
        self._data, self._scorer, self._target, self._timer = data, scorer, target, timer
        # No list is longer than what is available, and memory is that of the longest.
        self._k = max(1, min(target.k, int(data.available_N.sum())))
        searches = (
            TopK(scorer, data.available_N, self._k),
            MostPopular(data.count_N, data.available_N),
        )
        self._search, self._fallback = (
            RuledTopK(search, data.rules, data.available_N, self._k) for search in searches
        )
        self._carry = None
        # Only lists of k entries are carried over.
        if last is not None and isinstance(scorer, DotScorer) and self._k == target.k:
            self._carry = IncrementalScorer(last, data, target, scorer, timer.say_once)

    def __call__(self, shard: int) -> tuple[pa.Table, int]:
        """The lists of a shard's owners, marked with how many are cold; and how many are carried
        over."""
        first, last = map(int, self._data.shard_offsets[shard : shard + 2])
        data, target, carried, kept = self._data, self._target, None, 0
        lists = empty(last - first, self._k, np.int32)
        if self._carry:
            with self._timer.phase("carry"):
                carried = self._carry.shard(shard)
        because_UK = lists.row_BK.copy()
        for start in range(first, last, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, last))
            best, because_BK, still = self._block(rows, carried, first)
            put(lists, rows - first, best)
            because_UK[rows - first] = because_BK
            kept += still
        query_ids, cold_U = data.query_ids.slice(first, last - first), data.cold_U[first:last]
        with self._timer.phase("table"):
            if target.kind == "item_to_item":
                table = similar_table(
                    query_ids, data.item_ids, lists.row_BK, lists.score_BK, target.layout
                )
            else:
                table = lists_table(
                    query_ids, data.item_ids, lists.row_BK, lists.score_BK, because_UK, cold_U,
                    target.layout,
                )  # fmt: skip
        return table.replace_schema_metadata({COLD: str(int(cold_U.sum()))}), kept

    def _block(
        self, rows: npt.NDArray[np.int64], carried: Carried | None, first: int
    ) -> tuple[TopKResult, npt.NDArray[np.int64], int]:
        """The lists of the owners at `rows`, the reasons of their entries, and how many of the
        lists are carried over."""
        best = empty(len(rows), self._k)
        because_BK = best.row_BK.copy()
        unchanged_B = np.zeros(len(rows), bool)
        if self._carry and carried:
            unchanged_B = carried.unchanged_B[rows - first]
            with self._timer.phase("carry"):
                merged = self._carry.merge(carried, rows[unchanged_B] - first, first, self._because)
            lists, reason_bK, open_b = merged
            put(best, unchanged_B, lists)
            because_BK[unchanged_B] = reason_bK
            unchanged_B[np.flatnonzero(unchanged_B)[open_b]] = False
        lists, reason_bK = self._scored(rows[~unchanged_B])
        put(best, ~unchanged_B, lists)
        because_BK[~unchanged_B] = reason_bK
        self._timer.done(users=len(rows))
        return best, because_BK, int(unchanged_B.sum())

    def _scored(self, rows: npt.NDArray[np.int64]) -> tuple[TopKResult, npt.NDArray[np.int64]]:
        """The lists of the owners at `rows`, and the reasons of their entries."""
        data = self._data
        consumed, trained_B, cold_B = (
            data.profiles.take(rows),
            data.trained_U[rows],
            data.cold_U[rows],
        )
        excluded = consumed.joined(data.blocked.take(rows))
        profiles = consumed.keep(~data.unseen_N[consumed.values])
        best = empty(len(rows), self._k)
        with self._timer.phase("score"):
            for search, their_B in ((self._search, ~cold_B), (self._fallback, cold_B)):
                where = np.flatnonzero(their_B)
                if len(where):
                    theirs = profiles.take(where), trained_B[where], excluded.take(where)
                    put(best, where, search(*theirs))
        if self._target.kind == "item_to_item":
            return best, np.full(best.row_BK.shape, -1)
        with self._timer.phase("explain"):
            return best, self._because(profiles, np.where(cold_B[:, None], -1, best.row_BK))

    def _because(self, profiles: Jagged, row_BK: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        space_Nd = self._scorer.space_Nd
        if space_Nd is None:
            return np.full(row_BK.shape, -1, np.int64)
        return nearest_of_profile(space_Nd, profiles, row_BK)
