"""Rules of what a list may hold, kept inside the exact search and not cut out of its result.

Some close an item for everybody or for one user: those are no candidates at all. The others hold
between the entries of a list: items go into it from the best score down, ties by row, and one that
would break a rule with those that are in already is passed over. The list is what that leaves,
however far down it must look.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from visrec.errors import InputError
from visrec.ragged import Ragged
from visrec.scoring.similar import neighbours
from visrec.scoring.topk import Best, TopK, empty, put

_MORE = 4  # how many times more candidates are looked at where a list did not get full
_ENTRIES = 2**21  # candidates that are looked at together; some 16 bytes each, several times over
_ALIKE = 16  # pictures looked at first for those that look the same as one
_QUERIES = 4096  # pictures whose look-alikes are looked for at once
_ROUNDING = 1e-6  # by which a float32 vector of length 1 is none


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
        near_duplicate: cosine of two pictures' features from which they are taken for the same:
            only the better one is listed. Of re-encoded and rescaled copies it is above 0.95.
    """

    min_stock: float | None = None
    blocked: str | None = None
    cap: int | None = None
    cap_by: str = "artist_id"
    near_duplicate: float | None = None

    def __post_init__(self) -> None:
        if self.cap is not None and self.cap < 1:
            raise InputError(f"Found --rules.cap {self.cap}; expected at least 1.")
        if self.near_duplicate is not None and not 0 < self.near_duplicate <= 1:
            raise InputError(
                f"Found --rules.near_duplicate {self.near_duplicate}; expected a cosine above 0 "
                "and at most 1, such as 0.97."
            )


@dataclass(frozen=True)
class Rules:
    """The rules between the entries of a list.

    Args:
        cap: most entries of one group.
        group_N: (N,) each item's group, -1 for none; None where groups do not count.
        alike: N lists of the rows that look the same, each pair both ways; None where that does
            not count.
    """

    cap: int
    group_N: npt.NDArray[np.int64] | None
    alike: Ragged | None

    def most(self, available_N: npt.NDArray[np.bool_]) -> int:
        """Entries that no list can have more of."""
        if self.group_N is None:
            return int(available_N.sum())
        group_V = self.group_N[available_N]
        sizes = np.bincount(group_V[group_V >= 0])
        return int(np.minimum(sizes, self.cap).sum() + np.count_nonzero(group_V < 0))

    def keep(self, row_BM: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.bool_]:
        """(B, M) which of the candidates go into the lists, at most k of each.

        Args:
            row_BM: rows, best first, -1 behind the last.
            k: entries of a list.
        """
        open_BM = self._under_cap(row_BM)
        if self.alike is not None:
            user_P, place_P, later_P = self._pairs(self.alike, row_BM)
            some_b, at_P = np.unique(user_P, return_inverse=True)  # of few users any two are alike
            open_BM[some_b] = self._one_by_one(row_BM[some_b], k, at_P, place_P, later_P)
        return np.asarray(open_BM & (np.cumsum(open_BM, axis=1) <= k))

    def closed(self, row_K: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.bool_]:
        """(N,) which items cannot be added to a list of these rows; those rows are among them.

        Args:
            row_K: the list.
            n: N, items of the catalogue.
        """
        closed_N = np.zeros(n, bool)
        closed_N[row_K] = True
        if self.group_N is not None:
            group_K = self.group_N[row_K]
            groups, counts = np.unique(group_K[group_K >= 0], return_counts=True)
            closed_N |= np.isin(self.group_N, groups[counts >= self.cap])
        if self.alike is not None:
            closed_N[self.alike.take(row_K).values] = True
        return closed_N

    def _groups(self, row_BM: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(B, M) the candidates' groups; of those without one, each is one of its own."""
        assert self.group_N is not None
        group_BM = np.where(row_BM < 0, -1, self.group_N[row_BM])
        return np.where(group_BM < 0, -2 - np.arange(row_BM.shape[1]), group_BM)

    def _under_cap(self, row_BM: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(B, M) which candidates are among the first `cap` of their group."""
        if self.group_N is None:
            return row_BM >= 0
        group_BM, place_M = self._groups(row_BM), np.arange(row_BM.shape[1])
        order = np.argsort(group_BM, axis=1, kind="stable")
        sorted_BM = np.take_along_axis(group_BM, order, axis=1)
        begins_BM = np.ones(row_BM.shape, bool)
        begins_BM[:, 1:] = sorted_BM[:, 1:] != sorted_BM[:, :-1]
        first_BM = np.maximum.accumulate(np.where(begins_BM, place_M, 0), axis=1)
        open_BM = np.empty(row_BM.shape, bool)
        np.put_along_axis(open_BM, order, place_M - first_BM < self.cap, axis=1)
        return open_BM & (row_BM >= 0)

    def _one_by_one(
        self,
        row_BM: npt.NDArray[np.int64],
        k: int,
        user_P: npt.NDArray[np.int64],
        place_P: npt.NDArray[np.int64],
        later_P: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """(B, M) which candidates the rules leave, decided place by place, the best first.

        Args:
            row_BM: rows, best first, -1 behind the last.
            k: entries of a list: behind them nothing need be decided.
            user_P: of every two that look the same, by place.
            place_P: of the better one.
            later_P: of the other.
        """
        open_BM, width = row_BM >= 0, row_BM.shape[1]
        size_B = np.zeros(len(row_BM), np.int64)
        first_P = np.searchsorted(place_P, np.arange(width + 1))
        if self.group_N is not None:
            group_BM, same_BM = self._groups(row_BM), np.zeros(row_BM.shape, np.int32)
        for place in range(width):
            taken_B = open_BM[:, place]
            size_B += taken_B
            if size_B.min(initial=k) == k:
                break
            if self.group_N is not None:
                rest = slice(place + 1, width)
                alike_BM = (group_BM[:, rest] == group_BM[:, place, None]) & taken_B[:, None]
                same_BM[:, rest] += alike_BM
                open_BM[:, rest] &= same_BM[:, rest] < self.cap
            pairs = slice(first_P[place], first_P[place + 1])
            hit = taken_B[user_P[pairs]]
            open_BM[user_P[pairs][hit], later_P[pairs][hit]] = False
        return open_BM

    @staticmethod
    def _pairs(
        alike: Ragged, row_BM: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """User, place and later place of every two candidates that look the same, by place."""
        user_V, place_V = np.nonzero(row_BM >= 0)
        row_V, n = row_BM[user_V, place_V], len(alike)
        order = np.argsort(user_V * n + row_V)
        key_V = (user_V * n + row_V)[order]
        others = alike.take(row_V)
        wanted_P = user_V[others.owners] * n + others.values
        at_P = np.searchsorted(key_V, wanted_P).clip(max=max(len(key_V) - 1, 0))
        there_P = key_V[at_P] == wanted_P if len(key_V) else np.zeros(0, bool)
        later_P, place_P = place_V[order[at_P]], place_V[others.owners]
        chosen = np.flatnonzero(there_P & (later_P > place_P))
        chosen = chosen[np.argsort(place_P[chosen], kind="stable")]
        return user_V[others.owners][chosen], place_P[chosen], later_P[chosen]


class RuledTopK:
    """The k best items of users that keep to the rules.

    Args:
        search: among the candidates.
        rules: between the entries of a list; None for none.
        available_N: (N,) the candidates.
        k: entries a list.
    """

    def __init__(
        self, search: TopK, rules: Rules | None, available_N: npt.NDArray[np.bool_], k: int
    ) -> None:
        self._search, self._rules, self._k = search, rules, k
        self._full = min(k, rules.most(available_N)) if rules else k

    def __call__(self, profiles: Ragged, user_B: npt.NDArray[np.int64], excluded: Ragged) -> Best:
        """As `TopK`: more candidates are looked for until each list is full or none is left."""
        k, rules = self._k, self._rules
        if rules is None:
            return self._search(profiles, user_B, excluded, k)
        found = empty(len(user_B), k)
        open_b, width = np.arange(len(user_B)), 2 * k
        while len(open_b):
            short = [np.zeros(0, np.int64)]
            step = max(_ENTRIES // width, 1)
            for some_b in (open_b[start : start + step] for start in range(0, len(open_b), step)):
                some = self._search(
                    profiles.take(some_b), user_B[some_b], excluded.take(some_b), width
                )
                kept = apply(rules, some, k)
                put(found, some_b, kept)
                is_short_b = (kept.row_BK >= 0).sum(axis=1) < self._full
                short.append(some_b[is_short_b & (some.row_BK[:, -1] >= 0)])
            open_b, width = np.concatenate(short), _MORE * width
        return found


def apply(rules: Rules, candidates: Best, k: int) -> Best:
    """The lists that the rules leave of candidates, best first."""
    kept_BM = rules.keep(candidates.row_BK, k)
    user_V, from_V = np.nonzero(kept_BM)
    to_V = (np.cumsum(kept_BM, axis=1) - 1)[user_V, from_V]
    lists = empty(len(kept_BM), k)
    lists.row_BK[user_V, to_V] = candidates.row_BK[user_V, from_V]
    lists.score_BK[user_V, to_V] = candidates.score_BK[user_V, from_V]
    return lists


def look_alikes(
    feature_ND: npt.NDArray[np.generic], available_N: npt.NDArray[np.bool_], likeness: float
) -> Ragged:
    """N lists of the available items whose picture looks the same, without the item itself.

    Args:
        feature_ND: the pictures' features.
        available_N: items that can be in a list at all; the others' lists are empty.
        likeness: cosine from which two are the same.
    """
    unit_Nd = torch.nn.functional.normalize(torch.from_numpy(np.array(feature_ND, np.float32)))
    search = TopK(neighbours({"unit": unit_Nd.numpy()}, use_gpu=False), available_N, _ALIKE)
    owners, others = [], []
    available = np.flatnonzero(available_N)
    for start in range(0, len(available), _QUERIES):
        open_b, width = available[start : start + _QUERIES], _ALIKE
        while len(open_b):
            itself = Ragged(open_b, np.arange(len(open_b) + 1))
            best = search(itself, np.full(len(open_b), -1), itself, width)
            same_BK = (best.row_BK >= 0) & (best.score_BK >= likeness - _ROUNDING)
            more_b = same_BK[:, -1]  # perhaps there are others below the last
            done_b, place_V = np.nonzero(same_BK & ~more_b[:, None])
            owners.append(open_b[done_b])
            others.append(best.row_BK[done_b, place_V])
            open_b, width = open_b[more_b], _MORE * width
    owner_P, other_P = (
        np.concatenate([*parts, np.zeros(0, np.int64)]) for parts in (owners, others)
    )
    order = np.lexsort((other_P, owner_P))
    return Ragged.group(owner_P[order], other_P[order], len(feature_ND))
