"""Finds the exact k best items of many users, tile by tile; a user's list is the same in any batch.

Dot products are searched by the compiled kernel (`kernel.py`) if `kernel_for` finds it. If not,
torch finds a shortlist in float32 and scores it again in float64 (`torch_topk.py`). Both give the
float64 product rounded to float32, on any machine and for any batch. Other scorers are searched
tile by tile, and re-rankers score the items that their proposer finds.

Users are scored in blocks of `USER_ROWS` and items in tiles of `ITEM_COLUMNS`, padded to exactly
these sizes. A matrix product of another shape may sum in another order, so without this, scores
would depend on the batch size and the number of workers. Ties go to the lower row, which has the
smaller item id.

Shapes: B users, K list length, N items of the catalogue, T items of a tile, C items proposed to
each user, d width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.errors import VisrecError
from visrec.jagged import Jagged
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import ByKind, DotScorer, ReRankScorer, Scorer, TiledScorer
from visrec.retrieval.kernel import PackedItems, kernel_for
from visrec.retrieval.torch_topk import (
    mask_excluded,
    sort_by_item,
    torch_top_k,
    unavailable_mask,
)

USER_ROWS = 128
# A block of users and a tile have 4 MB of float32 scores, about one core's share of the cache.
ITEM_COLUMNS = 8192
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TopKResult:
    """Lists of B users, best item first.

    Attributes:
        row_BK: (B, K) catalogue rows, -1 after the end of a shorter list.
        score_BK: (B, K) float32 scores, -inf after the end of a shorter list.
    """

    row_BK: Ints
    score_BK: npt.NDArray[np.float32]

    @staticmethod
    def empty(users: int, k: int, rows: type[np.signedinteger[Any]] = np.int64) -> "TopKResult":
        """Lists without entries; `rows` is the integer type of their rows."""
        return TopKResult(np.full((users, k), -1, rows), np.full((users, k), -np.inf, np.float32))

    @staticmethod
    def concatenate(parts: "Sequence[TopKResult]") -> "TopKResult":
        """The lists of all parts, one part after another."""
        return TopKResult(
            np.concatenate([part.row_BK for part in parts]),
            np.concatenate([part.score_BK for part in parts]),
        )

    def assign(self, where_B: Ints | Bools, lists: "TopKResult") -> None:
        """Overwrites some users' lists."""
        self.row_BK[where_B], self.score_BK[where_B] = lists.row_BK, lists.score_BK


class Search(Protocol):
    """Finds the k best items of B users, as `TopK` does."""

    @property
    def num_proposals(self) -> int:
        """The least number of items that a re-ranker scores; 0 if every item is scored."""

    def __call__(self, profiles: Jagged, user_B: Ints, excluded: Jagged, k: int) -> TopKResult: ...


def user_blocks(
    scorer: Scorer, profiles: Jagged, user_B: Ints
) -> Iterator[tuple[slice, Any]]:  # Any: each scorer has its own type of state
    """Slices of at most `USER_ROWS` users, and the scorer's state of each, which has `USER_ROWS`
    rows."""
    for start in range(0, len(user_B), USER_ROWS):
        block = slice(start, min(start + USER_ROWS, len(user_B)))
        rows = np.full(USER_ROWS, -1, np.int64)
        rows[: block.stop - start] = user_B[block]
        padded = profiles.slice(block.start, block.stop).pad_rows(USER_ROWS)
        lists = JaggedTensor.from_jagged(padded, scorer.device)
        yield block, scorer.prepare(lists, torch.from_numpy(rows).to(scorer.device))


@torch.inference_mode()
def user_vectors(scorer: DotScorer, profiles: Jagged, user_B: Ints) -> Tensor:
    """(B, d) the vectors of B users, each computed in a block of the same size."""
    blocks = user_blocks(scorer, profiles, user_B)
    vectors = [state[: block.stop - block.start] for block, state in blocks]
    return torch.cat(vectors) if vectors else scorer.vectors_Nd[:0]


def item_tiles(scorer: Scorer, state: object) -> Iterator[tuple[int, Tensor]]:
    """The first item of each tile and the tile's (USER_ROWS, T) scores.

    The last tile is as wide as the others and ends with the last item. Its first columns may belong
    to the tile before it; these are cut off.
    """
    count = scorer.num_items
    for start in range(0, count, ITEM_COLUMNS):
        stop = min(start + ITEM_COLUMNS, count)
        first = max(0, stop - ITEM_COLUMNS)
        yield start, scorer.tile(state, first, stop)[:, start - first :]


def top_k(
    scorer: Scorer,
    profiles: Jagged,
    user_B: Ints,
    excluded: Jagged,
    available_N: Bools | None,
    k: int,
) -> TopKResult:
    """The k best items of each of B users, by a `TopK` that is used once."""
    return TopK(scorer, available_N, k)(profiles, user_B, excluded)


class TopK:
    """Searches for the k best items of users, any number of times among the same items.

    Args:
        scorer: computes the scores.
        available_N: (N,) which items may be listed; None for all.
        k: the default length of a list.

    Raises:
        VisrecError: the items' vectors contain NaN or infinity.
    """

    def __init__(self, scorer: Scorer, available_N: Bools | None, k: int) -> None:
        self._k = k
        self._search: Search = scorer.dispatch(
            ByKind[Search](
                dot=lambda dot: _DotSearch(dot, available_N),
                tiled=lambda tiled: _TileSearch(tiled, available_N),
                rerank=lambda rerank: _ReRankSearch(rerank, available_N),
            )
        )

    @property
    def num_proposals(self) -> int:
        return self._search.num_proposals

    @torch.inference_mode()
    def __call__(
        self, profiles: Jagged, user_B: Ints, excluded: Jagged, k: int | None = None
    ) -> TopKResult:
        """The k best items of each of B users.

        Args:
            profiles: B lists of catalogue rows.
            user_B: (B,) rows of the training's users, -1 for users that training has not seen.
            excluded: B lists of rows that may not be in that user's list.
            k: the length of a list, if not the default.

        Raises:
            VisrecError: a user's vector contains NaN or infinity, or the score of a listed item
                does not fit into float32.
        """
        lists = self._search(profiles, user_B, excluded, self._k if k is None else k)
        _require_finite_scores(lists)
        return lists


class _DotSearch:
    """The items with the largest dot products."""

    num_proposals = 0

    def __init__(self, scorer: DotScorer, available_N: Bools | None) -> None:
        _require_finite(scorer.vectors_Nd, "item vectors")
        self._scorer, self._available_N = scorer, available_N
        self._packed: PackedItems | None = None
        if kernel := kernel_for(scorer.vectors_Nd):
            self._packed = PackedItems(scorer.vectors_Nd.numpy(), available_N, kernel)

    def __call__(self, profiles: Jagged, user_B: Ints, excluded: Jagged, k: int) -> TopKResult:
        user_Bd = user_vectors(self._scorer, profiles, user_B)
        _require_finite(user_Bd, "user vectors")
        if self._packed:
            return TopKResult(*self._packed.top_k(user_Bd.numpy(), excluded, k))
        vectors_Nd = self._scorer.vectors_Nd
        return TopKResult(*torch_top_k(vectors_Nd, user_Bd, excluded, self._available_N, k))


class _TileSearch:
    """The items with the largest scores, tile by tile."""

    num_proposals = 0

    def __init__(self, scorer: TiledScorer, available_N: Bools | None) -> None:
        self._scorer = scorer
        self._unavailable_N = unavailable_mask(available_N, scorer.device)

    def __call__(self, profiles: Jagged, user_B: Ints, excluded: Jagged, k: int) -> TopKResult:
        lists = TopKResult.empty(len(user_B), k)
        for block, state in user_blocks(self._scorer, profiles, user_B):
            best_row, best_score = self._search_block(state, excluded, block, k)
            found = best_row.shape[1]
            best_row = best_row.masked_fill(best_score == -torch.inf, -1)
            lists.row_BK[block, :found] = best_row.cpu().numpy()
            lists.score_BK[block, :found] = best_score.cpu().numpy()
        return lists

    def _search_block(
        self, state: object, excluded: Jagged, block: slice, k: int
    ) -> tuple[Tensor, Tensor]:
        """The rows and the scores of one block's k best items, or of all if there are fewer."""
        device, size = self._scorer.device, block.stop - block.start
        excluded_items = sort_by_item(excluded.slice(block.start, block.stop))
        best_row = torch.empty(size, 0, dtype=torch.int64, device=device)
        best_score = torch.empty(size, 0, device=device)
        for start, tile in item_tiles(self._scorer, state):
            score_BT = tile[:size]
            mask_excluded(score_BT, start, excluded_items, self._unavailable_N)
            score, column = _largest(score_BT, k)
            best_row = torch.cat([best_row, column + start], dim=1)
            best_score, column = _largest(torch.cat([best_score, score], dim=1), k)
            best_row = best_row.gather(1, column)
        return best_row, best_score


class _ReRankSearch:
    """The items with the largest scores among those that a proposer finds."""

    def __init__(self, scorer: ReRankScorer, available_N: Bools | None) -> None:
        self._scorer = scorer
        self.num_proposals = min(scorer.num_proposals, scorer.num_items)
        self._propose = TopK(scorer.proposer, available_N, self.num_proposals)

    def __call__(self, profiles: Jagged, user_B: Ints, excluded: Jagged, k: int) -> TopKResult:
        proposed = self._propose(profiles, user_B, excluded, max(k, self.num_proposals))
        return self._rerank(proposed, profiles, user_B, k)

    def _rerank(self, proposed: TopKResult, profiles: Jagged, user_B: Ints, k: int) -> TopKResult:
        """The k best of the proposed items by the scorer's own scores, ties to the lower row."""
        lists = TopKResult.empty(len(user_B), k)
        sorted_BC = np.sort(proposed.row_BK, axis=1)
        for block, state in user_blocks(self._scorer, profiles, user_B):
            row_BC = torch.from_numpy(sorted_BC[block])
            device_row_BC = row_BC.clamp(min=0).to(self._scorer.device)
            score_BC = self._scorer.score_pairs(state[: len(row_BC)], device_row_BC).cpu()
            _require_finite(score_BC, "scores of proposed items")
            score_BC.masked_fill_(row_BC < 0, -torch.inf)
            score, column = _largest(score_BC, k)
            found = column.shape[1]
            lists.row_BK[block, :found] = row_BC.gather(1, column).numpy()
            lists.score_BK[block, :found] = score.numpy()
        return lists


class MostPopular:
    """Makes fallback lists: for everybody the most popular items that are not excluded.

    Args:
        count_N: (N,) float32, each item's score.
        available_N: (N,) which items may be listed.
    """

    num_proposals = 0

    def __init__(self, count_N: npt.NDArray[np.float32], available_N: Bools) -> None:
        row_M = np.flatnonzero(available_N).astype(np.int32)
        self._row_M = row_M[np.argsort(-count_N[row_M], kind="stable")]  # most popular first
        self._position_N = np.full(len(count_N), len(row_M), np.int32)
        self._position_N[self._row_M] = np.arange(len(row_M))
        self._count_N = count_N

    def __call__(self, profiles: Jagged, user_B: Ints, excluded: Jagged, k: int) -> TopKResult:
        """The k most popular items that are not excluded for each of B users."""
        del profiles
        lists = TopKResult.empty(len(user_B), k)
        first_K = self._row_M[:k]
        lists.row_BK[:, : len(first_K)] = first_K
        for b in np.flatnonzero(excluded.lengths).tolist():
            position_E = self._position_N[excluded[b]]
            allowed_M = np.ones(min(k + len(position_E), len(self._row_M)), bool)
            allowed_M[position_E[position_E < len(allowed_M)]] = False
            row_K = self._row_M[: len(allowed_M)][allowed_M][:k]
            lists.row_BK[b] = -1
            lists.row_BK[b, : len(row_K)] = row_K
        found_BK = lists.row_BK >= 0
        lists.score_BK[found_BK] = self._count_N[lists.row_BK[found_BK]]
        return lists


def _require_finite(value_XY: Tensor, kind: str) -> None:
    # In parts, because the check of all rows at once would take more memory than the rows.
    starts = range(0, len(value_XY), ITEM_COLUMNS)
    if not all(bool(value_XY[i : i + ITEM_COLUMNS].isfinite().all()) for i in starts):
        raise VisrecError(
            f"Found {kind} with NaN or infinite values; expected finite ones. The model "
            "has diverged, or the features are damaged: train again with a lower "
            "--train.learning_rate, or extract the features again."
        )


def _require_finite_scores(lists: TopKResult) -> None:
    wrong_BK = (lists.row_BK >= 0) & ~np.isfinite(lists.score_BK)
    if wrong_BK.any():
        raise VisrecError(
            f"Found {np.count_nonzero(wrong_BK.any(axis=1))} of {len(wrong_BK)} lists with a score "
            f"that is NaN or beyond float32 ({np.finfo(np.float32).max:.3g}); expected finite "
            "scores. The model's vectors are too large: it has diverged, or the features are "
            "damaged. Train again with a lower --train.learning_rate, or extract the features "
            "again."
        )


def _largest(score_BT: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row and their columns, best first, ties to the lower column.

    `torch.topk` breaks ties arbitrarily. Among the k largest, sorting puts ties in order. If the
    k-th score equals the next one, the whole row is sorted.
    """
    wide = min(k + 1, score_BT.shape[1])
    score, column = score_BT.topk(wide, dim=1)
    k = min(k, score_BT.shape[1])
    if wide > k:
        for row in (score[:, k] == score[:, k - 1]).nonzero().flatten().tolist():
            order = score_BT[row].argsort(descending=True, stable=True)[:wide]
            score[row], column[row] = score_BT[row][order], order
    column, by_column = column[:, :k].sort(dim=1)
    score, by_score = score[:, :k].gather(1, by_column).sort(dim=1, descending=True, stable=True)
    return score, column.gather(1, by_score)
