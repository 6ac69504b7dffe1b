"""Incremental scoring: carries the last publication's lists over and scores only what changed.

A list depends on the model, the user's own items and the items that may be listed. If nothing about
a user changed, and nothing about any item of the user's last list, then tonight's list holds the
best of that list and of the fresh items: those that are new, changed or available again. An item
that was not good enough for the last list is not good enough for tonight's.

"Nothing changed" means that fingerprints are equal: hashes of everything that decides a score,
which every run writes next to its lists. The bits of a score do not depend on what else is scored
in the same batch (`visrec.retrieval.topk`), but they may depend on the kind of machine and on
library versions. Fingerprints of other library versions are not used.

Shapes: N items, F fresh items, B queries of a shard, b some of them, k list length, M = k plus the
fresh items found for a list, V values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from visrec.capacity import MAX_FRESH_ITEM_SHARE
from visrec.ids import index_in
from visrec.jagged import Jagged
from visrec.models.scorers import DotScorer
from visrec.publication.list_tables import read_lists
from visrec.publication.run_spec import RunSpec
from visrec.recommend.fingerprint_files import fingerprint_queries
from visrec.recommend.inputs import ScoringData
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.queries import Queries
from visrec.retrieval.rules import Rules
from visrec.retrieval.topk import TopK, TopKResult

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
# From B profiles and (B, k) catalogue rows to the (B, k) nearest items of the profiles.
Explain = Callable[[Jagged, Ints], Ints]


@dataclass(frozen=True)
class CarriedLists:
    """A shard's lists of the last publication, as rows of tonight's catalogue.

    Attributes:
        unchanged_B: (B,) the queries of tonight's shard whose last lists are still the best, fresh
            items left aside.
        best: the last lists of these queries; rows of other queries have no meaning.
        reason_BK: (B, k) rows of the reasons, -1 for none.
    """

    unchanged_B: Bools
    best: TopKResult
    reason_BK: Ints


class CarryOver:
    """Finds lists of the last publication that can be carried over, and merges fresh items in.

    Args:
        last: the last publication: of the same model, k, kind, layout and rules as tonight's run,
            with as many shards.
        data: the input of tonight's scoring.
        spec: tonight's run.
        scorer: tonight's scorer.
        log: called with a sentence where files of the last publication cannot be used.
    """

    def __init__(
        self,
        last: PublishedRun,
        data: ScoringData,
        spec: RunSpec,
        scorer: DotScorer,
        log: Callable[[str], None],
    ) -> None:
        self._last, self._data, self._spec, self._log = last, data, spec, log
        previous = last.item_fingerprints()
        if previous is None:
            self._log(last.unusable_files_warning)
        self._unchanged_N = np.zeros(len(data.item_ids), bool)
        if previous is not None:
            previous_N = index_in(data.item_ids, previous["item_id"])
            fingerprint_N, available_N = (
                previous[name].to_numpy()[previous_N] for name in ("fingerprint", "available")
            )
            self._unchanged_N = (
                (previous_N >= 0)
                & (fingerprint_N == data.fingerprint_N)
                & available_N
                & data.available_N
            )
        fresh_N = data.available_N & ~self._unchanged_N
        self._enabled = previous is not None and fresh_N.mean() <= MAX_FRESH_ITEM_SHARE
        if not self._enabled:
            return  # no list is carried over, so the fresh items are not searched alone
        row_F = np.flatnonzero(fresh_N)
        self._row_F = np.append(row_F, -1)  # so that the index -1, of no item, gives the row -1
        self._index_N = np.cumsum(fresh_N) - 1  # each fresh item's index in `_row_F`
        self._fresh_N = fresh_N
        vectors_Fd = scorer.vectors_Nd[torch.from_numpy(row_F).to(scorer.device)]
        self._search = TopK(DotScorer(vectors_Fd, scorer.prepare), None, spec.k)

    def carried_lists(self, shard: int, queries: Queries) -> CarriedLists | None:
        """The last lists of a shard's queries; None if none of them can be used."""
        if not self._enabled:
            return None
        data, k = self._data, self._spec.k
        fingerprints = self._last.query_fingerprints(shard)
        table = self._last.read_table(self._last.parts[shard])
        if fingerprints is None or table is None:
            self._log(self._last.unusable_files_warning)
            return None
        lists = read_lists(table, self._spec.kind)
        if lists is None or not len(lists.query_ids):
            return None
        query_ids = queries.query_ids
        list_B = index_in(query_ids, lists.query_ids)
        fingerprint_row_B = index_in(query_ids, fingerprints[self._spec.id_column])
        fingerprint_B = fingerprints["fingerprint"].to_numpy()[fingerprint_row_B]
        # A list of fewer than k items held every candidate, so it excluded none for a low score. It
        # is made again.
        is_full_B = np.diff(lists.offsets)[list_B] == k
        unchanged_B = (list_B >= 0) & (fingerprint_row_B >= 0) & is_full_B
        unchanged_B &= ~queries.cold_U
        unchanged_B &= fingerprint_B == fingerprint_queries(data, queries)
        entry_bK = lists.offsets[list_B[unchanged_B]][:, None] + np.arange(k)

        def by_query(row_V: Ints) -> Ints:
            row_BK = np.full((len(query_ids), k), -1)
            row_BK[unchanged_B] = row_V[entry_bK]
            return row_BK

        row_BK = by_query(index_in(lists.item_ids, data.item_ids))
        score_BK = TopKResult.empty(len(query_ids), k).score_BK
        score_BK[unchanged_B] = lists.score_V[entry_bK]
        reason_BK = np.full_like(row_BK, -1)
        if lists.reason_V is not None:
            reason_BK = by_query(index_in(lists.reason_V, data.item_ids))
        # An item that is gone has the row -1, for which `_unchanged_N[-1]` is that of another item.
        # So the first condition is needed, too.
        intact_B = (row_BK >= 0).all(axis=1) & self._unchanged_N[row_BK].all(axis=1)
        return CarriedLists(unchanged_B & intact_B, TopKResult(row_BK, score_BK), reason_BK)

    def merge(
        self, carried: CarriedLists, queries: Queries, query_b: Ints, explain: Explain
    ) -> tuple[TopKResult, Ints, Bools]:
        """Merges fresh items into carried lists.

        Args:
            carried: the shard's lists.
            queries: the shard's queries.
            query_b: (b,) rows of some of them, all of them among `unchanged_B`.
            explain: computes the reasons of fresh entries.

        Returns:
            The lists, the (b, k) rows of their reasons, and (b,) whether a query must be scored
            again because the merged entries do not decide its list under the rules.
        """
        data = self._data
        fresh_k = min(self._spec.k, len(self._row_F) - 1)
        best = TopKResult(carried.best.row_BK[query_b], carried.best.score_BK[query_b])
        reason_bK = carried.reason_BK[query_b]
        undecided_b = np.zeros(len(query_b), bool)
        if not fresh_k:
            return best, reason_bK, undecided_b
        profiles = queries.profiles.take(query_b)
        seen = profiles.keep(~data.unseen_N[profiles.values])
        excluded = profiles.append_values(queries.blocked.take(query_b))
        excluded = excluded.keep(self._fresh_N[excluded.values])
        excluded = Jagged(self._index_N[excluded.values], excluded.offsets)
        fresh = self._search(seen, queries.trained_U[query_b], excluded, fresh_k)
        # A list changes only if the best fresh item is at least as good as its last entry.
        entering_b = np.flatnonzero(fresh.score_BK[:, 0] >= best.score_BK[:, -1])
        if len(entering_b):
            fresh = TopKResult(self._row_F[fresh.row_BK[entering_b]], fresh.score_BK[entering_b])
            old = TopKResult(best.row_BK[entering_b], best.score_BK[entering_b])
            lists, reasons, undecided_b[entering_b] = self._merge_entries(
                old, fresh, reason_bK[entering_b], seen.take(entering_b), explain
            )
            best.assign(entering_b, lists)
            reason_bK[entering_b] = reasons
        return best, reason_bK, undecided_b

    def _merge_entries(
        self, old: TopKResult, fresh: TopKResult, reason_bK: Ints, seen: Jagged, explain: Explain
    ) -> tuple[TopKResult, Ints, Bools]:
        """As `merge`, for lists whose last entry is not better than the best fresh item."""
        data, k = self._data, self._spec.k
        row_bM = np.concatenate([old.row_BK, fresh.row_BK], axis=1)
        score_bM = np.concatenate([old.score_BK, fresh.score_BK], axis=1)
        order = np.lexsort((row_bM, -score_bM), axis=1)  # places without an item, -inf, come last
        sorted_bM = np.take_along_axis(row_bM, order, axis=1)
        kept_bM = np.broadcast_to(np.arange(order.shape[1]) < k, order.shape)
        undecided_b = np.zeros(len(order), bool)
        if data.rules is not None:
            kept_bM, undecided_b = _apply_rules(data.rules, sorted_bM, order, fresh.row_BK, k)
        list_V, position_V = np.nonzero(kept_bM[~undecided_b])
        chosen = np.zeros((len(order), k), np.int64)
        chosen[~undecided_b] = order[~undecided_b][list_V, position_V].reshape(-1, k)
        best = TopKResult(
            *(np.take_along_axis(array_bM, chosen, axis=1) for array_bM in (row_bM, score_bM))
        )
        reason_bK = _explain_fresh(best.row_BK, chosen, reason_bK, seen, explain)
        return best, reason_bK, undecided_b


def _explain_fresh(
    row_bK: Ints, chosen_bK: Ints, old_reason_bK: Ints, seen: Jagged, explain: Explain
) -> Ints:
    """(b, k) the reasons of merged lists: computed for fresh entries, copied for the others.

    Args:
        row_bK: (b, k) the merged lists.
        chosen_bK: (b, k) each entry's index in the old list, or k and more for a fresh entry.
        old_reason_bK: (b, k) the reasons of the old lists.
        seen: b profiles.
        explain: computes the reasons of fresh entries.
    """
    is_fresh_bK = chosen_bK >= row_bK.shape[1]
    fresh_bK = np.where(is_fresh_bK, row_bK, -1)
    reason_bK = np.take_along_axis(old_reason_bK, np.where(is_fresh_bK, 0, chosen_bK), axis=1)
    some_b = np.flatnonzero(is_fresh_bK.any(axis=1))
    if len(some_b):
        # The fresh entries are put first, because `explain` expects no entry after a -1.
        order = np.argsort(~is_fresh_bK[some_b], axis=1, kind="stable")
        fresh_reasons = explain(
            seen.take(some_b), np.take_along_axis(fresh_bK[some_b], order, axis=1)
        )
        in_list_order = np.empty_like(fresh_reasons)
        np.put_along_axis(in_list_order, order, fresh_reasons, axis=1)
        reason_bK[some_b] = np.where(is_fresh_bK[some_b], in_list_order, reason_bK[some_b])
    return reason_bK


def _apply_rules(
    rules: Rules, row_bM: Ints, order: Ints, fresh_bK: Ints, k: int
) -> tuple[Bools, Bools]:
    """Which entries of merged lists the rules keep, and which lists remain undecided.

    A list is undecided in three cases. A fresh item drives out an old entry, and a rule may have
    kept another item out of the last list because of that entry. Or a rule drops an entry, and
    there may be more fresh items than the k that were found. Or fewer than k entries are kept.
    """
    kept_bM = rules.select(row_bM, k)
    has_room_bM = np.cumsum(kept_bM, axis=1) - kept_bM < k
    dropped_bM = ~kept_bM & has_room_bM & (row_bM >= 0)
    may_have_more_b = fresh_bK[:, -1] >= 0
    undecided_b = (dropped_bM & (order < k)).any(axis=1)
    undecided_b |= dropped_bM.any(axis=1) & may_have_more_b
    return kept_bM, undecided_b | (kept_bM.sum(axis=1) < k)
