"""Where the held-out items stand among all others: exact ranks, tile by tile.

Every item but those of the user's profile is ranked; held-out items stay in. Dot products go to the
compiled kernel where there is one. Otherwise there are two sweeps over the tiles: one to know the
held-out items' own scores, one to count what stands below them. The second reads what the first has
kept where a block's scores are few, and computes them again where not, so memory does not grow with
the items.

A model that re-ranks candidates is ranked as its lists are: the candidates first, by their own
scores, and all other items behind them, by the scores of the proposer.

What stands below is counted, and all the rest is above. A score that is no number is below nothing
and nothing is below it, so a model that gives such scores has an AUC of 0 and not of 1.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.jagged import Jagged
from visrec.models.scorers import DotScorer, ReRankScorer, Scorer
from visrec.retrieval import topk
from visrec.retrieval.kernel import rank
from visrec.retrieval.torch_topk import needs_float64

Counts = npt.NDArray[np.int64]
Tiles = Iterable[tuple[int, Tensor]]

KEPT_BYTES = 128 * 2**20  # of scores, between a thread's sweeps: 262,144 items of 128 users
_PAIRS = 96  # held-out items compared with a tile at a time: .8 MB of marks, in a core's cache
_WORDS = 128  # of 8 marks are added before a byte could overflow


@dataclass(frozen=True)
class TargetRanks:
    """Where P held-out items of B users stand, user after user.

    Args:
        offsets: (B + 1,) each user's part of the P.
        ranked_B: (B,) M, how many items were ranked for each user.
        above_P: (P,) ranked items, held-out ones too, with a higher score, or the same and a lower
            row: the 0-based rank.
        others_above_P: (P,) those not held out with a higher score.
        others_equal_P: (P,) those not held out with the same score.
    """

    offsets: Counts
    ranked_B: Counts
    above_P: Counts
    others_above_P: Counts
    others_equal_P: Counts


def stand(
    scorer: Scorer, profiles: Jagged, user_B: npt.NDArray[np.int64], targets: Jagged
) -> TargetRanks:
    """Ranks the held-out items of B users, on as many threads as torch has.

    Args:
        scorer: the scores.
        profiles: B lists of distinct catalogue rows known before.
        user_B: (B,) trained user rows, -1 for users that training has not seen.
        targets: B lists of held-out rows, none of which is in that user's profile.
    """
    if isinstance(scorer, ReRankScorer):
        return _stand_reranked(scorer, profiles, user_B, targets)
    ranked_B = scorer.num_items - profiles.lengths
    offsets = targets.offsets.astype(np.int64)
    if isinstance(scorer, DotScorer):
        user_Bd = topk.user_vectors(scorer, profiles, user_B)
        wide_B = needs_float64(scorer.vectors_Nd, user_Bd)
        if kernel := topk.kernel_for(scorer):
            vectors_Nd, lists = scorer.vectors_Nd.numpy(), (profiles, targets, wide_B.numpy())
            found = rank(vectors_Nd, user_Bd.numpy(), *lists, torch.get_num_threads(), kernel)
            return TargetRanks(offsets, ranked_B, *found)
        if bool(wide_B.any()):
            scorer = _Float64Dots(scorer)
    starts = range(0, len(user_B), topk.USER_ROWS)
    # glibc asks the kernel for each tile's memory anew, which takes a quarter of the time, until
    # something larger was freed; it looks no further than 32 MB. No page of this is touched.
    torch.empty(31 * 2**20, dtype=torch.uint8)

    def block(start: int) -> Counts:
        stop = min(start + topk.USER_ROWS, len(user_B))
        return _stand_block(
            scorer, profiles.slice(start, stop), user_B[start:stop], targets.slice(start, stop)
        )

    below_P, others_below_P, others_equal_P = np.concatenate(
        _on_threads(block, starts, scorer.device), axis=1
    )
    others_P = np.repeat(ranked_B - targets.lengths, targets.lengths)
    return TargetRanks(
        offsets=offsets,
        ranked_B=ranked_B,
        above_P=np.repeat(ranked_B, targets.lengths) - 1 - below_P,
        others_above_P=others_P - others_below_P - others_equal_P,
        others_equal_P=others_equal_P,
    )


def _stand_reranked(
    scorer: ReRankScorer, profiles: Jagged, user_B: npt.NDArray[np.int64], targets: Jagged
) -> TargetRanks:
    """Where held-out items stand among candidates by their own scores, or behind all candidates."""
    proposed = stand(scorer.proposer, profiles, user_B, targets)
    search = topk.TopK(scorer, None, min(scorer.candidates, scorer.num_items))
    lists = search(profiles, user_B, profiles)
    counts_3P = np.stack([proposed.above_P, proposed.others_above_P, proposed.others_equal_P])
    for b, row_C in enumerate(lists.row_BK):
        of_user = slice(proposed.offsets[b], proposed.offsets[b + 1])
        row_C = row_C[row_C >= 0]
        counts_3P[:, of_user] = _among_candidates(
            row_C, lists.score_BK[b, : len(row_C)], targets[b], counts_3P[:, of_user]
        )
    return TargetRanks(proposed.offsets, proposed.ranked_B, *counts_3P)


def _among_candidates(
    row_C: Counts, score_C: npt.NDArray[np.float32], held_n: Counts, proposed_3n: Counts
) -> Counts:
    """(3, n) the counts of one user's held-out items, as in `TargetRanks`.

    Args:
        row_C: the candidates, best first.
        score_C: their own scores.
        held_n: the held-out items.
        proposed_3n: their counts by the proposer's scores among all items.
    """
    same_nC = held_n[:, None] == row_C
    other_C = ~same_nC.any(axis=0)
    # An item that is no candidate has all of them above it, those of the same proposed score too.
    others_above_n = np.maximum(proposed_3n[1], other_C.sum())
    counts_3n = np.stack([proposed_3n[0], others_above_n, proposed_3n[1:].sum(0) - others_above_n])
    found_n = same_nC.any(axis=1)
    place_m = same_nC[found_n].argmax(axis=1)
    own_m1 = score_C[place_m][:, None]
    counts_3n[:, found_n] = [
        place_m,
        ((score_C > own_m1) & other_C).sum(axis=1),
        ((score_C == own_m1) & other_C).sum(axis=1),
    ]
    return counts_3n


class _Float64Dots(DotScorer):
    """The same products in float64, for vectors whose products float32 cannot hold."""

    def __init__(self, scorer: DotScorer) -> None:
        super().__init__(scorer.vectors_Nd, scorer.prepare)

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        return state.double() @ self.vectors_Nd[start:stop].double().T


def _on_threads(
    block: Callable[[int], Counts], starts: range, device: torch.device
) -> list[Counts]:
    """Each block's counts, a thread a block: torch's own threads would wait at every tile."""
    threads = torch.get_num_threads()
    workers = min(threads, len(starts)) if device.type == "cpu" else 1
    if workers <= 1:
        return [block(start) for start in starts]
    torch.set_num_threads(threads // workers)
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(block, starts))
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _stand_block(scorer: Scorer, profiles: Jagged, user_B: Counts, targets: Jagged) -> Counts:
    """(3, P) what one block of users has below each held-out item.

    Items with a lower score or the same and a higher row; those not held out with a lower score;
    those not held out with the same.
    """
    # Most held-out items first: those with a k-th one are a tile's first rows, nothing is gathered.
    order = np.argsort(-targets.lengths, kind="stable")
    profile, target = profiles.take(order), targets.take(order)
    ((_, state),) = topk.user_blocks(scorer, profile, user_B[order])
    sweep = _sweeper(scorer, state, profile)
    item_Bn = _padded(target, scorer.num_items).to(scorer.device)
    own_Bn = _own_scores(sweep(), item_Bn)
    parts = _parts(target.lengths)
    below_Bn, equal_Bn, later_Bn = (torch.zeros_like(item_Bn) for _ in range(3))
    for start, score_BT in sweep():
        below, equal = _count(score_BT, own_Bn, parts)
        below_Bn += below
        equal_Bn += equal
        later_Bn += _later(score_BT, start, own_Bn, item_Bn, equal)
    held_below_Bn, held_equal_Bn = _count(own_Bn, own_Bn, parts)
    found_3Bn = torch.stack(
        [below_Bn + later_Bn, below_Bn - held_below_Bn, equal_Bn - held_equal_Bn]
    )
    found = found_3Bn.cpu().numpy()[:, np.argsort(order)]
    return np.asarray(found[:, np.arange(found.shape[2]) < targets.lengths[:, None]])


def _sweeper(scorer: Scorer, state: object, profile: Jagged) -> Callable[[], Tiles]:
    """What gives the tiles of a block's users, each time it is called.

    The profiles' items are NaN there, which is neither below nor equal to any score.
    """
    owner_V, item_V = profile.owners, np.asarray(profile.values, np.int64)

    def sweep() -> Iterator[tuple[int, Tensor]]:
        for start, tile in topk.item_tiles(scorer, state):
            inside = np.flatnonzero((item_V >= start) & (item_V < start + tile.shape[1]))
            tile[owner_V[inside], item_V[inside] - start] = torch.nan
            yield start, tile[: len(profile)]

    if topk.USER_ROWS * scorer.num_items * 4 > KEPT_BYTES:
        return sweep
    kept = list(sweep())
    return lambda: kept


def _padded(lists: Jagged, fill: int) -> Tensor:
    """(B, n) the lists as rows, filled up to the longest."""
    row_Bn = np.full((len(lists), lists.lengths.max()), fill, np.int64)
    row_Bn[np.arange(row_Bn.shape[1]) < lists.lengths[:, None]] = lists.values
    return torch.from_numpy(row_Bn)


def _own_scores(tiles: Tiles, item_Bn: Tensor) -> Tensor:
    """(B, n) the scores of the held-out items themselves, NaN where there is none."""
    own_Bn = torch.full_like(item_Bn, torch.nan, dtype=torch.float64)
    for start, score_BT in tiles:
        inside_Bn = (item_Bn >= start) & (item_Bn < start + score_BT.shape[1])
        owner, place = inside_Bn.nonzero(as_tuple=True)
        own_Bn[owner, place] = score_BT[owner, item_Bn[owner, place] - start].double()
    return own_Bn.to(score_BT.dtype)


def _parts(held_B: Counts) -> list[tuple[slice, slice]]:
    """The parts of a (B, n) array that hold all its items, whose counts fall, and little else."""
    parts, first = [], 0
    while first < len(held_B):
        widest = int(held_B[first])
        users = slice(first, first + max(1, _PAIRS // max(1, widest)))
        for place in range(0, widest, _PAIRS):
            parts.append((users, slice(place, min(place + _PAIRS, widest))))
        first = users.stop
    return parts


def _count(
    score_BT: Tensor, own_Bn: Tensor, parts: list[tuple[slice, slice]]
) -> tuple[Tensor, Tensor]:
    """(B, n) each: how many of a user's scores are below the own ones, and how many are equal."""
    below_Bn, equal_Bn = torch.zeros(2, *own_Bn.shape, dtype=torch.int64, device=own_Bn.device)
    for part in parts:
        score, own = score_BT[part[0], None, :], own_Bn[part][:, :, None]
        below_Bn[part] = _true("less", score, own)
        equal_Bn[part] = _true("less_equal", score, own) - below_Bn[part]
    return below_Bn, equal_Bn


def _true(compare: Literal["less", "less_equal"], score_B1T: Tensor, own_Bn1: Tensor) -> Tensor:
    """(B, n) how many of T comparisons are true."""
    users, held, count = *own_Bn1.shape[:2], score_B1T.shape[2]
    words = 8 * _WORDS
    mark = score_B1T.new_empty(users, held, -(-count // words) * words, dtype=torch.bool)
    mark[:, :, count:] = False
    out = mark[:, :, :count]
    if mark.device.type == "cpu":  # where numpy makes bools four times as fast as torch
        getattr(np, compare)(score_B1T.numpy(), own_Bn1.numpy(), out=out.numpy())
    else:
        getattr(torch, compare)(score_B1T, own_Bn1, out=out)
    # Eight marks are added at a time, as the bytes of a word.
    sums = mark.view(torch.int64).reshape(users, held, -1, _WORDS).sum(3)
    return sums.view(torch.uint8).sum(2)


def _later(
    score_BT: Tensor, start: int, own_Bn: Tensor, item_Bn: Tensor, equal_Bn: Tensor
) -> Tensor:
    """(B, n) how many of the equal scores of a tile are of a higher row than the held-out item."""
    columns_T = torch.arange(start, start + score_BT.shape[1], device=score_BT.device)
    later_Bn = torch.where(item_Bn < start, equal_Bn, 0)
    inside_Bn = (item_Bn >= start) & (item_Bn < start + len(columns_T))
    for pair in torch.split((inside_Bn & (equal_Bn > 1)).nonzero(), _PAIRS):
        owner, place = pair.unbind(1)
        own, item = own_Bn[owner, place][:, None], item_Bn[owner, place][:, None]
        later_Bn[owner, place] = ((score_BT[owner] == own) & (columns_T > item)).sum(1)
    return later_Bn
