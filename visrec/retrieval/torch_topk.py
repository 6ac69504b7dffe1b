"""The k best items by dot product with torch alone, on any device, to the same lists as the kernel.

Candidates are somewhat more than k items with the largest float32 products, found tile by tile;
they are scored again in float64. A user whose candidates may not be enough (many ties), or whose
products float32 cannot hold, is scored in float64 against all items, one tile after another. So
neither the shape of a tile nor the device changes a list, and memory does not depend on the scores.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.jagged import Jagged

SortedByItem = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # owners, items

_SPARE = 32  # candidates beyond k: enough but for ties
_GROUP = 64  # scores of which the largest is looked at first
_CPU_TILE = 128, 8192  # users, items: 4 MB of scores, about a core's share of the last cache
_GPU_TILE = 2048, 65_536  # 512 MB of scores
_PRODUCTS = 1 << 23  # multiplications in float64 at once: 64 MB
_LARGEST, _SMALLEST = 2.0**120, 2.0**-100  # products of entries whose sums float32 holds as well


def by_candidates(
    vectors_Nd: Tensor,
    user_Bd: Tensor,
    excluded: Jagged,
    available_N: npt.NDArray[np.bool_] | None,
    k: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(B, k) rows and scores, best first, ties to the lower row; -1 and -inf behind the last.

    Args:
        vectors_Nd: the items', finite float32.
        user_Bd: the users', on the same device.
        excluded: B lists of rows that are no candidates for that user.
        available_N: which items are candidates at all; None for all.
        k: how many.
    """
    n, d = vectors_Nd.shape
    closed_N = closed(available_N, vectors_Nd.device)
    users, items = _CPU_TILE if vectors_Nd.device.type == "cpu" else _GPU_TILE
    wide_B = needs_float64(vectors_Nd, user_Bd)
    # The sum of d rounded products is off by less than d roundings of |u| |i|.
    longest = max((float(part.max()) for part in _lengths(vectors_Nd)), default=0.0)
    margin_B = (d + 2) * 2.0**-23 * longest * torch.cat([*_lengths(user_Bd), user_Bd.new_empty(0)])
    rows = np.full((len(user_Bd), k), -1, np.int64)
    scores = np.full((len(user_Bd), k), -np.inf, np.float32)
    wide = min(k + _SPARE, n)
    for first in range(0, len(user_Bd), users):
        block = slice(first, min(first + users, len(user_Bd)))
        user_bd, without = user_Bd[block], excluded.slice(block.start, block.stop)
        rough_bC, row_bC = _candidates(vectors_Nd, user_bd, without, closed_N, wide, items)
        exact_bC = _products(vectors_Nd, user_bd, row_bC)
        exact_bC[rough_bC == -torch.inf] = -torch.inf
        # By row, then by score: equal scores stay in the order of their rows.
        row_bC, order = row_bC.sort(dim=1)
        exact_bC, order = exact_bC.gather(1, order).sort(dim=1, descending=True, stable=True)
        row_bC = row_bC.gather(1, order).masked_fill(exact_bC == -torch.inf, -1)
        rows[block, :wide] = row_bC[:, :k].cpu().numpy()
        scores[block, :wide] = exact_bC[:, :k].cpu().numpy()
        open_b = wide_B[block]
        if wide < n:
            # What was left out may be as good: ties, mostly.
            worst_b = rough_bC[:, -1]
            open_b |= (exact_bC[:, k - 1] <= worst_b + margin_B[block]) & (worst_b > -torch.inf)
        for b in open_b.nonzero().flatten().tolist():
            row_K, score_K = _by_float64(vectors_Nd, user_bd[b], without[b], closed_N, k)
            rows[first + b, : len(row_K)], scores[first + b, : len(row_K)] = row_K, score_K
    return rows, scores


def needs_float64(vectors_Nd: Tensor, user_Bd: Tensor) -> Tensor:
    """(B,) users for whom float32 is not enough: products with an item overflow, or all vanish."""
    most_N, most_B = (torch.linalg.vector_norm(v, torch.inf, dim=1) for v in (vectors_Nd, user_Bd))
    most_N, most_B = most_N[most_N > 0].double(), most_B.double()
    if not len(most_N):
        return torch.zeros_like(most_B, dtype=torch.bool)
    overflows_B: Tensor = most_B * most_N.max() * vectors_Nd.shape[1] > _LARGEST
    vanishes_B: Tensor = (most_B > 0) & (most_B * most_N.min() < _SMALLEST)
    return overflows_B | vanishes_B


def _lengths(vectors_Xd: Tensor) -> Iterator[Tensor]:
    """The lengths of vectors, a tile at a time, for float64 takes twice their memory."""
    return (tile_Td.double().norm(dim=1) for tile_Td in torch.split(vectors_Xd, _CPU_TILE[1]))


def _candidates(
    vectors_Nd: Tensor,
    user_bd: Tensor,
    excluded: Jagged,
    closed_N: Tensor | None,
    wide: int,
    columns: int,
) -> tuple[Tensor, Tensor]:
    """(b, wide) the largest float32 products, best first, and their rows."""
    device, n = vectors_Nd.device, len(vectors_Nd)
    left_out = sorted_by_item(excluded)
    best_score = user_bd.new_empty(len(user_bd), 0)
    best_row = torch.empty(len(user_bd), 0, dtype=torch.int64, device=device)
    for start in range(0, n, columns):
        stop = min(start + columns, n)
        score_bT = user_bd @ vectors_Nd[start:stop].T
        leave_out(score_bT, start, left_out, closed_N)
        score, place = _largest(score_bT, wide)
        best_row = torch.cat([best_row, place + start], dim=1)
        scores = torch.cat([best_score, score], dim=1)
        best_score, place = scores.topk(min(wide, scores.shape[1]), dim=1)
        best_row = best_row.gather(1, place)
    return best_score, best_row


def _by_float64(
    vectors_Nd: Tensor,
    user_d: Tensor,
    excluded: npt.NDArray[np.int64],
    closed_N: Tensor | None,
    k: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """One user's k best, or fewer, by the float64 products of all items."""
    device, n, columns = vectors_Nd.device, len(vectors_Nd), _CPU_TILE[1]
    row_K = torch.empty(0, dtype=torch.int64, device=device)
    score_K = torch.empty(0, device=device)
    open_N = torch.ones(n, dtype=torch.bool, device=device) if closed_N is None else ~closed_N
    open_N[torch.from_numpy(np.asarray(excluded, np.int64)).to(device)] = False
    for start in range(0, n, columns):
        row_T = open_N[start : start + columns].nonzero().flatten() + start
        score_T = _products(vectors_Nd, user_d[None], row_T[None])[0]
        # In the order of their rows, so that of equal scores the lower row stays the first.
        score_K, order = torch.cat([score_K, score_T]).sort(descending=True, stable=True)
        row_K, score_K = torch.cat([row_K, row_T])[order[:k]], score_K[:k]
    return row_K.cpu().numpy(), score_K.cpu().numpy()


def _largest(score_bT: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(b, k) the largest of each row, or all, best first, and their places; ties as they come.

    The k largest are in the k groups with the largest maxima.
    """
    b, width = score_bT.shape
    groups = width // _GROUP
    if width % _GROUP or groups <= k:
        score, place = score_bT.topk(min(k, width), dim=1)
        return score, place
    score_bGg = score_bT.view(b, groups, _GROUP)
    group_bk = score_bGg.amax(dim=2).topk(k, dim=1).indices
    some_bkg = score_bGg.gather(1, group_bk[:, :, None].expand(-1, -1, _GROUP))
    score, among = some_bkg.flatten(1).topk(k, dim=1)
    return score, group_bk.gather(1, among // _GROUP) * _GROUP + among % _GROUP


def _products(vectors_Nd: Tensor, user_bd: Tensor, row_bC: Tensor) -> Tensor:
    """(b, C) the float64 products of each user with some rows, rounded to float32."""
    users = max(1, _PRODUCTS // max(1, row_bC.shape[1] * vectors_Nd.shape[1]))
    parts = [
        torch.einsum(
            "bcd,bd->bc",
            vectors_Nd[row_bC[start : start + users].to(vectors_Nd.device)].double(),
            user_bd[start : start + users].double(),
        )
        for start in range(0, len(user_bd), users)
    ]
    return torch.cat(parts).float()


def closed(available_N: npt.NDArray[np.bool_] | None, device: torch.device) -> Tensor | None:
    """(N,) which items are no candidates for anybody; None for none."""
    return None if available_N is None else torch.from_numpy(~available_N).to(device)


def leave_out(
    score_BT: Tensor, start: int, excluded: SortedByItem, closed_N: Tensor | None
) -> None:
    """Puts -inf at what is no candidate in a tile of scores.

    Args:
        score_BT: of the items from `start` on.
        start: the tile's first item.
        excluded: what each of the B users is not to be given.
        closed_N: what nobody is to be given.
    """
    owner_V, item_V = excluded
    stop = start + score_BT.shape[1]
    inside = slice(*np.searchsorted(item_V, [start, stop]))
    score_BT[owner_V[inside], item_V[inside] - start] = -torch.inf
    if closed_N is not None:
        score_BT.masked_fill_(closed_N[start:stop], -torch.inf)


def sorted_by_item(lists: Jagged) -> SortedByItem:
    """Owners and values of lists, by value."""
    order = np.argsort(lists.values, kind="stable")
    return lists.owners[order], np.asarray(lists.values[order], np.int64)
