"""The lists of a shard's queries: carried over from the last publication, or searched for.

Shapes: N items, B queries, b some of them, U all queries, K list length.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.jagged import Jagged
from visrec.models.scorers import ByKind, Scorer
from visrec.progress import Timer
from visrec.publication.list_tables import COLD_USERS_KEY, lists_table, similar_table
from visrec.publication.run_spec import RunSpec
from visrec.recommend.incremental import CarriedLists, CarryOver
from visrec.recommend.inputs import ScoringData
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.queries import Queries
from visrec.retrieval.rules import RuledTopK
from visrec.retrieval.similar import nearest_profile_items
from visrec.retrieval.topk import MostPopular, TopK, TopKResult

_BLOCK = 1024  # users between two progress reports; their lists of 100 entries take 2 MB
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _BlockLists:
    """Lists of a block of B queries.

    Attributes:
        best: the lists.
        reason_BK: (B, K) rows of the reasons, -1 for none.
        carried: how many of the lists were carried over.
    """

    best: TopKResult
    reason_BK: Ints
    carried: int


class ShardRecommender:
    """Makes the table of a shard's lists.

    Args:
        data: the items to list.
        scorer: the scores.
        spec: k, layout and kind of the lists.
        last: the publication whose lists may be carried over.
        timer: receives seconds by phase, and the number of users done.
    """

    def __init__(
        self,
        data: ScoringData,
        scorer: Scorer,
        spec: RunSpec,
        last: PublishedRun | None,
        timer: Timer,
    ) -> None:
        self._data, self._scorer, self._spec, self._timer = data, scorer, spec, timer
        # A list cannot be longer than the catalogue, so memory does not grow with k beyond that.
        self._k = max(1, min(spec.k, int(data.available_N.sum())))
        searches = (
            TopK(scorer, data.available_N, self._k),
            MostPopular(data.fallback_N, data.available_N),
        )
        self._search, self._fallback = (
            RuledTopK(search, data.rules, data.available_N, self._k) for search in searches
        )
        self._carry_over: CarryOver | None = None
        if last is not None and self._k == spec.k:  # only lists of k entries can be carried over
            self._carry_over = scorer.dispatch(
                ByKind(
                    dot=lambda dot: CarryOver(last, data, spec, dot, timer.log_once),
                    tiled=lambda _: None,
                    rerank=lambda _: None,
                )
            )

    def __call__(self, shard: int, queries: Queries) -> tuple[pa.Table, int]:
        """The table of a shard's lists, and how many of them were carried over.

        The table's metadata say how many of its users are cold.
        """
        carried = None
        count = 0
        lists = TopKResult.empty(len(queries), self._k, np.int32)
        if self._carry_over:
            with self._timer.phase("carry"):
                carried = self._carry_over.carried_lists(shard, queries)
        reason_UK = lists.row_BK.copy()
        for start in range(0, len(queries), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(queries)))
            block = self._recommend_block(queries, rows, carried)
            lists.assign(rows, block.best)
            reason_UK[rows] = block.reason_BK
            count += block.carried
        with self._timer.phase("table"):
            table = self._to_table(queries, lists, reason_UK)
        cold_users = str(int(queries.cold_U.sum()))
        return table.replace_schema_metadata({COLD_USERS_KEY: cold_users}), count

    def recommend(self, queries: Queries) -> pa.Table:
        """Newly searched lists of any queries, in their order."""
        return self._to_table(queries, *self._recommend(queries))

    def _to_table(self, queries: Queries, lists: TopKResult, reason_BK: Ints) -> pa.Table:
        query_ids, item_ids, layout = queries.query_ids, self._data.item_ids, self._spec.layout
        if self._spec.kind == "item_to_item":
            return similar_table(query_ids, item_ids, lists.row_BK, lists.score_BK, layout)
        return lists_table(
            query_ids, item_ids, lists.row_BK, lists.score_BK, reason_BK, queries.cold_U, layout
        )

    def _recommend_block(
        self, queries: Queries, rows: Ints, carried: CarriedLists | None
    ) -> _BlockLists:
        """The lists of the queries at `rows` of a shard."""
        best = TopKResult.empty(len(rows), self._k)
        reason_BK = best.row_BK.copy()
        is_carried_B = np.zeros(len(rows), bool)
        if self._carry_over and carried:
            is_carried_B = carried.unchanged_B[rows]
            with self._timer.phase("carry"):
                lists, reason_bK, undecided_b = self._carry_over.merge(
                    carried, queries, rows[is_carried_B], self._explain
                )
            best.assign(is_carried_B, lists)
            reason_BK[is_carried_B] = reason_bK
            is_carried_B[np.flatnonzero(is_carried_B)[undecided_b]] = False
        lists, reason_bK = self._recommend(queries.take(rows[~is_carried_B]))
        best.assign(~is_carried_B, lists)
        reason_BK[~is_carried_B] = reason_bK
        self._timer.report(users=len(rows))
        return _BlockLists(best, reason_BK, int(is_carried_B.sum()))

    def _recommend(self, queries: Queries) -> tuple[TopKResult, Ints]:
        """Newly searched lists of queries, and the reasons of their entries."""
        consumed, trained_B, cold_B = queries.profiles, queries.trained_U, queries.cold_U
        excluded = consumed.append_values(queries.blocked)
        profiles = consumed.keep(~self._data.unseen_N[consumed.values])
        best = TopKResult.empty(len(queries), self._k)
        with self._timer.phase("score"):
            for search, is_searched_B in ((self._search, ~cold_B), (self._fallback, cold_B)):
                searched = np.flatnonzero(is_searched_B)
                if len(searched):
                    result = search(
                        profiles.take(searched), trained_B[searched], excluded.take(searched)
                    )
                    best.assign(searched, result)
        if self._spec.kind == "item_to_item":
            return best, np.full(best.row_BK.shape, -1)
        with self._timer.phase("explain"):
            return best, self._explain(profiles, np.where(cold_B[:, None], -1, best.row_BK))

    def _explain(self, profiles: Jagged, row_BK: Ints) -> Ints:
        """(B, K) the profile item nearest to each entry, -1 for none."""
        space_Nd = self._scorer.space_Nd
        if space_Nd is None:
            return np.full(row_BK.shape, -1, np.int64)
        return nearest_profile_items(space_Nd, profiles, row_BK)
