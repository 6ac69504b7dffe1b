"""The k best items for each of many users: exact, tile by tile, the same for any batch.

Dot products go to the compiled kernel where there is one (`kernel.py`). Otherwise candidates are
found in float32 and scored again in float64 (`torch_topk.py`). Either way a score is the rounded
float64 product, on any machine and for any batch. Other scorers are asked for tiles; one that is
too slow to score every item scores the best items of its proposer.

Users are scored in blocks of `USER_ROWS` and items in tiles of `ITEM_COLUMNS`, padded to exactly
that: a matrix product may add up in another order for another shape, and then results would change
with the batch size or the number of workers. Ties go to the lower row, which is the smaller id.
"""

from collections.abc import Iterator
from ctypes import CDLL
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.errors import VisrecError
from visrec.jagged import Jagged
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import DotScorer, ReRankScorer, Scorer
from visrec.retrieval.kernel import PackedItems, library, nearest
from visrec.retrieval.torch_topk import by_candidates, closed, leave_out, sorted_by_item

USER_ROWS = 128
ITEM_COLUMNS = 8192  # 4 MB of float32 scores a block: about a core's share of the last cache


@dataclass(frozen=True)
class TopKResult:
    """The best items of B users, best first.

    Args:
        row_BK: (B, K) catalogue rows, -1 where a user has fewer candidates.
        score_BK: (B, K) float32, -inf there.
    """

    row_BK: npt.NDArray[np.int64]
    score_BK: npt.NDArray[np.float32]


class Search(Protocol):
    """From profiles, user rows, excluded items and a number to the best items, as `TopK` does."""

    def __call__(
        self, profiles: Jagged, user_B: npt.NDArray[np.int64], excluded: Jagged, k: int
    ) -> TopKResult: ...


def empty(users: int, k: int, rows: type[np.signedinteger[Any]] = np.int64) -> TopKResult:
    """Lists without an entry, whose rows are of some type."""
    return TopKResult(np.full((users, k), -1, rows), np.full((users, k), -np.inf, np.float32))


def put(best: TopKResult, where_B: npt.NDArray[Any], lists: TopKResult) -> None:
    """Puts some users' lists in their places."""
    best.row_BK[where_B], best.score_BK[where_B] = lists.row_BK, lists.score_BK


def user_blocks(
    scorer: Scorer, profiles: Jagged, user_B: npt.NDArray[np.int64]
) -> Iterator[tuple[slice, object]]:
    """Slices of at most `USER_ROWS` users and the scorer's state for each, padded to that many."""
    for start in range(0, len(user_B), USER_ROWS):
        block = slice(start, min(start + USER_ROWS, len(user_B)))
        rows = np.full(USER_ROWS, -1, np.int64)
        rows[: block.stop - start] = user_B[block]
        padded = profiles.slice(block.start, block.stop).pad_to(USER_ROWS)
        bags = JaggedTensor.of(padded, scorer.device)
        yield block, scorer.prepare(bags, torch.from_numpy(rows).to(scorer.device))


@torch.inference_mode()
def user_vectors(scorer: DotScorer, profiles: Jagged, user_B: npt.NDArray[np.int64]) -> Tensor:
    """(B, d) the vectors of B users, each computed in a block of the same size."""
    blocks: Iterator[tuple[slice, Any]] = user_blocks(scorer, profiles, user_B)
    vectors = [state[: block.stop - block.start] for block, state in blocks]
    return torch.cat(vectors) if vectors else scorer.vectors_Nd[:0]


def kernel_for(scorer: DotScorer) -> CDLL | None:
    """The compiled kernel, if there is one and the vectors are such as it takes."""
    fits = scorer.device.type == "cpu" and scorer.vectors_Nd.dtype == torch.float32
    return library() if fits else None


def item_tiles(scorer: Scorer, state: object) -> Iterator[tuple[int, Tensor]]:
    """The first item of each tile and the tile's (USER_ROWS, T) scores.

    The last tile ends at the last item and so may overlap the one before; what overlaps is cut off.
    """
    count = scorer.num_items
    for start in range(0, count, ITEM_COLUMNS):
        stop = min(start + ITEM_COLUMNS, count)
        first = max(0, stop - ITEM_COLUMNS)
        yield start, scorer.tile(state, first, stop)[:, start - first :]


def top_k(
    scorer: Scorer,
    profiles: Jagged,
    user_B: npt.NDArray[np.int64],
    excluded: Jagged,
    available_N: npt.NDArray[np.bool_] | None,
    k: int,
) -> TopKResult:
    """The k best items of each of B users: one search, see `TopK`."""
    return TopK(scorer, available_N, k)(profiles, user_B, excluded)


class TopK:
    """Searches for the k best items of users, again and again among the same items.

    Args:
        scorer: the scores.
        available_N: which items are candidates at all; None for all.
        k: how many, where a search does not say.

    Raises:
        VisrecError: the items' vectors hold NaN or infinity.
    """

    def __init__(self, scorer: Scorer, available_N: npt.NDArray[np.bool_] | None, k: int) -> None:
        self._scorer, self._available_N, self._k = scorer, available_N, k
        self._packed: PackedItems | None = None
        self._proposed: TopK | None = None
        if isinstance(scorer, ReRankScorer):
            proposals = min(scorer.candidates, scorer.num_items)
            self._proposed = TopK(scorer.proposer, available_N, proposals)
        if isinstance(scorer, DotScorer):
            _require_numbers(scorer.vectors_Nd, "item")
            if kernel := kernel_for(scorer):
                self._packed = PackedItems(scorer.vectors_Nd.numpy(), available_N, kernel)

    @property
    def proposals(self) -> int:
        """How many items another scorer proposes, of which the lists are the best; 0 for all."""
        return self._proposed._k if self._proposed else 0

    @torch.inference_mode()
    def __call__(
        self,
        profiles: Jagged,
        user_B: npt.NDArray[np.int64],
        excluded: Jagged,
        k: int | None = None,
    ) -> TopKResult:
        """The k best items of each of B users.

        Args:
            profiles: B lists of catalogue rows.
            user_B: (B,) trained user rows, -1 for users that training has not seen.
            excluded: B lists of rows that are no candidates for that user.
            k: how many this time.

        Raises:
            VisrecError: a user's vector holds NaN or infinity, or the score of a listed item does,
                because float32 cannot hold it.
        """
        best = self._search(profiles, user_B, excluded, self._k if k is None else k)
        _require_finite_scores(best)
        return best

    def _search(
        self, profiles: Jagged, user_B: npt.NDArray[np.int64], excluded: Jagged, k: int
    ) -> TopKResult:
        if self._proposed:
            proposed = self._proposed(profiles, user_B, excluded, max(k, self._proposed._k))
            return self._reranked(proposed, profiles, user_B, k)
        if not isinstance(self._scorer, DotScorer):
            return self._by_tiles(profiles, user_B, excluded, k)
        user_Bd = user_vectors(self._scorer, profiles, user_B)
        _require_numbers(user_Bd, "user")
        if self._packed:
            threads = torch.get_num_threads()
            return TopKResult(*self._packed.top_k(user_Bd.numpy(), excluded, k, threads))
        vectors_Nd = self._scorer.vectors_Nd
        return TopKResult(*by_candidates(vectors_Nd, user_Bd, excluded, self._available_N, k))

    def _reranked(
        self, best: TopKResult, profiles: Jagged, user_B: npt.NDArray[np.int64], k: int
    ) -> TopKResult:
        """The k best of candidates by the scorer's own scores, ties to the lower row."""
        scorer, row_BC = cast(ReRankScorer, self._scorer), np.sort(best.row_BK, axis=1)
        lists = empty(len(user_B), k)
        rows, scores = lists.row_BK, lists.score_BK
        for block, state in user_blocks(scorer, profiles, user_B):
            candidate_BC = torch.from_numpy(row_BC[block])
            users_Bd = cast(Tensor, state)[: len(candidate_BC)]
            score_BC = scorer.pairs(users_Bd, candidate_BC.clamp(min=0).to(scorer.device)).cpu()
            _require_numbers(score_BC, "candidate")
            score_BC.masked_fill_(candidate_BC < 0, -torch.inf)
            score, place = _best(score_BC, k)
            found = candidate_BC.gather(1, place)
            rows[block, : found.shape[1]] = found.numpy()
            scores[block, : found.shape[1]] = score.numpy()
        return lists

    def _by_tiles(
        self, profiles: Jagged, user_B: npt.NDArray[np.int64], excluded: Jagged, k: int
    ) -> TopKResult:
        """The k best by the scorer's own tiles."""
        device = self._scorer.device
        lists = empty(len(user_B), k)
        rows, scores = lists.row_BK, lists.score_BK
        closed_N = closed(self._available_N, device)
        for block, state in user_blocks(self._scorer, profiles, user_B):
            size = block.stop - block.start
            left_out = sorted_by_item(excluded.slice(block.start, block.stop))
            best_row = torch.empty(size, 0, dtype=torch.int64, device=device)
            best_score = torch.empty(size, 0, device=device)
            for start, tile in item_tiles(self._scorer, state):
                score_BT = tile[:size]
                leave_out(score_BT, start, left_out, closed_N)
                score, place = _best(score_BT, k)
                best_row = torch.cat([best_row, place + start], dim=1)
                best_score, place = _best(torch.cat([best_score, score], dim=1), k)
                best_row = best_row.gather(1, place)
            found = best_row.shape[1]
            rows[block, :found] = best_row.masked_fill(best_score == -torch.inf, -1).cpu().numpy()
            scores[block, :found] = best_score.cpu().numpy()
        return lists


class MostPopular:
    """The best items of users whom the model cannot score: the same for all but what is excluded.

    Args:
        count_N: (N,) float32, the score of each item for everybody.
        available_N: which items are candidates at all.
    """

    def __init__(
        self, count_N: npt.NDArray[np.float32], available_N: npt.NDArray[np.bool_]
    ) -> None:
        row_M = np.flatnonzero(available_N).astype(np.int32)
        self._row_M = row_M[np.argsort(-count_N[row_M], kind="stable")]
        self._place_N = np.full(len(count_N), len(row_M), np.int32)
        self._place_N[self._row_M] = np.arange(len(row_M))
        self._count_N = count_N

    def __call__(
        self, profiles: Jagged, user_B: npt.NDArray[np.int64], excluded: Jagged, k: int
    ) -> TopKResult:
        """(B, k) the same first items for all; for who excludes some, those behind them instead."""
        del profiles
        lists = empty(len(user_B), k)
        first_K = self._row_M[:k]
        lists.row_BK[:, : len(first_K)] = first_K
        for b in np.flatnonzero(excluded.lengths).tolist():
            place_E = self._place_N[excluded[b]]
            open_M = np.ones(min(k + len(place_E), len(self._row_M)), bool)
            open_M[place_E[place_E < len(open_M)]] = False
            mine_K = self._row_M[: len(open_M)][open_M][:k]
            lists.row_BK[b] = -1
            lists.row_BK[b, : len(mine_K)] = mine_K
        found_BK = lists.row_BK >= 0
        lists.score_BK[found_BK] = self._count_N[lists.row_BK[found_BK]]
        return lists


def _require_numbers(vector_Xd: Tensor, whose: str) -> None:
    # Some rows at a time: the question takes more memory than the rows themselves.
    starts = range(0, len(vector_Xd), ITEM_COLUMNS)
    if not all(bool(vector_Xd[i : i + ITEM_COLUMNS].isfinite().all()) for i in starts):
        raise VisrecError(
            f"Found {whose} vectors that are no numbers (NaN or infinite); expected finite ones. "
            "The model has diverged, or the features are damaged: train again with a lower "
            "--train.learning_rate, or extract again."
        )


def _require_finite_scores(best: TopKResult) -> None:
    wrong_BK = (best.row_BK >= 0) & ~np.isfinite(best.score_BK)
    if wrong_BK.any():
        raise VisrecError(
            f"Found {np.count_nonzero(wrong_BK.any(axis=1))} of {len(wrong_BK)} lists with a score "
            f"that is NaN or beyond float32 ({np.finfo(np.float32).max:.3g}); expected finite "
            "scores. The model's vectors are too large: it has diverged, or the features are "
            "damaged. Train again with a lower --train.learning_rate, or extract again."
        )


def _best(score_BT: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their places, best first, ties to the lower place.

    `torch.topk` breaks ties as it likes. Within the k, sorting mends that; where the tie runs
    across the k-th place, that row is sorted whole.
    """
    wide = min(k + 1, score_BT.shape[1])
    score, place = score_BT.topk(wide, dim=1)
    k = min(k, score_BT.shape[1])
    if wide > k:
        for row in (score[:, k] == score[:, k - 1]).nonzero().flatten().tolist():
            order = score_BT[row].argsort(descending=True, stable=True)[:wide]
            score[row], place[row] = score_BT[row][order], order
    place, by_place = place[:, :k].sort(dim=1)
    score, by_score = score[:, :k].gather(1, by_place).sort(dim=1, descending=True, stable=True)
    return score, place.gather(1, by_score)


def unit_rows(vector_Xd: Tensor) -> Tensor:
    """(X, d) float32 rows of length 1, zeros where a row is zero, whatever its magnitude was.

    float32 would lose the squares of what is below 1e-19 or above 1e19, and
    `torch.nn.functional.normalize` also leaves shorter rows than 1e-12 as short as they are.
    """
    unit_Xd = torch.empty_like(vector_Xd, dtype=torch.float32)
    for start in range(0, len(vector_Xd), ITEM_COLUMNS):
        part = vector_Xd[start : start + ITEM_COLUMNS]
        wide = part.double()
        length_B1 = wide.norm(dim=1, keepdim=True).clamp(min=1e-300)
        unit_Xd[start : start + ITEM_COLUMNS] = wide / length_B1
    return unit_Xd


@torch.inference_mode()
def nearest_of_profile(
    space_Nd: Tensor, profiles: Jagged, row_BK: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """(B, K) the profile item nearest, by cosine, to each recommended item; -1 where there is none.

    Ties go to the item that comes first in the profile.
    """
    if (kernel := library()) and space_Nd.device.type == "cpu" and space_Nd.dtype == torch.float32:
        return nearest(space_Nd.numpy(), profiles, row_BK, torch.get_num_threads(), kernel)
    found_BK = np.full(row_BK.shape, -1, np.int64)
    for b, row_K in enumerate(row_BK):
        row_K, profile = row_K[row_K >= 0], profiles[b]
        if len(row_K) and len(profile):
            profile_Pd, item_Kd = (
                unit_rows(space_Nd[np.asarray(r, np.int64)]) for r in (profile, row_K)
            )
            nearest_K = profile[(item_Kd @ profile_Pd.T).argmax(dim=1).cpu().numpy()]
            found_BK[b, : len(row_K)] = nearest_K
    return found_BK
