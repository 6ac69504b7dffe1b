"""Counts what is wrong with the lists of a shard; the counts of shards add up to those of the run.

The tables come from `visrec.recommend.readback`, which reads the files.

Nothing here relies on the code that made the lists: which queries should have one, what they have
taken and what may be recommended come from the inputs, and everything else from the table that was
read back.

U queries of the shard, B lists found in it, V entries of all lists, N items, P queries compared.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa

from visrec.ids import index_in
from visrec.jagged import Jagged
from visrec.publication.list_lengths import count_wrong_lengths, expected_lengths
from visrec.publication.list_tables import SCHEMAS, Layout, Lists, read_lists
from visrec.publication.pairs import Bools, Ints, count, distinct, is_pair_among, pair_codes
from visrec.retrieval.rules import Rules, count_keys
from visrec.retrieval.similar import Kind


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the table of a shard is compared with.

    Attributes:
        item_ids: (N,) sorted.
        available_N: (N,) which items may be recommended.
        query_ids: (U,) the queries that have a list in this shard.
        consumed: U lists of items that the user has taken; for an item query, the item itself.
        blocked: U lists of items that are blocked for that query.
        cold_U: (U,) users whom the model cannot score: all have the fallback list, which says
            nothing about the model.
        k: entries of a list, where there are enough candidates.
        layout: the layout of the table.
        kind: whether the lists are of users or of items.
        rules: between the entries of a list, or None.
    """

    item_ids: pa.LargeStringArray
    available_N: Bools
    query_ids: pa.LargeStringArray
    consumed: Jagged
    blocked: Jagged
    cold_U: Bools
    k: int
    layout: Layout
    kind: Kind
    rules: Rules | None = None


@dataclass(frozen=True, kw_only=True)
class ListChecks:
    """Counts over lists. Those of two shards add up to those of both: `a + b`.

    Attributes:
        listed_N: (N,) in how many of the model's own lists each item is.
        files: files that were read.
        altered_files: files that are not, to the byte, what scoring wrote, or are another run's.
        wrong_schemas: files with other columns than the declared ones; no other count covers them.
        rows: the number of rows of the tables.
        queries_expected: queries that should have a list.
        queries: queries that have one.
        extra_lists: lists of unknown queries or of another shard's, and second lists of a query.
        wrong_lengths: lists that do not have min(k, candidates of that query) entries, unless the
            rules let none of the other candidates follow.
        with_duplicates: lists that have an item twice.
        against_rules: lists with entries that a rule keeps apart.
        unsorted: lists with a score that rises, with items of equal score that are not in the order
            of their ids, or with ranks that are not 1, 2, ...
        wrong_fallback_flags: lists that are marked as the fallback and are not, or vice versa.
        entries: the number of entries of all lists.
        unknown: entries with an item that is not in the catalogue, or with none.
        unavailable: entries with an item that may not be recommended.
        excluded: entries with an item that the user has taken, that is the query itself, or that is
            blocked for the query.
        not_finite: entries whose score is NaN, infinite or missing.
        wrong_reasons: entries with a reason that is not in the user's profile.
        fallback_lists: lists of cold users.
        model_lists: all other lists of known queries, which are the model's own.
        compared: queries that have one of the model's own lists now and in the last publication.
        overlap: items that the two lists of such queries share.
        overlap_possible: items that they could share: the length of the shorter list.
        damaged_last_files: reads of files of the last publication that are missing or are not what
            was published.
        scores_compared: those of `compared` whose first scores are both finite.
        score_sum: sum of their first scores now.
        score_squares: sum of the squares of these.
        last_score_sum: sum of their first scores in the last publication.
        last_score_squares: sum of the squares of these.
        rescored: the model's own lists that were scored again (`visrec.recommend.rescore`).
        not_from_model: those of them that differ from the model's scores.
        not_nearest_reasons: those of them with a reason that is missing or not the nearest item.
        rescored_fallbacks: fallback lists that were made again.
        not_most_popular: those of them that are not the most popular items.
    """

    listed_N: Ints
    files: int = 0
    altered_files: int = 0
    wrong_schemas: int = 0
    rows: int = 0
    queries_expected: int = 0
    queries: int = 0
    extra_lists: int = 0
    wrong_lengths: int = 0
    with_duplicates: int = 0
    against_rules: int = 0
    unsorted: int = 0
    wrong_fallback_flags: int = 0
    entries: int = 0
    unknown: int = 0
    unavailable: int = 0
    excluded: int = 0
    not_finite: int = 0
    wrong_reasons: int = 0
    fallback_lists: int = 0
    model_lists: int = 0
    compared: int = 0
    overlap: int = 0
    overlap_possible: int = 0
    damaged_last_files: int = 0
    scores_compared: int = 0
    score_sum: float = 0.0
    score_squares: float = 0.0
    last_score_sum: float = 0.0
    last_score_squares: float = 0.0
    rescored: int = 0
    not_from_model: int = 0
    not_nearest_reasons: int = 0
    rescored_fallbacks: int = 0
    not_most_popular: int = 0

    def __add__(self, other: "ListChecks") -> "ListChecks":
        names = [field.name for field in fields(self)]
        return ListChecks(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True)
class _CodedLists:
    """Lists with their queries and items as rows of what is expected.

    Attributes:
        lists: as they were read.
        query_B: (B,) -1 for an unknown query.
        item_V: (V,) -1 for an unknown item.
        is_own_B: (B,) which lists are the model's own, and of known queries.
    """

    lists: Lists
    query_B: Ints
    item_V: Ints
    is_own_B: Bools


def count_faults(table: pa.Table, expected: Expected, last: Lists | None = None) -> ListChecks:
    """The counts of one shard's table.

    Args:
        table: as it was read back.
        expected: what it is compared with.
        last: lists of the last publication, of these queries and perhaps of others.
    """
    n = len(expected.item_ids)
    excluded = expected.consumed.append_values(expected.blocked)
    expected_U = expected_lengths(expected.available_N, excluded, expected.k)
    # In the long layout a query without a candidate has no row.
    has_list_U = expected_U > 0 if expected.layout == "long" else np.ones(len(expected_U), bool)
    base = {"files": 1, "rows": len(table), "queries_expected": int(has_list_U.sum())}
    lists = read_lists(table, expected.kind)
    if lists is None or not table.schema.equals(SCHEMAS[expected.kind, expected.layout]):
        return ListChecks(listed_N=np.zeros(n, np.int64), wrong_schemas=1, **base)
    query_B = index_in(lists.query_ids, expected.query_ids)
    is_known_B = query_B >= 0
    is_own_B = is_known_B & ~expected.cold_U[query_B] if len(expected_U) else is_known_B
    item_V = index_in(lists.item_ids, expected.item_ids)
    coded = _CodedLists(lists, query_B, item_V, is_own_B)
    wrong_lengths = count_wrong_lengths(
        Jagged(item_V, lists.offsets), query_B, expected_U, excluded, expected.available_N,
        expected.rules,
    )  # fmt: skip
    queries = len(distinct(query_B[is_known_B]))
    checks = ListChecks(
        **base,
        **_count_entries(coded, excluded, expected),
        queries=queries,
        extra_lists=len(query_B) - queries,
        wrong_lengths=wrong_lengths,
        fallback_lists=count(is_known_B) - count(is_own_B),
        model_lists=count(is_own_B),
        listed_N=np.bincount(item_V[(item_V >= 0) & is_own_B[lists.list_V]], minlength=n),
    )
    return checks if last is None else _compare(checks, coded, _code_last(last, expected))


def _count_entries(coded: _CodedLists, excluded: Jagged, expected: Expected) -> dict[str, int]:
    """What is wrong with entries, one by one or in the order of their list."""
    n, lists, item_V = len(expected.item_ids), coded.lists, coded.item_V
    list_V = lists.list_V
    query_V, is_known_V = coded.query_B[list_V], item_V >= 0
    known_list_V, known_item_V = list_V[is_known_V], item_V[is_known_V]
    excluded_codes = np.sort(pair_codes(excluded.row_ids, excluded.values, n))
    counts = {
        "with_duplicates": _count_duplicates(known_list_V, known_item_V, n),
        "against_rules": _count_against_rules(known_list_V, known_item_V, expected.rules),
        "unsorted": _count_unsorted(lists, list_V, item_V),
        "entries": len(item_V),
        "unknown": count(~is_known_V),
        "unavailable": count(~expected.available_N[known_item_V]),
        "excluded": count(is_pair_among(query_V, item_V, excluded_codes, n)),
        "not_finite": count(~np.isfinite(lists.score_V)),
    }
    if lists.cold_B is not None:
        is_known_B = coded.query_B >= 0
        is_wrong_B = lists.cold_B[is_known_B] == coded.is_own_B[is_known_B]
        counts["wrong_fallback_flags"] = count(is_wrong_B)
    if lists.reason_V is not None:
        counts["wrong_reasons"] = _count_wrong_reasons(lists.reason_V, query_V, expected)
    return counts


def _count_duplicates(list_V: Ints, item_V: Ints, n: int) -> int:
    code_V = np.sort(pair_codes(list_V, item_V, n))
    return len(distinct(code_V[1:][code_V[1:] == code_V[:-1]] // max(n, 1)))


def _count_against_rules(list_V: Ints, item_V: Ints, rules: Rules | None) -> int:
    wrong = [np.zeros(0, np.int64)]
    for limit, group_N in rules.limits if rules is not None else []:
        group_V = group_N[item_V]
        groups = int(group_N.max(initial=-1)) + 1
        codes, sizes = count_keys(pair_codes(list_V, group_V, groups)[group_V >= 0])
        wrong.append(codes[sizes > limit] // max(groups, 1))
    return len(distinct(np.concatenate(wrong)))


def _count_unsorted(lists: Lists, list_V: Ints, item_V: Ints) -> int:
    score_V = lists.score_V
    is_wrong_V = np.zeros(len(list_V), bool)
    is_tie_V = (score_V[1:] == score_V[:-1]) & (item_V[:-1] >= 0) & (item_V[1:] >= 0)
    # An item twice in a row is no wrong order: it is counted as a duplicate.
    rises_V = (score_V[1:] > score_V[:-1]) | (is_tie_V & (item_V[1:] < item_V[:-1]))
    is_wrong_V[1:] = (list_V[1:] == list_V[:-1]) & rises_V
    if lists.rank_V is not None:
        is_wrong_V |= lists.rank_V != np.arange(1, len(list_V) + 1) - lists.offsets[:-1][list_V]
    return len(distinct(list_V[is_wrong_V]))


def _count_wrong_reasons(because: pa.Array, query_V: Ints, expected: Expected) -> int:
    n = len(expected.item_ids)
    consumed = expected.consumed
    has_reason_V = because.is_valid().to_numpy(zero_copy_only=False) & (query_V >= 0)
    reason_V = index_in(because, expected.item_ids)
    consumed_codes = np.sort(pair_codes(consumed.row_ids, consumed.values, n))
    return count(has_reason_V & ~is_pair_among(query_V, reason_V, consumed_codes, n))


def _code_last(last: Lists, expected: Expected) -> _CodedLists:
    """The lists of the last publication; the long layout does not say which are fallback lists."""
    query_B = index_in(last.query_ids, expected.query_ids)
    is_own_B = query_B >= 0
    if last.cold_B is not None:
        is_own_B &= ~last.cold_B
    return _CodedLists(last, query_B, index_in(last.item_ids, expected.item_ids), is_own_B)


def _compare(checks: ListChecks, now: _CodedLists, last: _CodedLists) -> ListChecks:
    """Adds the counts over the queries that have one of the model's own lists in both runs.

    Of several lists of a query the first counts.
    """
    n = len(checks.listed_N)
    queries = 1 + max(int(each.query_B.max(initial=-1)) for each in (now, last))
    list_U, last_list_U = _first_list(now, queries), _first_list(last, queries)
    in_both_U = (list_U >= 0) & (last_list_U >= 0)
    list_P, last_list_P = list_U[in_both_U], last_list_U[in_both_U]
    shared = np.intersect1d(
        _codes_of_lists(now, list_P, n), _codes_of_lists(last, last_list_P, n), assume_unique=True
    )
    offsets, last_offsets = now.lists.offsets, last.lists.offsets
    shorter_P = np.minimum(np.diff(offsets)[list_P], np.diff(last_offsets)[last_list_P])
    list_P, last_list_P = list_P[shorter_P > 0], last_list_P[shorter_P > 0]
    first_P = now.lists.score_V[offsets[list_P]].astype(np.float64)
    last_first_P = last.lists.score_V[last_offsets[last_list_P]].astype(np.float64)
    is_finite_P = np.isfinite(first_P) & np.isfinite(last_first_P)
    first_P, last_first_P = first_P[is_finite_P], last_first_P[is_finite_P]
    return replace(
        checks,
        compared=count(in_both_U),
        overlap=len(shared),
        overlap_possible=int(shorter_P.sum()),
        scores_compared=len(first_P),
        score_sum=float(first_P.sum()),
        score_squares=float(first_P @ first_P),
        last_score_sum=float(last_first_P.sum()),
        last_score_squares=float(last_first_P @ last_first_P),
    )


def _first_list(coded: _CodedLists, queries: int) -> Ints:
    """(U,) the first of each query's own lists, -1 for none."""
    first_U = np.full(queries, -1)
    own = np.flatnonzero(coded.is_own_B)[::-1]  # the last assignment wins: that of the first list
    first_U[coded.query_B[own]] = own
    return first_U


def _codes_of_lists(coded: _CodedLists, list_P: Ints, n: int) -> Ints:
    """Sorted pairs of a query and an item, from some of the lists."""
    is_chosen_B = np.zeros(len(coded.query_B), bool)
    is_chosen_B[list_P] = True
    list_V, item_V = coded.lists.list_V, coded.item_V
    is_chosen_V = is_chosen_B[list_V] & (item_V >= 0)
    return distinct(pair_codes(coded.query_B[list_V[is_chosen_V]], item_V[is_chosen_V], n))
