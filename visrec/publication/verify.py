"""What is wrong with a shard's lists, counted: facts of tables that add up to the facts of a run.

Nothing here trusts the code that made the lists: who should have one, what they have taken and what
may be recommended come from the inputs, and all else from the table as it was read back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.ids import rows_of
from visrec.jagged import Jagged, offsets_of, portions
from visrec.publication.list_tables import Layout
from visrec.retrieval.rules import ENTRIES, Rules, counts_of
from visrec.retrieval.similar import Kind
from visrec.storage.schemas import (
    RECOMMENDATIONS,
    RECOMMENDATIONS_LONG,
    SIMILAR_ITEMS,
    SIMILAR_ITEMS_LONG,
)

_SCHEMAS: dict[tuple[str, str], pa.Schema] = {
    ("user_to_item", "nested"): RECOMMENDATIONS,
    ("user_to_item", "long"): RECOMMENDATIONS_LONG,
    ("item_to_item", "nested"): SIMILAR_ITEMS,
    ("item_to_item", "long"): SIMILAR_ITEMS_LONG,
}
_LISTS = 1024  # that the rules may have shortened, looked at together
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a shard's table is held against.

    Args:
        item_ids: (N,) sorted.
        available_N: (N,) which may be recommended.
        query_ids: (U,) who has a list in this shard.
        consumed: U lists of items that the owner has; of an item, the item itself.
        blocked: U lists of items that are blocked for that owner.
        cold_U: (U,) users whom the model cannot score: their lists are the fallback, the same for
            all, so they say nothing of the model.
        k: entries of a list, where there are candidates enough.
        layout: of the table.
        kind: whose lists they are.
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
class ShardFacts:
    """Sums over lists. Those of two shards add up to those of both: `a + b`.

    Args:
        files: files that were read.
        other_files: files that are not, to the byte, what scoring wrote, or are another run's.
        other_schemas: files with other columns than the declared ones; nothing else is known of
            them.
        rows: of the tables.
        owners_expected: who should have a list.
        owners: who has one.
        lists_beyond: lists of unknown owners, of another shard's, or second ones.
        wrong_lengths: lists that have not min(k, candidates left for that owner) entries, unless
            the rules close all that are left.
        with_repeats: lists that have an item twice.
        against_rules: lists with entries that a rule keeps apart.
        unsorted: lists whose scores rise somewhere, whose items of equal score are not in the order
            of their ids, or whose ranks are not 1, 2, ...
        wrong_cold: lists that are marked as the fallback and are not, or the other way round.
        entries: of all lists.
        unknown: entries with an item that is not in the catalogue, or with none.
        unavailable: entries with an item that may not be recommended.
        consumed: entries with an item that their owner has already, or is, or that is blocked for
            that owner.
        not_finite: entries whose score is NaN, infinite or missing.
        wrong_because: entries with a reason that is not in their owner's profile.
        cold: lists of cold users.
        warm: all other lists of known owners.
        listed_N: (N,) in how many warm lists each item is.
        both: owners with a warm list now and in the last publication.
        overlap: items that their two lists share.
        overlap_of: and could share: the length of the shorter one.
        damaged_of_last: reads of files of the last publication that are gone or are not what was
            published.
        scored: those of `both` whose first scores are numbers.
        now_sum: sum of their first scores now.
        now_squares: of the squares.
        before_sum: sum of their first scores in the last publication.
        before_squares: of the squares.
        rescored: lists of the model's own that were scored anew (`visrec.recommend.rescore`).
        not_the_models: those that are not what the model gives.
        other_reasons: those with a reason that is missing or not the nearest item.
        rescored_fallbacks: fallback lists that were made anew.
        not_popular: those that are not the most popular items.
    """

    listed_N: Ints
    files: int = 0
    other_files: int = 0
    other_schemas: int = 0
    rows: int = 0
    owners_expected: int = 0
    owners: int = 0
    lists_beyond: int = 0
    wrong_lengths: int = 0
    with_repeats: int = 0
    against_rules: int = 0
    unsorted: int = 0
    wrong_cold: int = 0
    entries: int = 0
    unknown: int = 0
    unavailable: int = 0
    consumed: int = 0
    not_finite: int = 0
    wrong_because: int = 0
    cold: int = 0
    warm: int = 0
    both: int = 0
    overlap: int = 0
    overlap_of: int = 0
    damaged_of_last: int = 0
    scored: int = 0
    now_sum: float = 0.0
    now_squares: float = 0.0
    before_sum: float = 0.0
    before_squares: float = 0.0
    rescored: int = 0
    not_the_models: int = 0
    other_reasons: int = 0
    rescored_fallbacks: int = 0
    not_popular: int = 0

    def __add__(self, other: "ShardFacts") -> "ShardFacts":
        names = [field.name for field in fields(self)]
        return ShardFacts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True)
class Lists:
    """A table of lists in columns, whichever its layout.

    Args:
        query_ids: (B,).
        offsets: (B + 1,) where each list's entries begin.
        item_ids: (V,).
        score_V: (V,) NaN for a missing one.
        because_V: (V,) item ids, or None where the table has none.
        rank_V: (V,) or None.
        cold_B: (B,) or None.
    """

    query_ids: pa.Array
    offsets: Ints
    item_ids: pa.Array
    score_V: npt.NDArray[np.float32]
    because_V: pa.Array | None
    rank_V: Ints | None
    cold_B: Bools | None

    @property
    def owner_V(self) -> Ints:
        return np.repeat(np.arange(len(self.query_ids)), np.diff(self.offsets))


def read_lists(table: pa.Table, kind: str) -> Lists | None:
    """The lists of a table of either layout; None where its columns are not the declared ones."""
    table = table.combine_chunks()
    columns = [_whole(column) for column in table.columns]
    if table.schema.equals(_SCHEMAS[kind, "nested"]):
        lengths = pc.fill_null(pc.list_value_length(columns[1]), 0).to_numpy()
        item_ids, scores, *because = columns[1].flatten().flatten()
        ids, cold_B, rank_V = columns[0], None, None
        if len(columns) > 2:
            cold_B = pc.fill_null(columns[2], True).to_numpy(zero_copy_only=False)
    elif table.schema.equals(_SCHEMAS[kind, "long"]):
        owner_V, ranks, item_ids, scores, *because = columns
        begins_V = np.ones(len(table), bool)
        same = pc.fill_null(pc.equal(owner_V[1:], owner_V[:-1]), False)
        begins_V[1:] = ~same.to_numpy(zero_copy_only=False)
        first_B = np.flatnonzero(begins_V)
        ids, cold_B = owner_V.take(pa.array(first_B)), None
        lengths = np.diff(first_B, append=len(table))
        rank_V = pc.fill_null(ranks, 0).to_numpy().astype(np.int64)
    else:
        return None
    score_V = scores.to_numpy(zero_copy_only=False).astype(np.float32)
    return Lists(
        ids, offsets_of(lengths), item_ids, score_V, because[0] if because else None, rank_V, cold_B
    )


def check_shard(table: pa.Table, expected: Expected, before: Lists | None = None) -> ShardFacts:
    """The facts of one shard's table.

    Args:
        table: as it was read back.
        expected: what it is held against.
        before: lists of the last publication, of these owners and perhaps of others.
    """
    n = len(expected.item_ids)
    closed = expected.consumed.joined(expected.blocked)
    wanted_U = _lengths(expected, closed)
    # In the long layout who has no candidate has no row.
    listed_U = wanted_U > 0 if expected.layout == "long" else np.ones(len(wanted_U), bool)
    base = {"files": 1, "rows": len(table), "owners_expected": int(listed_U.sum())}
    lists = read_lists(table, expected.kind)
    if lists is None or not table.schema.equals(_SCHEMAS[expected.kind, expected.layout]):
        return ShardFacts(listed_N=np.zeros(n, np.int64), other_schemas=1, **base)
    user_B, item_V = (
        rows_of(lists.query_ids, expected.query_ids),
        rows_of(lists.item_ids, expected.item_ids),
    )
    owner_V, mine_B, there_V = lists.owner_V, user_B >= 0, item_V >= 0
    user_V = user_B[owner_V]
    taken = np.sort(_pairs(expected.consumed.owners, expected.consumed.values, n))
    gone = np.sort(_pairs(closed.owners, closed.values, n))
    owners = len(_distinct(user_B[mine_B]))
    warm_B = mine_B & ~expected.cold_U[user_B] if len(wanted_U) else mine_B
    counted_V = there_V & warm_B[owner_V]
    facts = {
        **base,
        "owners": owners,
        "lists_beyond": len(user_B) - owners,
        "wrong_lengths": _wrong_lengths(lists, user_B, item_V, wanted_U, closed, expected),
        "with_repeats": _repeated(owner_V[there_V], item_V[there_V], n),
        "against_rules": _against_rules(owner_V[there_V], item_V[there_V], expected.rules),
        "unsorted": _unsorted(lists, owner_V, item_V),
        "entries": len(item_V),
        "unknown": _count(~there_V),
        "unavailable": _count(~expected.available_N[item_V[there_V]]),
        "consumed": _count(_among(user_V, item_V, gone, n)),
        "not_finite": _count(~np.isfinite(lists.score_V)),
        "cold": _count(mine_B) - _count(warm_B),
        "warm": _count(warm_B),
    }
    if lists.cold_B is not None:
        facts["wrong_cold"] = _count(lists.cold_B[mine_B] == warm_B[mine_B])
    if lists.because_V is not None:
        told_V = lists.because_V.is_valid().to_numpy(zero_copy_only=False) & (user_V >= 0)
        because_V = rows_of(lists.because_V, expected.item_ids)
        facts["wrong_because"] = _count(told_V & ~_among(user_V, because_V, taken, n))
    compared = _compare(lists, user_B, item_V, warm_B, before, expected) if before else {}
    return ShardFacts(listed_N=np.bincount(item_V[counted_V], minlength=n), **facts, **compared)


def _lengths(expected: Expected, closed: Jagged) -> Ints:
    """(U,) how many entries each owner's list has: k, or as many as there are candidates."""
    n = len(expected.item_ids)
    # What is both taken and blocked is gone once.
    user_P, item_P = np.divmod(_distinct(_pairs(closed.owners, closed.values, n)), max(n, 1))
    open_P = expected.available_N[item_P]
    gone_U = np.bincount(user_P[open_P], minlength=len(expected.query_ids))
    left_U = int(expected.available_N.sum()) - gone_U
    return np.minimum(left_U, expected.k)


def _wrong_lengths(
    lists: Lists, user_B: Ints, item_V: Ints, wanted_U: Ints, closed: Jagged, expected: Expected
) -> int:
    found_B, rules = np.diff(lists.offsets), expected.rules
    mine = np.flatnonzero(user_B >= 0)
    wrong = mine[found_B[mine] != wanted_U[user_B[mine]]]
    if rules is None:
        return len(wrong)
    entries = Jagged(item_V, lists.offsets)
    count = 0
    for start in range(0, len(wrong), _LISTS):
        some = wrong[start : start + _LISTS]
        listed = entries.take(some)
        listed = listed.keep(listed.values >= 0)
        open_b = _open(rules, listed, closed.take(user_B[some]), expected.available_N)
        count += _count((found_B[some] > wanted_U[user_B[some]]) | (open_b > 0))
    return count


def _open(rules: Rules, listed: Jagged, closed: Jagged, available_N: Bools) -> Ints:
    """(B,) how many available items could follow each list; counted by groups, not one by one."""
    full = list(rules.full(listed.owners, listed.values))
    gone_B = np.zeros(len(listed), np.int64)
    free_N = available_N.astype(np.int64)
    for (owner_F, group_F), (_, group_N) in zip(full, rules.limits, strict=True):
        known_N = group_N >= 0
        size_G = np.bincount(group_N[known_N], free_N[known_N]).astype(np.int64)
        np.add.at(gone_B, owner_F, size_G[group_F])
    if len(full) > 1:  # what two rules close was counted twice
        owner_F, group_F = full[-1]
        members = rules.members[-1]
        for part in portions(members.lengths[group_F], ENTRIES):
            items = members.take(group_F[part])
            owner_V, item_V = owner_F[part][items.owners], items.values
            twice_V = _is_full(full[:-1], rules.limits[:-1], owner_V, item_V)
            np.subtract.at(gone_B, owner_V, twice_V * free_N[item_V])
    # And what the owner has or the list holds, of groups that are not full.
    n = len(available_N)
    own = listed.joined(closed)
    owner_P, item_P = np.divmod(_distinct(_pairs(own.owners, own.values, n)), max(n, 1))
    rest_P = available_N[item_P] & ~_is_full(full, rules.limits, owner_P, item_P)
    np.add.at(gone_B, owner_P[rest_P], 1)
    return np.asarray(free_N.sum() - gone_B)


def _is_full(
    full: Sequence[tuple[Ints, Ints]],
    limits: Sequence[tuple[int, Ints]],
    owner_V: Ints,
    item_V: Ints,
) -> Bools:
    """(V,) whether an item is in a group of which its list can have no more."""
    found_V = np.zeros(len(owner_V), bool)
    for (owner_F, group_F), (_, group_N) in zip(full, limits, strict=True):
        groups = int(group_N.max(initial=-1)) + 1
        found_V |= _among(
            owner_V, group_N[item_V], np.sort(_pairs(owner_F, group_F, groups)), groups
        )
    return found_V


def _against_rules(owner_V: Ints, item_V: Ints, rules: Rules | None) -> int:
    wrong = [np.zeros(0, np.int64)]
    for limit, group_N in rules.limits if rules is not None else []:
        group_V, groups = group_N[item_V], int(group_N.max(initial=-1)) + 1
        keys, counts = counts_of(_pairs(owner_V, group_V, groups)[group_V >= 0])
        wrong.append(keys[counts > limit] // max(groups, 1))
    return len(_distinct(np.concatenate(wrong)))


def _unsorted(lists: Lists, owner_V: Ints, item_V: Ints) -> int:
    score_V = lists.score_V
    wrong_V = np.zeros(len(owner_V), bool)
    tie_V = (score_V[1:] == score_V[:-1]) & (item_V[:-1] >= 0) & (item_V[1:] >= 0)
    # An item twice in a row is counted elsewhere.
    rises_V = (score_V[1:] > score_V[:-1]) | (tie_V & (item_V[1:] < item_V[:-1]))
    wrong_V[1:] = (owner_V[1:] == owner_V[:-1]) & rises_V
    if lists.rank_V is not None:
        wrong_V |= lists.rank_V != np.arange(1, len(owner_V) + 1) - lists.offsets[:-1][owner_V]
    return len(_distinct(owner_V[wrong_V]))


def _compare(
    lists: Lists, user_B: Ints, item_V: Ints, warm_B: Bools, before: Lists, expected: Expected
) -> dict[str, Any]:
    """Facts of the owners who have a list in the last publication, too: each one's first list."""
    n, users = len(expected.item_ids), len(expected.query_ids)
    then_B = rows_of(before.query_ids, expected.query_ids)
    known_B = then_B >= 0
    if before.cold_B is not None:
        known_B &= ~before.cold_B
    now_U, then_U = _first(user_B, warm_B, users), _first(then_B, known_B, users)
    both_U = (now_U >= 0) & (then_U >= 0)
    now_P, then_P = now_U[both_U], then_U[both_U]

    def pairs(owner_V: Ints, user_B: Ints, at_P: Ints, item_V: Ints) -> Ints:
        chosen_B = np.zeros(len(user_B), bool)
        chosen_B[at_P] = True
        chosen_V = chosen_B[owner_V] & (item_V >= 0)
        return _distinct(_pairs(user_B[owner_V[chosen_V]], item_V[chosen_V], n))

    shared = np.intersect1d(
        pairs(lists.owner_V, user_B, now_P, item_V),
        pairs(before.owner_V, then_B, then_P, rows_of(before.item_ids, expected.item_ids)),
        assume_unique=True,
    )
    shorter_P = np.minimum(np.diff(lists.offsets)[now_P], np.diff(before.offsets)[then_P])
    now_P, then_P = now_P[shorter_P > 0], then_P[shorter_P > 0]
    now = lists.score_V[lists.offsets[now_P]].astype(np.float64)
    then = before.score_V[before.offsets[then_P]].astype(np.float64)
    fine = np.isfinite(now) & np.isfinite(then)
    now, then = now[fine], then[fine]
    return {
        "both": _count(both_U),
        "overlap": len(shared),
        "overlap_of": int(shorter_P.sum()),
        "scored": len(now),
        "now_sum": float(now.sum()),
        "now_squares": float(now @ now),
        "before_sum": float(then.sum()),
        "before_squares": float(then @ then),
    }


def _first(user_B: Ints, kept_B: Bools, users: int) -> Ints:
    """(U,) the first of each user's lists among those kept, -1 for none."""
    first_U = np.full(users, -1)
    kept = np.flatnonzero(kept_B)[::-1]  # the last that is written stays: the first
    first_U[user_B[kept]] = kept
    return first_U


def _repeated(owner_V: Ints, item_V: Ints, n: int) -> int:
    key_V = np.sort(_pairs(owner_V, item_V, n))
    return len(_distinct(key_V[1:][key_V[1:] == key_V[:-1]] // max(n, 1)))


def _among(user_V: Ints, item_V: Ints, sorted_pairs: Ints, n: int) -> Bools:
    """(V,) whether (user, item) is one of the pairs; never for an unknown one."""
    key_V = np.where((user_V >= 0) & (item_V >= 0), _pairs(user_V, item_V, n), -1)
    if not len(sorted_pairs):
        return np.zeros(len(key_V), bool)
    place_V = np.searchsorted(sorted_pairs, key_V).clip(max=len(sorted_pairs) - 1)
    return np.asarray(sorted_pairs[place_V] == key_V)


def _pairs(owner_V: Ints, item_V: Any, n: int) -> Ints:
    return np.asarray(owner_V * n + item_V, np.int64)


def _distinct(value_V: Ints) -> Ints:
    """The values, sorted, each once; `np.unique` hashes whole numbers, ten times slower here."""
    value_V = np.sort(value_V)
    first_V = np.ones(len(value_V), bool)
    first_V[1:] = value_V[1:] != value_V[:-1]
    return np.asarray(value_V[first_V])


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _count(mask: npt.NDArray[Any]) -> int:
    return int(np.count_nonzero(mask))
