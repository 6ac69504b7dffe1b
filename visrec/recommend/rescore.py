"""Some of a run's queries scored anew, to compare the written lists with what the model says.

Nothing of the search is used: no kernel, no candidates, no carried list. The model's own network is
read from its directory once more and computes in float64; every item is scored, and the rules are
looked at one entry at a time. A list is the model's if

- each entry has the score of its item, to `TOLERANCE` of the query's largest score;
- no item that may be listed scores better than the last entry by more than that, unless a rule
  keeps it out because of entries that are at least as good;
- each reason is the profile item nearest to its entry, to `TOLERANCE` of the cosine, and there is
  one wherever the model has a space in which items are near one another.

Fallback lists are compared exactly: the most popular items, ties by item id.

Items come from the vectors that scoring shares between workers (`Arrays`), in tiles; a query takes
one number an item. With a share p of lists that are wrong, all of n sampled ones are right with
probability (1 - p)^n: 1.4e-6 for a tenth of the lists and n = 128.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from visrec.ids import rows_of
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays
from visrec.models.artifact import load_artifact
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import ReRankScorer, Scorer
from visrec.publication.verify import Lists
from visrec.recommend.inputs import ScoringData
from visrec.retrieval.rules import Rules
from visrec.retrieval.similar import Kind, neighbours
from visrec.storage.store import Store

SAMPLE = (
    128  # lists of a run that are scored anew, and as many fallback lists; one a shard at least
)
# Of float32 encoders with sums of some thousand products the worst seen is 4e-7.
TOLERANCE = 1e-5
_TILE = 8192  # items scored at once
_PROFILE_PRODUCTS = 1 << 22  # of a tile with all profile items: 32 MB
_SCORES = 1 << 25  # scores held at once: 256 MB
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Written:
    """One owner's list as it was written.

    Args:
        owner: the owner's place among all of the run.
        row_K: catalogue rows, -1 for an unknown id.
        score_K: their scores.
        because_K: rows of the reasons, -1 for none; None where the table has none.
    """

    owner: int
    row_K: Ints
    score_K: Floats
    because_K: Ints | None


def sample(data: ScoringData, shard: int, seed: int) -> tuple[Ints, Ints]:
    """Places of some owners of a shard: with lists of the model's own, and with fallback lists.

    The same for the same run, so that a second start judges the same lists.
    """
    shards = len(data.shard_offsets) - 1
    first, last = map(int, data.shard_offsets[shard : shard + 2])
    place_B = first + np.random.default_rng([seed, shard]).permutation(last - first)
    cold_B, count = data.cold_U[place_B], math.ceil(SAMPLE / shards)
    return place_B[~cold_B][:count], place_B[cold_B][:count]


def lists_of(lists: Lists, owners: Ints, data: ScoringData) -> Iterator[Written]:
    """The lists of some owners, without entries for who has none."""
    list_B = rows_of(data.query_ids.take(pa.array(owners)), lists.query_ids)
    for owner, at in zip(owners.tolist(), list_B.tolist(), strict=True):
        entries = slice(lists.offsets[at], lists.offsets[at + 1]) if at >= 0 else slice(0, 0)
        because_K = None
        if lists.because_V is not None:
            because_K = rows_of(lists.because_V[entries], data.item_ids)
        yield Written(
            owner,
            rows_of(lists.item_ids[entries], data.item_ids),
            lists.score_V[entries].astype(np.float64),
            because_K,
        )


class Rescorer:
    """Collects a sample of the lists that a task reads, and compares it with the model.

    Args:
        data: what scoring was given.
        arrays: the items' vectors and whatever else the model's scorer takes.
        model: the model's directory.
        kind: whose lists they are.
        k: entries of a list.
        seed: of the sample.
    """

    def __init__(
        self, data: ScoringData, arrays: Arrays, model: Store, kind: Kind, k: int, seed: int
    ) -> None:
        self._data, self._arrays, self._model = data, arrays, model
        self._kind, self._k, self._seed = kind, k, seed
        self._own: list[Written] = []
        self._fallback: list[Written] = []

    def take(self, shard: int, lists: Lists) -> None:
        """Keeps a sample of a shard's lists."""
        own, cold = sample(self._data, shard, self._seed)
        self._own += lists_of(lists, own, self._data)
        self._fallback += lists_of(lists, cold, self._data)

    def facts(self) -> dict[str, Any]:
        """How many lists were scored anew, and how many of them are not what they should be."""
        wrong_lists, wrong_reasons = self._wrong_lists()
        return {
            "rescored": len(self._own),
            "not_the_models": wrong_lists,
            "other_reasons": wrong_reasons,
            "rescored_fallbacks": len(self._fallback),
            "not_popular": self._wrong_fallbacks(),
        }

    def _wrong_lists(self) -> tuple[int, int]:
        if not self._own:
            return 0, 0
        scores = ModelScores(self._model, self._arrays, self._kind)
        wrong_lists = wrong_reasons = 0
        step = max(1, _SCORES // len(self._data.item_ids))
        for start in range(0, len(self._own), step):
            some = self._own[start : start + step]
            owners = np.array([each.owner for each in some])
            profiles = self._data.profiles.take(owners)
            seen = profiles.keep(~self._data.unseen_N[profiles.values])
            trained_B = self._data.trained_U[owners]
            score_BN = scores.of_all(seen, trained_B)
            for b, each in enumerate(some):
                score_N, pool_N = score_BN[b], self._open(each.owner)
                if scores.candidates:
                    score_N, pool_N = self._reranked(
                        scores, each, score_N, pool_N, seen[b], trained_B[b]
                    )
                wrong_lists += not is_best(each, score_N, pool_N, self._data.rules, self._k)
                wrong_reasons += self._wrong_reasons(scores, each, seen[b])
        return wrong_lists, wrong_reasons

    def _open(self, owner: int) -> Bools:
        """(N,) which items may be in an owner's list."""
        open_N = self._data.available_N.copy()
        open_N[self._data.profiles[owner]] = False
        open_N[self._data.blocked[owner]] = False
        return open_N

    def _reranked(
        self,
        scores: "ModelScores",
        each: Written,
        proposed_N: Floats,
        open_N: Bools,
        profile: Ints,
        trained: int,
    ) -> tuple[Floats, Bools]:
        """The scores of what a proposer proposes, NaN for the rest, and what it surely proposes.

        By rules it may be asked for more, so only what it proposes at first is sure.
        """
        rules = self._data.rules
        most = max(self._k if rules is None else 2 * self._k, scores.candidates)
        sure_N = maybe_N = open_N
        if open_N.sum() > most:
            worst = np.sort(proposed_N[open_N])[-most]
            room = TOLERANCE * np.abs(proposed_N[open_N]).max()
            sure_N = open_N & (proposed_N > worst + room)
            maybe_N = open_N & (proposed_N >= worst - room) if rules is None else open_N
        listed_N = np.zeros_like(open_N)
        listed_N[each.row_K[each.row_K >= 0]] = True
        score_N = np.full(len(open_N), np.nan)
        rows = np.flatnonzero(sure_N | (listed_N & maybe_N))
        score_N[rows] = scores.of_some(profile, trained, rows)
        return score_N, sure_N

    def _wrong_reasons(self, scores: "ModelScores", each: Written, profile: Ints) -> bool:
        """Whether a reason is missing, or is not the profile item nearest to its entry."""
        if each.because_K is None:
            return False
        known_K = each.row_K >= 0
        row_K, because_K = each.row_K[known_K], each.because_K[known_K]
        space = scores.space(np.concatenate([row_K, profile]))
        if space is None:
            return bool((because_K >= 0).any())
        cosine_KP = space[: len(row_K)] @ space[len(row_K) :].T
        told_KP = because_K[:, None] == profile
        best_K, told_K = cosine_KP.max(axis=1), np.where(told_KP, cosine_KP, -np.inf).max(axis=1)
        return not bool((told_K >= best_K - TOLERANCE).all())

    def _wrong_fallbacks(self) -> int:
        if not self._fallback:
            return 0
        data = self._data
        # Counted from the profiles, and not what the search was given.
        count_N = np.bincount(data.profiles.values, minlength=len(data.item_ids))
        order = np.argsort(-count_N, kind="stable")
        order = order[data.available_N[order]]
        wrong = 0
        for each in self._fallback:
            closed = {*data.profiles[each.owner].tolist(), *data.blocked[each.owner].tolist()}
            row_K = np.array(in_turn(order, closed, data.rules, self._k), np.int64)
            same = np.array_equal(row_K, each.row_K)
            same = same and np.array_equal(count_N[row_K], each.score_K)
            wrong += not (same and (each.because_K is None or (each.because_K < 0).all()))
        return wrong


def is_best(written: Written, score_N: Floats, pool_N: Bools, rules: Rules | None, k: int) -> bool:
    """Whether a list is the best of a pool by these scores, to `TOLERANCE`.

    Args:
        written: the list.
        score_N: (N,) the items' scores.
        pool_N: (N,) the items that may be listed and have a score.
        rules: between the entries, or None.
        k: entries of a list, where there are so many.
    """
    row_K, score_K = written.row_K, written.score_K
    if (row_K < 0).any():
        return False
    known = np.abs(score_N[pool_N])
    room = TOLERANCE * max(float(known.max(initial=0.0)), np.abs(score_N[row_K]).max(initial=0.0))
    if not (np.abs(score_N[row_K] - score_K) <= room).all():
        return False
    last = score_K.min() if len(row_K) == k else -np.inf
    better_N = pool_N & ~(score_N <= last + room)
    better_N[row_K] = False
    if rules is not None and better_N.any():
        better_N &= ~(_closed_from(row_K, score_K, rules, len(score_N)) >= score_N - room)
    return not better_N.any()


def _closed_from(row_K: Ints, score_K: Floats, rules: Rules, n: int) -> Floats:
    """(N,) the score up to which the entries of a list keep each item out of it."""
    closed_N = np.full(n, -np.inf)
    for limit, group_N in _limits(rules):
        of_group: dict[int, list[float]] = {}
        for row, score in zip(row_K.tolist(), score_K.tolist(), strict=True):
            of_group.setdefault(int(group_N[row]), []).append(score)
        closed_G = np.full(int(group_N.max(initial=-1)) + 2, -np.inf)  # the last for -1, no group
        for group, scores in of_group.items():
            if group >= 0 and len(scores) >= limit:
                closed_G[group] = sorted(scores)[-limit]
        closed_N = np.maximum(closed_N, closed_G[group_N])
    return closed_N


def _limits(rules: Rules) -> list[tuple[int, Ints]]:
    """The most entries of a group, and the items' groups, of each rule."""
    both = ((rules.cap, rules.group_N), (1, rules.near_duplicate_N))
    return [(limit, group_N) for limit, group_N in both if group_N is not None]


def in_turn(order: Ints, closed: set[int], rules: Rules | None, k: int) -> list[int]:
    """The first k items of an order that are open and that no rule keeps from those before."""
    listed: list[int] = []
    for row in order.tolist():
        if len(listed) == k:
            break
        if row not in closed and (rules is None or _may_follow(row, listed, rules)):
            listed.append(row)
    return listed


def _may_follow(row: int, listed: list[int], rules: Rules) -> bool:
    for limit, group_N in _limits(rules):
        if group_N[row] >= 0 and sum(group_N[o] == group_N[row] for o in listed) >= limit:
            return False
    return True


class ModelScores:
    """Scores of a model in float64, of all items, a tile of them at a time.

    Args:
        model: its directory.
        arrays: what its scorer takes of the items.
        kind: whose lists are made.
    """

    def __init__(self, model: Store, arrays: Arrays, kind: Kind) -> None:
        module: Any = load_artifact(model).model
        self._module, self._arrays, self._kind = module.double(), arrays, kind
        self._items = len(next(iter(arrays.values())))
        scorer = self._scorer(np.zeros(0, np.int64))
        self.candidates = scorer.candidates if isinstance(scorer, ReRankScorer) else 0

    def _scorer(self, rows: Ints) -> Scorer:
        """A scorer of some items alone, in float64."""
        some = {}
        for name, array in self._arrays.items():
            floating = np.issubdtype(array.dtype, np.floating)
            some[name] = array[rows].astype(np.float64 if floating else array.dtype)
        if self._kind == "item_to_item":
            return neighbours(some, use_gpu=False)
        scorer: Scorer = self._module.scorer(some)
        return scorer

    @torch.inference_mode()
    def of_all(self, profiles: Jagged, user_B: Ints) -> Floats:
        """(B, N) scores; of a model that re-ranks, those of its proposer.

        Args:
            profiles: B lists of catalogue rows.
            user_B: (B,) trained user rows, -1 for unseen users.
        """
        mine = np.unique(profiles.values)
        bags = JaggedTensor.of(Jagged(np.searchsorted(mine, profiles.values), profiles.offsets))
        users, parts = torch.from_numpy(user_B), []
        step = int(np.clip(_PROFILE_PRODUCTS // max(len(profiles.values), 1), 256, _TILE))
        for start in range(0, self._items, step):
            tile = np.arange(start, min(start + step, self._items))
            scorer = self._scorer(np.concatenate([mine, tile]))
            if isinstance(scorer, ReRankScorer):
                scorer = scorer.proposer
            state = scorer.prepare(bags, users)
            parts.append(scorer.tile(state, len(mine), len(mine) + len(tile)))
        return torch.cat(parts, dim=1).double().numpy()

    @torch.inference_mode()
    def of_some(self, profile: Ints, user: int, rows: Ints) -> Floats:
        """(C,) one user's scores of some items, by the scorer's own pairs."""
        scorer = self._scorer(np.concatenate([profile, rows]))
        one = Jagged(np.arange(len(profile)), np.array([0, len(profile)]))
        state = scorer.prepare(JaggedTensor.of(one), torch.tensor([user]))
        return scorer.tile(state, len(profile), len(profile) + len(rows))[0].double().numpy()

    def space(self, rows: Ints) -> Floats | None:
        """(R, d) unit vectors of some items, near where the items are alike; None without any."""
        space_Rd = self._scorer(rows).space_Nd
        if space_Rd is None:
            return None
        wide_Rd = space_Rd.detach().double()  # in which no length of float32 vectors vanishes
        length_R1 = torch.linalg.vector_norm(wide_Rd, dim=1, keepdim=True)
        unit_Rd: torch.Tensor = wide_Rd / length_R1.clamp(min=1e-300)
        return unit_Rd.numpy()
