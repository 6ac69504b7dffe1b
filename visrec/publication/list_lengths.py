"""How long each list must be: k, or as long as candidates and rules allow.

U queries, B lists, V entries of all lists, N items, P pairs of a query and an item, F full groups:
pairs of a list and a group of which the list can have no more.
"""

from collections.abc import Sequence

import numpy as np

from visrec.jagged import Jagged, chunk_rows
from visrec.publication.pairs import Bools, Ints, count, distinct, is_pair_among, pair_codes
from visrec.retrieval.rules import ENTRIES, Rules

_LISTS = 1024  # lists that the rules may have shortened, examined together


def expected_lengths(available_N: Bools, excluded: Jagged, k: int) -> Ints:
    """(U,) entries of each query's list if there are no rules: k, or as many as candidates.

    Args:
        available_N: (N,) which items may be recommended.
        excluded: U lists of items that may not be in the query's list; an item may be twice in one.
        k: entries of a list where there are enough candidates.
    """
    n = len(available_N)
    query_P, item_P = np.divmod(
        distinct(pair_codes(excluded.row_ids, excluded.values, n)), max(n, 1)
    )
    is_available_P = available_N[item_P]
    excluded_U = np.bincount(query_P[is_available_P], minlength=len(excluded))
    return np.minimum(int(available_N.sum()) - excluded_U, k)


def count_wrong_lengths(
    lists: Jagged,
    query_B: Ints,
    expected_U: Ints,
    excluded: Jagged,
    available_N: Bools,
    rules: Rules | None,
) -> int:
    """How many lists are too long, or too short although an item could follow.

    Args:
        lists: B lists of items, -1 for an unknown one.
        query_B: (B,) whose list each is, -1 for an unknown query, whose list does not count.
        expected_U: (U,) lengths of the lists if there are no rules.
        excluded: U lists of items that may not be in the query's list.
        available_N: (N,) which items may be recommended.
        rules: between the entries of a list.
    """
    length_B = lists.lengths
    known = np.flatnonzero(query_B >= 0)
    wrong = known[length_B[known] != expected_U[query_B[known]]]
    if rules is None:
        return len(wrong)
    total = 0
    for start in range(0, len(wrong), _LISTS):
        block = wrong[start : start + _LISTS]
        query_b = query_B[block]
        listed = lists.take(block)
        listed = listed.keep(listed.values >= 0)
        open_b = count_open_items(rules, listed, excluded.take(query_b), available_N)
        total += count((length_B[block] > expected_U[query_b]) | (open_b > 0))
    return total


def count_open_items(rules: Rules, listed: Jagged, excluded: Jagged, available_N: Bools) -> Ints:
    """(B,) how many items could follow each list; counted by groups rather than one by one.

    open = available items
           - available items of full groups, each once
           - listed or excluded available items outside full groups

    Args:
        rules: between the entries of a list.
        listed: B lists of items.
        excluded: B lists of items that may not follow, whatever the rules.
        available_N: (N,) which items may be recommended.
    """
    full = list(rules.full_groups(listed.row_ids, listed.values))
    unavailable_B = _count_in_full_groups(rules, full, available_N, len(listed))
    n = len(available_N)
    either = listed.append_values(excluded)
    list_P, item_P = np.divmod(distinct(pair_codes(either.row_ids, either.values, n)), max(n, 1))
    is_left_P = available_N[item_P] & ~_is_in_full_group(full, rules.limits, list_P, item_P)
    np.add.at(unavailable_B, list_P[is_left_P], 1)
    return np.asarray(count(available_N) - unavailable_B)


def _count_in_full_groups(
    rules: Rules, full: Sequence[tuple[Ints, Ints]], available_N: Bools, lists: int
) -> Ints:
    """(B,) how many available items are in full groups of each list.

    Args:
        rules: at most two.
        full: the full groups of each rule, as `Rules.full_groups` gives them.
        available_N: (N,) which items may be recommended.
        lists: B.
    """
    assert len(full) <= 2, "the correction below is for two rules"
    count_B = np.zeros(lists, np.int64)
    available_as_int_N = available_N.astype(np.int64)
    for (list_F, group_F), (_, group_N) in zip(full, rules.limits, strict=True):
        has_group_N = group_N >= 0
        size_G = np.bincount(group_N[has_group_N], available_as_int_N[has_group_N])
        np.add.at(count_B, list_F, size_G.astype(np.int64)[group_F])
    if len(full) < 2:
        return count_B
    # An item may be in a full group of each rule, and was then counted twice.
    list_F, group_F = full[-1]
    members = rules.members[-1]
    for part in chunk_rows(members.lengths[group_F], ENTRIES):
        items = members.take(group_F[part])
        list_V, item_V = list_F[part][items.row_ids], items.values
        is_twice_V = _is_in_full_group(full[:-1], rules.limits[:-1], list_V, item_V)
        np.subtract.at(count_B, list_V, is_twice_V * available_as_int_N[item_V])
    return count_B


def _is_in_full_group(
    full: Sequence[tuple[Ints, Ints]],
    limits: Sequence[tuple[int, Ints]],
    list_V: Ints,
    item_V: Ints,
) -> Bools:
    """(V,) whether an item is in a group of which its list can have no more."""
    found_V = np.zeros(len(list_V), bool)
    for (list_F, group_F), (_, group_N) in zip(full, limits, strict=True):
        groups = int(group_N.max(initial=-1)) + 1
        codes = np.sort(pair_codes(list_F, group_F, groups))
        found_V |= is_pair_among(list_V, group_N[item_V], codes, groups)
    return found_V
