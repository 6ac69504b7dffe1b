"""The exact ranks of held-out items among all others, tile by tile.

A user's ranking holds all items that are not in the profile, the user's other held-out items
included. Dot products are ranked by the compiled kernel if `kernel_for` finds it. All other scores
are computed in tiles, in two passes: the first finds the scores of the held-out items, the second
counts the items below them. If a block's scores fit into `KEPT_BYTES`, they are kept for the second
pass, otherwise they are computed again, so memory does not grow with the number of items.

For a model that re-ranks, the ranking is that of its lists: first the proposed items by the model's
scores, then all other items by the proposer's scores.

The tiles count the items below a held-out item; all others are above it. NaN is below nothing, and
nothing is below NaN, so a model with NaN scores has an AUC of 0 and not of 1. The kernel counts the
items above a held-out item, with the same convention for NaN.

Shapes: B users, N items, P held-out items of all users, n held-out items of one user at most, T
items of a tile, C items proposed to each user, V entries of lists, d width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.jagged import Jagged, offsets_from_lengths
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import ByKind, DotScorer, ReRankScorer, Scorer, TiledScorer
from visrec.native import require_rows
from visrec.retrieval import topk
from visrec.retrieval.kernel import kernel_for, rank
from visrec.retrieval.torch_topk import needs_float64
from visrec.threads import torch_threads

Counts = npt.NDArray[np.int64]
Tiles = Iterable[tuple[int, Tensor]]

KEPT_BYTES = 128 * 2**20  # scores that a thread keeps: of 262,144 items for 128 users
_TARGETS = 96  # held-out items compared with a tile at a time: 0.8 MB of flags, in a core's cache
_WORDS = 128  # words of 8 flags that are added at a time: few enough that no byte overflows


@dataclass(frozen=True)
class TargetRanks:
    """Ranks of P held-out items of B users, one user after another.

    Attributes:
        offsets: (B + 1,) user b has the items from `offsets[b]` to `offsets[b + 1]`.
        ranked_B: (B,) how many items were ranked for each user.
        above_P: (P,) the 0-based rank: how many ranked items, held out or not, have a higher score,
            or the same score and a lower row.
        others_above_P: (P,) how many items that are not held out have a higher score.
        others_equal_P: (P,) how many items that are not held out have the same score.
    """

    offsets: Counts
    ranked_B: Counts
    above_P: Counts
    others_above_P: Counts
    others_equal_P: Counts

    @property
    def negatives_B(self) -> Counts:
        """(B,) how many items that are not held out were ranked for each user."""
        return np.asarray(self.ranked_B - np.diff(self.offsets))

    @property
    def misordered_P(self) -> npt.NDArray[np.float64]:
        """(P,) how many items that are not held out are above, and half of those that are equal."""
        return np.asarray(self.others_above_P + 0.5 * self.others_equal_P)

    @staticmethod
    def concatenate(parts: "Sequence[TargetRanks]") -> "TargetRanks":
        """The ranks of all parts' users, one part after another."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return TargetRanks(
            offsets_from_lengths(lengths),
            np.concatenate([part.ranked_B for part in parts]),
            np.concatenate([part.above_P for part in parts]),
            np.concatenate([part.others_above_P for part in parts]),
            np.concatenate([part.others_equal_P for part in parts]),
        )


def rank_targets(
    scorer: Scorer, profiles: Jagged, user_B: npt.NDArray[np.int64], targets: Jagged
) -> TargetRanks:
    """Ranks the held-out items of B users, on as many threads as torch has.

    Args:
        scorer: computes the scores.
        profiles: B lists of distinct catalogue rows that are not ranked.
        user_B: (B,) rows of the training's users, -1 for users that training has not seen.
        targets: B lists of held-out rows, none of which is in that user's profile.

    Raises:
        IndexError: a profile or a list has an item that is not one of the scorer's, so it would be
            subtracted from counts that it is not in.
    """
    for lists in (profiles, targets):
        require_rows(lists.values, scorer.num_items)
    return scorer.dispatch(
        ByKind(
            dot=lambda dot: _rank_dot(dot, profiles, user_B, targets),
            tiled=lambda tiled: _rank_tiled(tiled, profiles, user_B, targets),
            rerank=lambda rerank: _rank_reranked(rerank, profiles, user_B, targets),
        )
    )


def _rank_dot(
    scorer: DotScorer, profiles: Jagged, user_B: npt.NDArray[np.int64], targets: Jagged
) -> TargetRanks:
    user_Bd = topk.user_vectors(scorer, profiles, user_B)
    wide_B = needs_float64(scorer.vectors_Nd, user_Bd)
    kernel = kernel_for(scorer.vectors_Nd)
    if kernel is None:
        tiled = _Float64DotScorer(scorer) if bool(wide_B.any()) else scorer
        return _rank_tiled(tiled, profiles, user_B, targets)
    counts = rank(
        scorer.vectors_Nd.numpy(),
        user_Bd.numpy(),
        profiles,
        targets,
        wide_B.numpy(),
        kernel,
    )
    ranked_B = scorer.num_items - profiles.lengths
    return TargetRanks(targets.offsets.astype(np.int64), ranked_B, *counts)


def _rank_tiled(
    scorer: Scorer, profiles: Jagged, user_B: npt.NDArray[np.int64], targets: Jagged
) -> TargetRanks:
    starts = range(0, len(user_B), topk.USER_ROWS)
    # glibc gives the memory of a freed tile back to the operating system, and requesting it again
    # takes a quarter of the time. It keeps blocks that are no larger than one that was freed
    # before, up to 32 MB. This block is freed at once for that purpose; its pages are never used.
    torch.empty(31 * 2**20, dtype=torch.uint8)

    def block(start: int) -> Counts:
        stop = min(start + topk.USER_ROWS, len(user_B))
        return _rank_block(
            scorer, profiles.slice(start, stop), user_B[start:stop], targets.slice(start, stop)
        )

    below_P, others_below_P, others_equal_P = np.concatenate(
        _on_threads(block, starts, scorer.device), axis=1
    )
    ranked_B = scorer.num_items - profiles.lengths
    others_P = np.repeat(ranked_B - targets.lengths, targets.lengths)
    return TargetRanks(
        offsets=targets.offsets.astype(np.int64),
        ranked_B=ranked_B,
        above_P=np.repeat(ranked_B, targets.lengths) - 1 - below_P,
        others_above_P=others_P - others_below_P - others_equal_P,
        others_equal_P=others_equal_P,
    )


def _rank_reranked(
    scorer: ReRankScorer, profiles: Jagged, user_B: npt.NDArray[np.int64], targets: Jagged
) -> TargetRanks:
    """Ranks by the scorer's own scores among the proposed items; all other items follow."""
    ranks = rank_targets(scorer.proposer, profiles, user_B, targets)
    search = topk.TopK(scorer, None, min(scorer.num_proposals, scorer.num_items))
    lists = search(profiles, user_B, profiles)
    counts_3P = np.stack([ranks.above_P, ranks.others_above_P, ranks.others_equal_P])
    for b, row_C in enumerate(lists.row_BK):
        part = slice(ranks.offsets[b], ranks.offsets[b + 1])
        row_C = row_C[row_C >= 0]
        counts_3P[:, part] = _rerank_counts(
            row_C, lists.score_BK[b, : len(row_C)], targets[b], counts_3P[:, part]
        )
    return TargetRanks(ranks.offsets, ranks.ranked_B, *counts_3P)


def _rerank_counts(
    row_C: Counts, score_C: npt.NDArray[np.float32], target_n: Counts, counts_3n: Counts
) -> Counts:
    """(3, n) the counts of one user's held-out items, as in `TargetRanks`.

    Args:
        row_C: the proposed items, best first by their own scores.
        score_C: these scores.
        target_n: the held-out items.
        counts_3n: the held-out items' counts among all items, by the scores of the proposer.
    """
    same_nC = target_n[:, None] == row_C
    is_other_C = ~same_nC.any(axis=0)
    # All proposed items are above an item that was not proposed, even if the proposer gave both the
    # same score.
    others_above_n = np.maximum(counts_3n[1], is_other_C.sum())
    result_3n = np.stack([counts_3n[0], others_above_n, counts_3n[1:].sum(0) - others_above_n])
    is_proposed_n = same_nC.any(axis=1)
    position_m = same_nC[is_proposed_n].argmax(axis=1)
    target_score_m1 = score_C[position_m][:, None]
    result_3n[:, is_proposed_n] = [
        position_m,
        ((score_C > target_score_m1) & is_other_C).sum(axis=1),
        ((score_C == target_score_m1) & is_other_C).sum(axis=1),
    ]
    return result_3n


class _Float64DotScorer(TiledScorer):
    """Dot products in float64, for vectors whose products float32 cannot represent."""

    def __init__(self, scorer: DotScorer) -> None:
        self.num_items, self.device, self.space_Nd = scorer.num_items, scorer.device, None
        self._scorer = scorer

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        return self._scorer.prepare(profiles, user_B)

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        return state.double() @ self._scorer.vectors_Nd[start:stop].double().T


def _on_threads(
    block: Callable[[int], Counts], starts: range, device: torch.device
) -> list[Counts]:
    """The counts of each block. Each block has one thread of its own: threads of torch, which share
    a block, would wait for one another at every tile."""
    threads = torch.get_num_threads()
    workers = min(threads, len(starts)) if device.type == "cpu" else 1
    if workers <= 1:
        return [block(start) for start in starts]
    with torch_threads(threads // workers), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(block, starts))


@torch.inference_mode()
def _rank_block(scorer: Scorer, profiles: Jagged, user_B: Counts, targets: Jagged) -> Counts:
    """Three counts for each held-out item of a block of users, as (3, P).

    1. Items below it: with a lower score, or with the same score and a higher row.
    2. Items that are not held out and have a lower score.
    3. Items that are not held out and have the same score.
    """
    # Users with the most held-out items come first. The users who have a k-th held-out item are
    # then the first rows of a tile, which are a slice and need no copy.
    order = np.argsort(-targets.lengths, kind="stable")
    profile, target = profiles.take(order), targets.take(order)
    ((_, state),) = topk.user_blocks(scorer, profile, user_B[order])
    tiles = _tiles_without_profiles(scorer, state, profile)
    item_Bn = _pad(target, scorer.num_items).to(scorer.device)
    target_Bn = _target_scores(tiles(), item_Bn)
    parts = _parts(target.lengths)
    below_Bn, equal_Bn, later_Bn = (torch.zeros_like(item_Bn) for _ in range(3))
    for start, score_BT in tiles():
        below, equal = _count(score_BT, target_Bn, parts)
        below_Bn += below
        equal_Bn += equal
        later_Bn += _count_later_ties(score_BT, start, target_Bn, item_Bn, equal)
    targets_below_Bn, targets_equal_Bn = _count(target_Bn, target_Bn, parts)
    found_3Bn = torch.stack(
        [below_Bn + later_Bn, below_Bn - targets_below_Bn, equal_Bn - targets_equal_Bn]
    )
    found = found_3Bn.cpu().numpy()[:, np.argsort(order)]
    return np.asarray(found[:, np.arange(found.shape[2]) < targets.lengths[:, None]])


def _tiles_without_profiles(scorer: Scorer, state: object, profile: Jagged) -> Callable[[], Tiles]:
    """A function that returns the tiles of a block's users each time it is called.

    Items of the profiles are NaN, which is neither below nor equal to any score.
    """
    user_V, item_V = profile.row_ids, np.asarray(profile.values, np.int64)

    def tiles() -> Iterator[tuple[int, Tensor]]:
        for start, tile in topk.item_tiles(scorer, state):
            inside = np.flatnonzero((item_V >= start) & (item_V < start + tile.shape[1]))
            tile[user_V[inside], item_V[inside] - start] = torch.nan
            yield start, tile[: len(profile)]

    if topk.USER_ROWS * scorer.num_items * 4 > KEPT_BYTES:
        return tiles
    kept = list(tiles())
    return lambda: kept


def _pad(lists: Jagged, fill: int) -> Tensor:
    """(B, n) the lists as rows, filled up to the longest."""
    row_Bn = np.full((len(lists), lists.lengths.max()), fill, np.int64)
    row_Bn[np.arange(row_Bn.shape[1]) < lists.lengths[:, None]] = lists.values
    return torch.from_numpy(row_Bn)


def _target_scores(tiles: Tiles, item_Bn: Tensor) -> Tensor:
    """(B, n) the scores of the held-out items, NaN after the last one of a user."""
    target_Bn = torch.full_like(item_Bn, torch.nan, dtype=torch.float64)
    for start, score_BT in tiles:
        inside_Bn = (item_Bn >= start) & (item_Bn < start + score_BT.shape[1])
        user, column = inside_Bn.nonzero(as_tuple=True)
        target_Bn[user, column] = score_BT[user, item_Bn[user, column] - start].double()
    return target_Bn.to(score_BT.dtype)


def _parts(target_counts_B: Counts) -> list[tuple[slice, slice]]:
    """Parts of at most `_TARGETS` entries that cover the held-out items of a (B, n) array.

    Users have ever fewer held-out items, so a part has little padding.
    """
    parts, first = [], 0
    while first < len(target_counts_B):
        widest = int(target_counts_B[first])
        users = slice(first, first + max(1, _TARGETS // max(1, widest)))
        for column in range(0, widest, _TARGETS):
            parts.append((users, slice(column, min(column + _TARGETS, widest))))
        first = users.stop
    return parts


def _count(
    score_BT: Tensor, target_Bn: Tensor, parts: list[tuple[slice, slice]]
) -> tuple[Tensor, Tensor]:
    """(B, n) each: how many of a user's scores are below a held-out item's, and how many equal."""
    below_Bn, equal_Bn = torch.zeros(
        2, *target_Bn.shape, dtype=torch.int64, device=target_Bn.device
    )
    for part in parts:
        score, target = score_BT[part[0], None, :], target_Bn[part][:, :, None]
        below_Bn[part] = _count_true("less", score, target)
        equal_Bn[part] = _count_true("less_equal", score, target) - below_Bn[part]
    return below_Bn, equal_Bn


def _count_true(
    compare: Literal["less", "less_equal"], score_B1T: Tensor, target_Bn1: Tensor
) -> Tensor:
    """(B, n) how many of T comparisons are true."""
    users, targets, count = *target_Bn1.shape[:2], score_B1T.shape[2]
    words = 8 * _WORDS
    flags = score_B1T.new_empty(users, targets, -(-count // words) * words, dtype=torch.bool)
    flags[:, :, count:] = False
    out = flags[:, :, :count]
    if flags.device.type == "cpu":  # NumPy compares four times as fast as torch here
        getattr(np, compare)(score_B1T.numpy(), target_Bn1.numpy(), out=out.numpy())
    else:
        getattr(torch, compare)(score_B1T, target_Bn1, out=out)
    # Flags are bytes, and eight of them are added at a time as one 64-bit word.
    sums = flags.view(torch.int64).reshape(users, targets, -1, _WORDS).sum(3)
    return sums.view(torch.uint8).sum(2)


def _count_later_ties(
    score_BT: Tensor, start: int, target_Bn: Tensor, item_Bn: Tensor, equal_Bn: Tensor
) -> Tensor:
    """(B, n) how many of a tile's equal scores belong to a higher row than the held-out item's."""
    columns_T = torch.arange(start, start + score_BT.shape[1], device=score_BT.device)
    later_Bn = torch.where(item_Bn < start, equal_Bn, 0)
    inside_Bn = (item_Bn >= start) & (item_Bn < start + len(columns_T))
    for pair in torch.split((inside_Bn & (equal_Bn > 1)).nonzero(), _TARGETS):
        user, column = pair.unbind(1)
        target, item = target_Bn[user, column][:, None], item_Bn[user, column][:, None]
        later_Bn[user, column] = ((score_BT[user] == target) & (columns_T > item)).sum(1)
    return later_Bn
