"""Scores a sample of a run's lists again, to compare what was written with what the model says.

This shares no code with the search: no kernel, no shortlist, no carried-over list. It loads the
model's own network once more, in float64, scores every item, and applies the rules one entry at a
time. A list is the model's if

- each entry has the score of its item, up to `TOLERANCE` of the query's largest score;
- no item that may be listed scores better than the last entry by more than that, unless a rule
  keeps it out because of entries that are at least as good;
- each reason is the profile item nearest to its entry, up to `TOLERANCE` of the cosine, and every
  entry has one if the model has a space in which items are near one another.

Fallback lists are compared exactly: the items that were taken most in the last week, then ever,
ties by item id.

Items are read in tiles from the arrays that scoring workers share (`ItemArrays`), and each query
takes one float64 per item. If a share p of the lists is wrong, the probability that none of them is
in a sample of n lists is (1 - p)^n: 1.4e-6 for p = 0.1 and n = 128.

Shapes: N items, B queries, K list length, P profile items, R rows, d width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.ids import index_in
from visrec.models.arrays import ItemArrays
from visrec.publication.list_tables import Lists
from visrec.publication.verify import ListChecks
from visrec.recommend.inputs import ScoringData, fallback_scores
from visrec.recommend.model_scores import ModelScores
from visrec.recommend.queries import Queries
from visrec.retrieval.rules import Rules
from visrec.retrieval.similar import Kind
from visrec.storage.store import Store

# The number of lists of a run that are scored again, and of fallback lists; at least one of each
# kind for each shard that has any.
RESCORED_LISTS = 128
# The largest error seen is 4e-7, from float32 encoders that add up about a thousand products.
TOLERANCE = 1e-5
_SCORES = 1 << 25  # scores in memory at once: 256 MB
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class WrittenList:
    """One query's list as it was written.

    Attributes:
        query: its position among the queries of the sample.
        row_K: (K,) catalogue rows, -1 for an unknown id.
        score_K: (K,) their scores.
        reason_K: (K,) rows of the reasons, -1 for none; None if the table has no reasons.
    """

    query: int
    row_K: Ints
    score_K: Floats
    reason_K: Ints | None


@dataclass
class _Sample:
    """Queries whose lists are compared, and these lists.

    Attributes:
        parts: the queries of each shard.
        lists: one for each query.
    """

    parts: list[Queries] = field(default_factory=list)
    lists: list[WrittenList] = field(default_factory=list)

    def add(self, queries: Queries, lists: Lists, item_ids: pa.LargeStringArray) -> None:
        """Adds some queries of a shard, with their lists."""
        self.lists += select_lists(lists, queries.query_ids, item_ids, len(self.lists))
        self.parts.append(queries)


def sample_queries(queries: Queries, shard: int, shards: int, seed: int) -> tuple[Ints, Ints]:
    """Rows of some queries of a shard: those with the model's own lists, those with fallback lists.

    The same seed gives the same sample, so a rerun checks the same lists.
    """
    row_B = np.random.default_rng([seed, shard]).permutation(len(queries))
    cold_B = queries.cold_U[row_B]
    count = math.ceil(RESCORED_LISTS / shards)
    return row_B[~cold_B][:count], row_B[cold_B][:count]


def select_lists(
    lists: Lists, query_ids: pa.Array, item_ids: pa.LargeStringArray, first: int = 0
) -> Iterator[WrittenList]:
    """The lists of some queries; a query without a list has an empty one.

    Args:
        lists: the lists of a shard.
        query_ids: (B,) of the queries.
        item_ids: (N,) the catalogue.
        first: number of the first query.
    """
    list_B = index_in(query_ids, lists.query_ids)
    for query, row in enumerate(list_B.tolist(), first):
        entries = slice(lists.offsets[row], lists.offsets[row + 1]) if row >= 0 else slice(0, 0)
        reason_K = None
        if lists.reason_V is not None:
            reason_K = index_in(lists.reason_V[entries], item_ids)
        yield WrittenList(
            query,
            index_in(lists.item_ids[entries], item_ids),
            lists.score_V[entries].astype(np.float64),
            reason_K,
        )


class Rescorer:
    """Collects a sample of the lists that a task reads, and compares it with the model.

    Args:
        data: the input of the scoring.
        arrays: the item arrays of the model's scorer.
        model: the model's directory.
        kind: user_to_item or item_to_item.
        k: list length.
        seed: the seed of the sample.
    """

    def __init__(
        self, data: ScoringData, arrays: ItemArrays, model: Store, kind: Kind, k: int, seed: int
    ) -> None:
        self._data, self._arrays, self._store = data, arrays, model
        self._kind, self._k, self._seed = kind, k, seed
        self._model, self._fallback = _Sample(), _Sample()

    def add_shard(self, shard: int, queries: Queries, lists: Lists) -> None:
        """Takes a sample of a shard's lists."""
        rows = sample_queries(queries, shard, self._data.queries.shards, self._seed)
        for sample, row_B in zip((self._model, self._fallback), rows, strict=True):
            sample.add(queries.take(row_B), lists, self._data.item_ids)

    def checks(self) -> ListChecks:
        """Scores the sample again and counts the lists that differ. All other counts are 0."""
        wrong_lists, wrong_reasons = self._count_wrong_lists()
        return ListChecks(
            listed_N=np.zeros(len(self._data.item_ids), np.int64),
            rescored=len(self._model.lists),
            not_from_model=wrong_lists,
            not_nearest_reasons=wrong_reasons,
            rescored_fallbacks=len(self._fallback.lists),
            not_most_popular=self._count_wrong_fallbacks(),
        )

    def _count_wrong_lists(self) -> tuple[int, int]:
        """How many lists are not the model's own, and how many have a wrong reason."""
        lists = self._model.lists
        if not lists:
            return 0, 0
        scores = ModelScores(self._store, self._arrays, self._kind)
        queries = Queries.join(self._model.parts)
        seen = queries.profiles.keep(~self._data.unseen_N[queries.profiles.values])
        wrong_lists = wrong_reasons = 0
        step = max(1, _SCORES // len(self._data.item_ids))
        for start in range(0, len(lists), step):
            rows = np.arange(start, min(start + step, len(lists)))
            score_BN = scores.score_all(seen.take(rows), queries.trained_U[rows])
            for row, score_N in zip(rows.tolist(), score_BN, strict=True):
                written, eligible_N = lists[row], self._eligible(queries, row)
                if scores.num_proposals:
                    score_N, eligible_N = self._rerank(
                        scores, written, score_N, eligible_N, seen[row], queries.trained_U[row]
                    )
                rules = self._data.rules
                wrong_lists += not is_top_k(written, score_N, eligible_N, rules, self._k)
                wrong_reasons += _has_wrong_reason(scores, written, seen[row])
        return wrong_lists, wrong_reasons

    def _eligible(self, queries: Queries, row: int) -> Bools:
        """(N,) which items may be in the list of a query."""
        eligible_N = self._data.available_N.copy()
        eligible_N[queries.profiles[row]] = False
        eligible_N[queries.blocked[row]] = False
        return eligible_N

    def _rerank(
        self,
        scores: ModelScores,
        written: WrittenList,
        proposed_N: Floats,
        eligible_N: Bools,
        profile: Ints,
        trained: int,
    ) -> tuple[Floats, Bools]:
        """The re-ranker's scores of proposed items, and which items were certainly proposed.

        With rules, the search may have asked the proposer for more items, so only the first ones
        are certain. The scores of all items that are neither certain nor listed are NaN.
        """
        rules = self._data.rules
        num_proposals = max(self._k if rules is None else 2 * self._k, scores.num_proposals)
        certain_N = possible_N = eligible_N
        if eligible_N.sum() > num_proposals:
            worst = np.sort(proposed_N[eligible_N])[-num_proposals]
            margin = TOLERANCE * np.abs(proposed_N[eligible_N]).max()
            certain_N = eligible_N & (proposed_N > worst + margin)
            if rules is None:
                possible_N = eligible_N & (proposed_N >= worst - margin)
        listed_N = np.zeros_like(eligible_N)
        listed_N[written.row_K[written.row_K >= 0]] = True
        score_N = np.full(len(eligible_N), np.nan)
        rows = np.flatnonzero(certain_N | (listed_N & possible_N))
        score_N[rows] = scores.score_items(profile, trained, rows)
        return score_N, certain_N

    def _count_wrong_fallbacks(self) -> int:
        """How many fallback lists differ from the items with the best fallback scores."""
        if not self._fallback.lists:
            return 0
        data, queries, wrong = self._data, Queries.join(self._fallback.parts), 0
        order = np.argsort(-data.fallback_N, kind="stable")
        order = order[data.available_N[order]]
        for row, written in enumerate(self._fallback.lists):
            excluded = {*queries.profiles[row].tolist(), *queries.blocked[row].tolist()}
            row_K = np.array(fill_in_order(order, excluded, data.rules, self._k), np.int64)
            same = np.array_equal(row_K, written.row_K)
            same = same and np.array_equal(data.fallback_N[row_K], written.score_K)
            no_reason = written.reason_K is None or bool((written.reason_K < 0).all())
            wrong += not (same and no_reason)
        return wrong


def are_fallback_scores(fallback_N: npt.NDArray[np.float32], recounted_N: Ints) -> bool:
    """Whether fallback scores follow from how many users took each item.

    Timestamps are not checked: weekly counts only must not exceed the total counts.

    Args:
        fallback_N: (N,) the scores.
        recounted_N: (N,) users of each item, counted from the profiles of all shards, independently
            of the counts that scoring used.
    """
    takers_N = recounted_N.astype(np.float32)
    week_N = np.floor(fallback_N)
    if (week_N > takers_N).any():
        return False
    return np.array_equal(fallback_N, fallback_scores(week_N, takers_N))


def _has_wrong_reason(scores: ModelScores, written: WrittenList, profile: Ints) -> bool:
    """Whether a reason is missing, or is not the profile item nearest to its entry."""
    if written.reason_K is None:
        return False
    known_K = written.row_K >= 0
    row_K, reason_K = written.row_K[known_K], written.reason_K[known_K]
    unit_Rd = scores.unit_vectors(np.concatenate([row_K, profile]))
    if unit_Rd is None:
        return bool((reason_K >= 0).any())
    cosine_KP = unit_Rd[: len(row_K)] @ unit_Rd[len(row_K) :].T
    is_reason_KP = reason_K[:, None] == profile
    nearest_K = cosine_KP.max(axis=1)
    given_K = np.where(is_reason_KP, cosine_KP, -np.inf).max(axis=1)
    return not bool((given_K >= nearest_K - TOLERANCE).all())


def is_top_k(
    written: WrittenList, score_N: Floats, eligible_N: Bools, rules: Rules | None, k: int
) -> bool:
    """Whether a list holds the best eligible items by these scores, up to `TOLERANCE`.

    Args:
        written: the list.
        score_N: (N,) the items' scores.
        eligible_N: (N,) the items that may be listed and have a score.
        rules: between the entries, or None.
        k: list length, if there are so many items.
    """
    row_K, score_K = written.row_K, written.score_K
    if (row_K < 0).any():
        return False
    largest = np.abs(score_N[eligible_N]).max(initial=0.0)
    margin = TOLERANCE * max(float(largest), np.abs(score_N[row_K]).max(initial=0.0))
    if not (np.abs(score_N[row_K] - score_K) <= margin).all():
        return False
    last = score_K.min() if len(row_K) == k else -np.inf
    better_N = eligible_N & ~(score_N <= last + margin)
    better_N[row_K] = False
    if rules is not None and better_N.any():
        excluded_up_to_N = _excluded_up_to(row_K, score_K, rules, len(score_N))
        better_N &= ~(excluded_up_to_N >= score_N - margin)
    return not better_N.any()


def _excluded_up_to(row_K: Ints, score_K: Floats, rules: Rules, n: int) -> Floats:
    """(N,) the score up to which a rule keeps each item out, because of entries of the list."""
    bound_N = np.full(n, -np.inf)
    for limit, group_N in _limits(rules):
        scores_by_group: dict[int, list[float]] = {}
        for row, score in zip(row_K.tolist(), score_K.tolist(), strict=True):
            scores_by_group.setdefault(int(group_N[row]), []).append(score)
        bound_G = np.full(int(group_N.max(initial=-1)) + 2, -np.inf)  # the last for -1, no group
        for group, scores in scores_by_group.items():
            if group >= 0 and len(scores) >= limit:
                bound_G[group] = sorted(scores)[-limit]
        bound_N = np.maximum(bound_N, bound_G[group_N])
    return bound_N


def _limits(rules: Rules) -> list[tuple[int, Ints]]:
    """Each rule's limit of entries per group, and the items' groups; the search's logic again
    on purpose, so that the check is independent."""
    both = ((rules.cap, rules.group_N), (1, rules.near_duplicate_N))
    return [(limit, group_N) for limit, group_N in both if group_N is not None]


def fill_in_order(order: Ints, excluded: set[int], rules: Rules | None, k: int) -> list[int]:
    """The first k items of an order that are not excluded, by a set or by a rule."""
    listed: list[int] = []
    for row in order.tolist():
        if len(listed) == k:
            break
        if row not in excluded and (rules is None or _may_follow(row, listed, rules)):
            listed.append(row)
    return listed


def _may_follow(row: int, listed: list[int], rules: Rules) -> bool:
    for limit, group_N in _limits(rules):
        if group_N[row] >= 0 and sum(group_N[o] == group_N[row] for o in listed) >= limit:
            return False
    return True
