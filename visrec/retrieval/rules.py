"""Rules of what a list may hold, kept inside the exact search and not cut out of its result.

Some close an item for everybody or for one user: those are no candidates at all. The others hold
between the entries of a list: items go into it from the best score down, ties by row, and one that
would break a rule with those that are in already is passed over. The list is what that leaves,
however far down it must look.

Both rules between entries are limits on groups: at most `cap` entries of one value of a column, and
one entry of each group of near-duplicates. What a rule needs is one number an item.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from visrec.config import COUNTS, check_fields
from visrec.jagged import Jagged, portions
from visrec.retrieval.topk import Search, TopK, TopKResult, empty, put

ENTRIES = 2**21  # candidates and closed items that are in memory together, about 16 bytes each
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RulesConfig:
    """What a list may hold, beside what items.parquet calls available.

    Attributes:
        min_stock: items with less in the `stock` column of the items table are not recommended;
            those without a number are.
        blocked: table of item_id, and user_id where an item is blocked for that user only.
        cap: most entries of a list with the same value of `cap_by`; items without a value are
            not counted.
        cap_by: column of the items table.
        near_duplicate: cosine of two pictures' features from which they count as the same picture.
            Pictures that are the same as a third one are the same, too; of such a group only the
            best is listed. Re-encoded and rescaled copies are above 0.95.
    """

    min_stock: float | None = None
    blocked: str | None = None
    cap: int | None = None
    cap_by: str = "artist_id"
    near_duplicate: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "rules", min_stock="(-inf, inf)", cap=COUNTS, near_duplicate="(0, 1]")


@dataclass(frozen=True)
class Rules:
    """The rules between the entries of a list.

    Args:
        cap: most entries of one group of `group_N`.
        group_N: (N,) each item's group, -1 for none; None where groups do not count.
        near_duplicate_N: (N,) each item's group of near-duplicates, of which a list has one; -1 for
            an item that has none. None where they do not count.
    """

    cap: int
    group_N: Ints | None
    near_duplicate_N: Ints | None

    @cached_property
    def limits(self) -> list[tuple[int, Ints]]:
        """Each rule as the most entries of a group, and the groups."""
        both = (self.cap, self.group_N), (1, self.near_duplicate_N)
        return [(limit, group_N) for limit, group_N in both if group_N is not None]

    def most(self, available_N: Bools) -> int:
        """Entries that no list can have more of."""
        most = [int(available_N.sum())]
        for limit, group_N in self.limits:
            group_V = group_N[available_N]
            sizes = np.bincount(group_V[group_V >= 0])
            most.append(int(np.minimum(sizes, limit).sum() + np.count_nonzero(group_V < 0)))
        return min(most)

    def keep(self, row_BM: Ints, k: int) -> Bools:
        """(B, M) which of the candidates go into the lists, at most k of each.

        Args:
            row_BM: rows, best first, -1 behind the last.
            k: entries of a list.
        """
        there_BM = row_BM >= 0
        open_by_rule = [_first_of_groups(_groups(g, row_BM), m) for m, g in self.limits]
        open_BM = np.logical_and.reduce([there_BM, *open_by_rule])
        # An item that one rule closes does not count for another, so these go one by one.
        closes_B = [(there_BM & ~one_BM).any(axis=1) for one_BM in open_by_rule]
        if len(closes_B) > 1:
            both_b = np.flatnonzero(np.logical_and.reduce(closes_B))
            open_BM[both_b] = self._one_by_one(row_BM[both_b], k)
        return np.asarray(open_BM & (np.cumsum(open_BM, axis=1) <= k))

    def _one_by_one(self, row_BM: Ints, k: int) -> Bools:
        """(B, M) which candidates the rules leave, decided place by place, the best first.

        Behind the k-th that is left nothing is decided.
        """
        open_BM, width = row_BM >= 0, row_BM.shape[1]
        size_B = np.zeros(len(row_BM), np.int64)
        counted = [
            (m, _groups(g, row_BM), np.zeros(row_BM.shape, np.int32)) for m, g in self.limits
        ]
        for place in range(width):
            taken_B = open_BM[:, place]
            size_B += taken_B
            if size_B.min(initial=k) == k:
                break
            rest = slice(place + 1, width)
            for limit, group_BM, before_BM in counted:
                same_BM = group_BM[:, rest] == group_BM[:, place, None]
                before_BM[:, rest] += same_BM & taken_B[:, None]
                open_BM[:, rest] &= before_BM[:, rest] < limit
        return open_BM

    def full(self, owner_V: Ints, row_V: Ints) -> Iterator[tuple[Ints, Ints]]:
        """For each rule the groups of which a list can have no more: lists, and their groups.

        Args:
            owner_V: the list that each entry is in.
            row_V: its item.
        """
        for limit, group_N in self.limits:
            group_V, groups = group_N[row_V], int(group_N.max(initial=-1)) + 1
            key_K, count_K = counts_of((owner_V * groups + group_V)[group_V >= 0])
            owner_F, group_F = np.divmod(key_K[count_K >= limit], max(groups, 1))
            yield owner_F, group_F

    @cached_property
    def members(self) -> list[Jagged]:
        """For each rule the items of each group."""
        lists = []
        for _, group_N in self.limits:
            order = np.argsort(group_N, kind="stable")[np.count_nonzero(group_N < 0) :]
            lists.append(Jagged.group(group_N[order], order, int(group_N.max(initial=-1)) + 1))
        return lists


def _groups(group_N: Ints, row_BM: Ints) -> Ints:
    """(B, M) the candidates' groups; each of those without one is in a group of its own."""
    group_BM = np.where(row_BM < 0, -1, group_N[row_BM])
    return np.where(group_BM < 0, -2 - np.arange(row_BM.shape[1]), group_BM)


def _first_of_groups(group_BM: Ints, limit: int) -> Bools:
    """(B, M) which candidates are among the first `limit` of their group."""
    place_M = np.arange(group_BM.shape[1])
    order = np.argsort(group_BM, axis=1, kind="stable")
    sorted_BM = np.take_along_axis(group_BM, order, axis=1)
    begins_BM = np.ones(group_BM.shape, bool)
    begins_BM[:, 1:] = sorted_BM[:, 1:] != sorted_BM[:, :-1]
    first_BM = np.maximum.accumulate(np.where(begins_BM, place_M, 0), axis=1)
    open_BM = np.empty(group_BM.shape, bool)
    np.put_along_axis(open_BM, order, place_M - first_BM < limit, axis=1)
    return open_BM


def counts_of(key_V: Ints) -> tuple[Ints, Ints]:
    """The distinct keys, sorted, and how often each is there."""
    key_V = np.sort(key_V)  # `np.unique` hashes whole numbers, which takes ten times as long
    first_K = np.flatnonzero(np.diff(key_V, prepend=-1) != 0)
    return key_V[first_K], np.diff(first_K, append=len(key_V))


class RuledTopK:
    """The k best items of users that keep to the rules.

    A list that is not full is continued: what cannot follow is closed, and the best of the rest are
    searched for. So each search is for few candidates, however far down the list must look. The
    scores of a re-ranker are not in the order of its proposals, so lists are put in order at last.

    Args:
        search: among the candidates.
        rules: between the entries of a list; None for none.
        available_N: (N,) the candidates.
        k: entries a list.
    """

    def __init__(self, search: Search, rules: Rules | None, available_N: Bools, k: int) -> None:
        self._search, self._rules, self._k = search, rules, k
        self._full = min(k, rules.most(available_N)) if rules else k
        # All that a re-ranker has ranked is looked at, as it has cost what it costs.
        self._width = max(2 * k, search.proposals if isinstance(search, TopK) else 0)

    def __call__(self, profiles: Jagged, user_B: Ints, excluded: Jagged) -> TopKResult:
        """As `TopK`: more candidates are looked for until each list is full or none is left."""
        if self._rules is None:
            return self._search(profiles, user_B, excluded, self._k)
        lists, open_b = empty(len(user_B), self._k), np.arange(len(user_B))
        while len(open_b):
            short = [np.zeros(0, np.int64)]
            for some_b in self._portions(self._rules, lists, open_b):
                best = TopKResult(lists.row_BK[some_b], lists.score_BK[some_b])
                gone = excluded.take(some_b).joined(_closed(self._rules, best.row_BK))
                found = self._search(profiles.take(some_b), user_B[some_b], gone, self._width)
                kept = apply(self._rules, _behind(best, found), self._k)
                put(lists, some_b, kept)
                is_short_b = (kept.row_BK >= 0).sum(axis=1) < self._full
                short.append(some_b[is_short_b & (found.row_BK[:, -1] >= 0)])
            open_b = np.concatenate(short)
        return _in_order(lists)

    def _portions(self, rules: Rules, lists: TopKResult, open_b: Ints) -> Iterator[Ints]:
        """Users who are searched for together, so that candidates and closed items are bounded."""
        entries_b = np.full(len(open_b), self._width)
        for members, (owner_F, group_F) in zip(
            rules.members, _full(rules, lists.row_BK[open_b]), strict=True
        ):
            np.add.at(entries_b, owner_F, members.lengths[group_F])
        yield from (open_b[part] for part in portions(entries_b, ENTRIES))


def _in_order(lists: TopKResult) -> TopKResult:
    """The lists by score, ties by row; what is behind the last has -inf."""
    order = np.lexsort((lists.row_BK, -lists.score_BK), axis=1)
    return TopKResult(
        np.take_along_axis(lists.row_BK, order, axis=1),
        np.take_along_axis(lists.score_BK, order, axis=1),
    )


def _full(rules: Rules, row_BK: Ints) -> Iterator[tuple[Ints, Ints]]:
    owner_V, place_V = np.nonzero(row_BK >= 0)
    return rules.full(owner_V, row_BK[owner_V, place_V])


def _closed(rules: Rules, row_BK: Ints) -> Jagged:
    """B lists of what cannot follow a list: its own items and those of groups that are full."""
    there_BK = row_BK >= 0
    closed = Jagged.group(np.nonzero(there_BK)[0], row_BK[there_BK], len(row_BK))
    for members, (owner_F, group_F) in zip(rules.members, _full(rules, row_BK), strict=True):
        items = members.take(group_F)
        closed = closed.joined(Jagged.group(owner_F[items.owners], items.values, len(row_BK)))
    return closed


def _behind(best: TopKResult, found: TopKResult) -> TopKResult:
    """Candidates behind the lists that they continue."""
    return TopKResult(
        np.concatenate([best.row_BK, found.row_BK], axis=1),
        np.concatenate([best.score_BK, found.score_BK], axis=1),
    )


def apply(rules: Rules, candidates: TopKResult, k: int) -> TopKResult:
    """The lists that the rules leave of candidates, best first."""
    kept_BM = rules.keep(candidates.row_BK, k)
    user_V, from_V = np.nonzero(kept_BM)
    to_V = (np.cumsum(kept_BM, axis=1) - 1)[user_V, from_V]
    lists = empty(len(kept_BM), k)
    lists.row_BK[user_V, to_V] = candidates.row_BK[user_V, from_V]
    lists.score_BK[user_V, to_V] = candidates.score_BK[user_V, from_V]
    return lists
