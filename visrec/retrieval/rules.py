"""Rules for the entries of a list, applied inside the exact search and not to its result.

Some rules make an item unavailable, for everybody or for one user; such items are never candidates.
The other rules are limits between the entries of a list. Items enter a list from the best score
down, ties by row, and an item is skipped if it would break a limit together with the entries above
it. The search continues until the list is full.

Both limits between entries are limits on groups: at most `cap` entries with the same value in a
column, and one entry of each group of near-duplicates. A rule stores each item's group.

Shapes: B users, b some of them, K list length, M candidates of a user, N items, V entries of lists,
F full groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from visrec.config import COUNTS, check_fields
from visrec.jagged import Jagged, chunk_rows
from visrec.retrieval.topk import Search, TopKResult
from visrec.storage import schemas
from visrec.storage.input_table import InputTable, check_mapping

ENTRIES = 2**21  # candidates and excluded items in memory at once, about 16 bytes each
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RulesConfig:
    """What a list may contain, in addition to `available` in the items table.

    Attributes:
        min_stock: items with less in the `stock` column of the items table are not recommended;
            items without a value are.
        blocked: block list: a table with item_id, and with user_id if an item is blocked for that
            user only.
        blocked_columns: its columns that have other names in the files, such as {item_id: sku}.
        cap: most entries of a list with the same value of `cap_by`; items without a value are
            not limited.
        cap_by: column of the items table.
        near_duplicate: least cosine of the features of two pictures that count as near-duplicates.
            Two near-duplicates of a third picture are in one group with it. Only the best item of a
            group is listed. Re-encoded and rescaled copies are above 0.95.
    """

    min_stock: float | None = None
    blocked: str | None = None
    blocked_columns: dict[str, str] = field(default_factory=dict)
    cap: int | None = None
    cap_by: str = "artist_id"
    near_duplicate: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "rules", min_stock="(-inf, inf)", cap=COUNTS, near_duplicate="(0, 1]")
        check_mapping(self.blocked_columns, schemas.BLOCKED, "rules.blocked_columns")

    @property
    def blocked_table(self) -> InputTable | None:
        """The block list as a table; None without one."""
        if not self.blocked:
            return None
        return InputTable(
            uri=self.blocked,
            key="rules.blocked",
            columns=self.blocked_columns,
            columns_key="rules.blocked_columns",
        )


@dataclass(frozen=True)
class Rules:
    """The rules between the entries of a list.

    Attributes:
        cap: most entries with the same group in `group_N`.
        group_N: (N,) each item's group for the cap, -1 for none; None without a cap.
        near_duplicate_N: (N,) each item's group of near-duplicates, -1 for none. A list has at
            most one item of a group. None without this rule.
    """

    cap: int
    group_N: Ints | None
    near_duplicate_N: Ints | None

    @cached_property
    def limits(self) -> list[tuple[int, Ints]]:
        """For each rule the limit of entries per group, and the items' groups."""
        both = (self.cap, self.group_N), (1, self.near_duplicate_N)
        return [(limit, group_N) for limit, group_N in both if group_N is not None]

    def max_entries(self, available_N: Bools) -> int:
        """An upper bound on the entries of any list."""
        bounds = [int(available_N.sum())]
        for limit, group_N in self.limits:
            group_V = group_N[available_N]
            sizes = np.bincount(group_V[group_V >= 0])
            bounds.append(int(np.minimum(sizes, limit).sum() + np.count_nonzero(group_V < 0)))
        return min(bounds)

    def select(self, row_BM: Ints, k: int) -> Bools:
        """(B, M) which candidates enter the lists, at most k for each user.

        Args:
            row_BM: rows, best first, -1 after the last.
            k: length of a list.
        """
        exists_BM = row_BM >= 0
        allowed_by_rule = [_first_of_groups(_groups(g, row_BM), m) for m, g in self.limits]
        allowed_BM = np.logical_and.reduce([exists_BM, *allowed_by_rule])
        # An item that one rule skips does not count towards the other rule's limit. So if both
        # rules skip items of a list, its candidates are decided one after another.
        rule_skips_B = [(exists_BM & ~rule_BM).any(axis=1) for rule_BM in allowed_by_rule]
        if len(rule_skips_B) > 1:
            both_b = np.flatnonzero(np.logical_and.reduce(rule_skips_B))
            allowed_BM[both_b] = self._select_one_by_one(row_BM[both_b], k)
        return np.asarray(allowed_BM & (np.cumsum(allowed_BM, axis=1) <= k))

    def _select_one_by_one(self, row_BM: Ints, k: int) -> Bools:
        """(B, M) which candidates the rules allow, decided column by column, the best first.

        Candidates after the k-th allowed one are undecided.
        """
        allowed_BM, width = row_BM >= 0, row_BM.shape[1]
        size_B = np.zeros(len(row_BM), np.int64)
        rules = [(m, _groups(g, row_BM), np.zeros(row_BM.shape, np.int32)) for m, g in self.limits]
        for column in range(width):
            enters_B = allowed_BM[:, column]
            size_B += enters_B
            if size_B.min(initial=k) == k:
                break
            rest = slice(column + 1, width)
            for limit, group_BM, count_BM in rules:
                same_BM = group_BM[:, rest] == group_BM[:, column, None]
                count_BM[:, rest] += same_BM & enters_B[:, None]
                allowed_BM[:, rest] &= count_BM[:, rest] < limit
        return allowed_BM

    def full_groups(self, list_V: Ints, row_V: Ints) -> Iterator[tuple[Ints, Ints]]:
        """For each rule, the lists and those of their groups that can have no more entries.

        Args:
            list_V: the list that each entry is in.
            row_V: the entry's item.

        Yields:
            (F,) lists and (F,) groups.
        """
        for limit, group_N in self.limits:
            group_V, groups = group_N[row_V], int(group_N.max(initial=-1)) + 1
            key_K, count_K = count_keys((list_V * groups + group_V)[group_V >= 0])
            list_F, group_F = np.divmod(key_K[count_K >= limit], max(groups, 1))
            yield list_F, group_F

    @cached_property
    def members(self) -> list[Jagged]:
        """For each rule the items of each group."""
        return [Jagged.by_code(group_N) for _, group_N in self.limits]


def _groups(group_N: Ints, row_BM: Ints) -> Ints:
    """(B, M) the candidates' groups; a candidate without one is in a group of its own."""
    group_BM = np.where(row_BM < 0, -1, group_N[row_BM])
    return np.where(group_BM < 0, -2 - np.arange(row_BM.shape[1]), group_BM)


def _first_of_groups(group_BM: Ints, limit: int) -> Bools:
    """(B, M) which candidates are among the first `limit` of their group."""
    column_M = np.arange(group_BM.shape[1])
    order = np.argsort(group_BM, axis=1, kind="stable")
    sorted_BM = np.take_along_axis(group_BM, order, axis=1)
    begins_BM = np.ones(group_BM.shape, bool)
    begins_BM[:, 1:] = sorted_BM[:, 1:] != sorted_BM[:, :-1]
    first_BM = np.maximum.accumulate(np.where(begins_BM, column_M, 0), axis=1)
    allowed_BM = np.empty(group_BM.shape, bool)
    np.put_along_axis(allowed_BM, order, column_M - first_BM < limit, axis=1)
    return allowed_BM


def count_keys(key_V: Ints) -> tuple[Ints, Ints]:
    """The distinct keys in rising order, and how often each occurs."""
    key_V = np.sort(key_V)  # `np.unique` hashes integers, which takes ten times as long
    is_first_V = np.ones(len(key_V), bool)
    is_first_V[1:] = key_V[1:] != key_V[:-1]
    first_K = np.flatnonzero(is_first_V)
    return key_V[first_K], np.diff(first_K, append=len(key_V))


class RuledTopK:
    """Searches for the k best items of users that obey the rules.

    If the rules leave a list short, the search is repeated for it, without the items that cannot
    follow: its own and those of full groups. So each search finds few candidates, however many the
    rules skip. A re-ranker's later proposals may have higher scores than its earlier ones, so the
    lists are sorted at the end.

    Args:
        search: finds candidates.
        rules: the rules between entries; None for none.
        available_N: (N,) which items may be listed.
        k: length of a list.
    """

    def __init__(self, search: Search, rules: Rules | None, available_N: Bools, k: int) -> None:
        self._search, self._rules, self._k = search, rules, k
        self._full = min(k, rules.max_entries(available_N)) if rules else k
        # A re-ranker scores this many in any case.
        self._width = max(2 * k, search.num_proposals)

    def __call__(self, profiles: Jagged, user_B: Ints, excluded: Jagged) -> TopKResult:
        """As `TopK`; searches again until each list is full or no candidates are left."""
        if self._rules is None:
            return self._search(profiles, user_B, excluded, self._k)
        lists, pending_b = TopKResult.empty(len(user_B), self._k), np.arange(len(user_B))
        while len(pending_b):
            still_pending = [np.zeros(0, np.int64)]
            for part_b in self._chunks(self._rules, lists, pending_b):
                so_far = TopKResult(lists.row_BK[part_b], lists.score_BK[part_b])
                excluded_b = excluded.take(part_b).append_values(
                    _items_that_cannot_follow(self._rules, so_far.row_BK)
                )
                found = self._search(profiles.take(part_b), user_B[part_b], excluded_b, self._width)
                longer = apply_rules(self._rules, _append(so_far, found), self._k)
                lists.assign(part_b, longer)
                is_short_b = (longer.row_BK >= 0).sum(axis=1) < self._full
                still_pending.append(part_b[is_short_b & (found.row_BK[:, -1] >= 0)])
            pending_b = np.concatenate(still_pending)
        return _sort(lists)

    def _chunks(self, rules: Rules, lists: TopKResult, pending_b: Ints) -> Iterator[Ints]:
        """Users to search for together, few enough to bound candidates and excluded items."""
        entries_b = np.full(len(pending_b), self._width)
        for members, (list_F, group_F) in zip(
            rules.members, _full_groups(rules, lists.row_BK[pending_b]), strict=True
        ):
            np.add.at(entries_b, list_F, members.lengths[group_F])
        yield from (pending_b[part] for part in chunk_rows(entries_b, ENTRIES))


def _sort(lists: TopKResult) -> TopKResult:
    """The lists sorted by score, ties by row; -inf after the last entry stays last."""
    order = np.lexsort((lists.row_BK, -lists.score_BK), axis=1)
    return TopKResult(
        np.take_along_axis(lists.row_BK, order, axis=1),
        np.take_along_axis(lists.score_BK, order, axis=1),
    )


def _full_groups(rules: Rules, row_BK: Ints) -> Iterator[tuple[Ints, Ints]]:
    list_V, column_V = np.nonzero(row_BK >= 0)
    return rules.full_groups(list_V, row_BK[list_V, column_V])


def _items_that_cannot_follow(rules: Rules, row_BK: Ints) -> Jagged:
    """B lists of the items that cannot follow a list: its own, and all items of full groups."""
    exists_BK = row_BK >= 0
    excluded = Jagged.from_row_ids(np.nonzero(exists_BK)[0], row_BK[exists_BK], len(row_BK))
    for members, (list_F, group_F) in zip(rules.members, _full_groups(rules, row_BK), strict=True):
        items = members.take(group_F)
        of_full_groups = Jagged.from_row_ids(list_F[items.row_ids], items.values, len(row_BK))
        excluded = excluded.append_values(of_full_groups)
    return excluded


def _append(lists: TopKResult, found: TopKResult) -> TopKResult:
    """Each list followed by the candidates that were found for it."""
    return TopKResult(
        np.concatenate([lists.row_BK, found.row_BK], axis=1),
        np.concatenate([lists.score_BK, found.score_BK], axis=1),
    )


def apply_rules(rules: Rules, candidates: TopKResult, k: int) -> TopKResult:
    """The lists of at most k items that the rules select from candidates, which are best first."""
    selected_BM = rules.select(candidates.row_BK, k)
    user_V, from_V = np.nonzero(selected_BM)
    to_V = (np.cumsum(selected_BM, axis=1) - 1)[user_V, from_V]
    lists = TopKResult.empty(len(selected_BM), k)
    lists.row_BK[user_V, to_V] = candidates.row_BK[user_V, from_V]
    lists.score_BK[user_V, to_V] = candidates.score_BK[user_V, from_V]
    return lists
