"""The k best items by dot product with torch alone, on any device: the same lists as the kernel's.

First, a shortlist is found tile by tile: slightly more than k items, those with the largest float32
products. Then the shortlist is scored again in float64. If an item outside the shortlist may be as
good as the k-th one (mostly because of ties), or if float32 cannot represent a user's products, all
items are scored in float64 for this user, one tile after another. So neither the shape of a tile
nor the device changes a list, and memory does not depend on the scores.

Shapes: B users, b users of a block, N items, T items of a tile, C items of a shortlist, K list
length, V entries of lists, G groups of g columns, c of which are searched, d width.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.jagged import Jagged

SortedByItem = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # (V,) users, (V,) items

_SPARE = 32  # items of a shortlist beyond k: enough unless there are ties
_GROUP = 16  # columns whose maximum is looked at first; 8 and 32 take as long on a CPU
# Users and items of a tile: 4 MB of scores, about one core's share of the last-level cache.
_CPU_TILE = 128, 8192
_GPU_TILE = 2048, 65_536  # 512 MB of scores
_PRODUCTS = 1 << 23  # float64 multiplications at a time: 64 MB
_LARGEST, _SMALLEST = 2.0**120, 2.0**-100  # between them, float32 can represent sums of products


def torch_top_k(
    vectors_Nd: Tensor,
    user_Bd: Tensor,
    excluded: Jagged,
    available_N: npt.NDArray[np.bool_] | None,
    k: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(B, k) rows and scores, best first, ties to the lower row; -1 and -inf after the last item.

    Args:
        vectors_Nd: the items' finite float32 vectors.
        user_Bd: the users' vectors, on the same device.
        excluded: B lists of rows that may not be in that user's list.
        available_N: which items may be listed; None for all.
        k: list length.
    """
    n = len(vectors_Nd)
    unavailable_N = unavailable_mask(available_N, vectors_Nd.device)
    users, items = _CPU_TILE if vectors_Nd.device.type == "cpu" else _GPU_TILE
    wide_B = needs_float64(vectors_Nd, user_Bd)
    margin_B = _rounding_margin(vectors_Nd, user_Bd)
    rows = np.full((len(user_Bd), k), -1, np.int64)
    scores = np.full((len(user_Bd), k), -np.inf, np.float32)
    shortlist = min(k + _SPARE, n)
    for first in range(0, len(user_Bd), users):
        block = slice(first, min(first + users, len(user_Bd)))
        user_bd, block_excluded = user_Bd[block], excluded.slice(block.start, block.stop)
        rough_bC, row_bC = _shortlist(
            vectors_Nd, user_bd, block_excluded, unavailable_N, shortlist, items
        )
        exact_bC = _float64_products(vectors_Nd, user_bd, row_bC)
        exact_bC[rough_bC == -torch.inf] = -torch.inf
        row_bC, exact_bC = _sort_by_score(row_bC, exact_bC)
        rows[block, :shortlist] = row_bC[:, :k].cpu().numpy()
        scores[block, :shortlist] = exact_bC[:, :k].cpu().numpy()
        uncertain_b = wide_B[block]
        if shortlist < n:
            # An item outside the shortlist may be as good as the k-th one, mostly because of ties.
            worst_b = rough_bC[:, -1]
            uncertain_b |= (exact_bC[:, k - 1] <= worst_b + margin_B[block]) & (
                worst_b > -torch.inf
            )
        for b in uncertain_b.nonzero().flatten().tolist():
            row_K, score_K = _search_in_float64(
                vectors_Nd, user_bd[b], block_excluded[b], unavailable_N, k
            )
            rows[first + b, : len(row_K)], scores[first + b, : len(row_K)] = row_K, score_K
    return rows, scores


def _sort_by_score(row_bC: Tensor, score_bC: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and the scores, best first, ties to the lower row; a row of -1 for -inf."""
    # By row, then stably by score, so that ties stay in the order of their rows.
    row_bC, order = row_bC.sort(dim=1)
    score_bC, order = score_bC.gather(1, order).sort(dim=1, descending=True, stable=True)
    return row_bC.gather(1, order).masked_fill(score_bC == -torch.inf, -1), score_bC


def needs_float64(vectors_Nd: Tensor, user_Bd: Tensor) -> Tensor:
    """(B,) users with a product that overflows in float32, or whose products all vanish."""
    # (nine times as fast as torch's norm, without a copy of the vectors)
    most_N, most_B = (torch.maximum(v.amax(1), -v.amin(1)) for v in (vectors_Nd, user_Bd))
    most_N, most_B = most_N[most_N > 0].double(), most_B.double()
    if not len(most_N):
        return torch.zeros_like(most_B, dtype=torch.bool)
    overflows_B: Tensor = most_B * most_N.max() * vectors_Nd.shape[1] > _LARGEST
    vanishes_B: Tensor = (most_B > 0) & (most_B * most_N.min() < _SMALLEST)
    return overflows_B | vanishes_B


def _rounding_margin(vectors_Nd: Tensor, user_Bd: Tensor) -> Tensor:
    """(B,) by how much a user's float32 products may differ from the exact ones.

    The error of a sum of d rounded products is less than d roundings of |u| |i|.
    """
    longest = max((float(part.max()) for part in _lengths(vectors_Nd)), default=0.0)
    length_B = torch.cat([*_lengths(user_Bd), user_Bd.new_empty(0)])
    return (vectors_Nd.shape[1] + 2) * 2.0**-23 * longest * length_B


def _lengths(vectors_Xd: Tensor) -> Iterator[Tensor]:
    """The lengths of vectors, a tile at a time, because float64 takes twice their memory."""
    return (tile_Td.double().norm(dim=1) for tile_Td in torch.split(vectors_Xd, _CPU_TILE[1]))


def _shortlist(
    vectors_Nd: Tensor,
    user_bd: Tensor,
    excluded: Jagged,
    unavailable_N: Tensor | None,
    count: int,
    columns: int,
) -> tuple[Tensor, Tensor]:
    """(b, count) the largest float32 products, best first, and their rows."""
    device, n = vectors_Nd.device, len(vectors_Nd)
    excluded_items = sort_by_item(excluded)
    best_score = user_bd.new_empty(len(user_bd), 0)
    best_row = torch.empty(len(user_bd), 0, dtype=torch.int64, device=device)
    for start in range(0, n, columns):
        stop = min(start + columns, n)
        score_bT = user_bd @ vectors_Nd[start:stop].T
        mask_excluded(score_bT, start, excluded_items, unavailable_N)
        least_b1 = best_score[:, count - 1 : count]  # empty until there are so many
        score, column = _largest_by_groups(score_bT, count, least_b1)
        best_row = torch.cat([best_row, column + start], dim=1)
        scores = torch.cat([best_score, score], dim=1)
        best_score, column = scores.topk(min(count, scores.shape[1]), dim=1)
        best_row = best_row.gather(1, column)
    return best_score, best_row


def _search_in_float64(
    vectors_Nd: Tensor,
    user_d: Tensor,
    excluded: npt.NDArray[np.int64],
    unavailable_N: Tensor | None,
    k: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """One user's k best items, or all if there are fewer, by the float64 products of all items."""
    device, n, columns = vectors_Nd.device, len(vectors_Nd), _CPU_TILE[1]
    row_K = torch.empty(0, dtype=torch.int64, device=device)
    score_K = torch.empty(0, device=device)
    allowed_N = (
        torch.ones(n, dtype=torch.bool, device=device) if unavailable_N is None else ~unavailable_N
    )
    allowed_N[torch.from_numpy(np.asarray(excluded, np.int64)).to(device)] = False
    for start in range(0, n, columns):
        row_T = allowed_N[start : start + columns].nonzero().flatten() + start
        score_T = _float64_products(vectors_Nd, user_d[None], row_T[None])[0]
        # Rows rise, and the sort is stable, so ties go to the lower row.
        score_K, order = torch.cat([score_K, score_T]).sort(descending=True, stable=True)
        row_K, score_K = torch.cat([row_K, row_T])[order[:k]], score_K[:k]
    return row_K.cpu().numpy(), score_K.cpu().numpy()


def _largest_by_groups(score_bT: Tensor, k: int, least_b1: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row and their columns; ties in any order.

    They are in those k groups of columns that have the largest maxima. Groups whose
    maximum is not above `least_b1` are skipped, if it is given.
    """
    b, width = score_bT.shape
    groups = width // _GROUP
    if width % _GROUP or groups <= k:
        score, column = score_bT.topk(min(k, width), dim=1)
        return score, column
    score_bGg = score_bT.view(b, groups, _GROUP)
    most_bG = score_bGg.amax(dim=2)
    count = min(k, int((most_bG > least_b1).sum(dim=1).max())) if least_b1.numel() else k
    group_bc = most_bG.topk(count, dim=1).indices
    score_bcg = score_bGg.gather(1, group_bc[:, :, None].expand(-1, -1, _GROUP))
    score, position = score_bcg.flatten(1).topk(min(k, count * _GROUP), dim=1)
    return score, group_bc.gather(1, position // _GROUP) * _GROUP + position % _GROUP


def _float64_products(vectors_Nd: Tensor, user_bd: Tensor, row_bC: Tensor) -> Tensor:
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


def unavailable_mask(
    available_N: npt.NDArray[np.bool_] | None, device: torch.device
) -> Tensor | None:
    """(N,) which items nobody may be recommended; None if all are available."""
    return None if available_N is None else torch.from_numpy(~available_N).to(device)


def mask_excluded(
    score_BT: Tensor, start: int, excluded: SortedByItem, unavailable_N: Tensor | None
) -> None:
    """Sets the scores of excluded and unavailable items in a tile to -inf.

    Args:
        score_BT: the scores of the items from `start` on.
        start: the tile's first item.
        excluded: the items that each of the B users may not get.
        unavailable_N: the items that nobody may get.
    """
    user_V, item_V = excluded
    stop = start + score_BT.shape[1]
    inside = slice(*np.searchsorted(item_V, [start, stop]))
    score_BT[user_V[inside], item_V[inside] - start] = -torch.inf
    if unavailable_N is not None:
        score_BT.masked_fill_(unavailable_N[start:stop], -torch.inf)


def sort_by_item(lists: Jagged) -> SortedByItem:
    """The list number and the item of every entry, sorted by item."""
    order = np.argsort(lists.values, kind="stable")
    return lists.row_ids[order], np.asarray(lists.values[order], np.int64)
