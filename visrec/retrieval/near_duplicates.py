"""Groups of near-duplicate pictures: the connected components of pairs above a cosine.

Not all pairs are searched for. One feature stands for all that are equal to the bit. For each, the
nearest `_NEAREST` pictures are found. If all of these are near-duplicates, there may be more: then
the nearest picture outside the picture's component is found, again and again, until that is no
near-duplicate. So memory grows with the number of items, not of pairs.

Shapes: N items, M items with a feature, R distinct features, r of these that still search, E pairs,
Q queries, K nearest pictures, D feature width.
"""

import numpy as np
import numpy.typing as npt
import torch

from visrec.features.near_identical import graph_components
from visrec.hashes import hash_rows
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.retrieval.similar import cosine_scorer, normalize_rows
from visrec.retrieval.topk import ITEM_COLUMNS, TopK
from visrec.scratch import row_blocks, scratch_array

_NEAREST = 16  # nearest pictures in the first search
_QUERIES = 4096  # pictures in one search
_EXCLUDED = 2**21  # items that the pictures of one search exclude, all together
_ROUNDING = 1e-6  # maximum error of the cosine of two float32 vectors of length 1
Ints = npt.NDArray[np.int64]


def near_duplicate_groups(
    feature_ND: npt.NDArray[np.generic], available_N: npt.NDArray[np.bool_], threshold: float
) -> Ints:
    """(N,) each item's group, named by its lowest row; -1 for an item without near-duplicates.

    Args:
        feature_ND: the pictures' features.
        available_N: items that may be listed; the others are in no group.
        threshold: the least cosine of near-duplicates.
    """
    row_M, first_M = _distinct(feature_ND, np.flatnonzero(available_N))
    row_R = np.unique(first_M)
    component_R = _components(feature_ND, row_R, threshold - _ROUNDING)
    # Rows are in rising order, so the first row of a component is its lowest.
    _, first_C, component_R = np.unique(component_R, return_index=True, return_inverse=True)
    group_M = row_R[first_C][component_R][np.searchsorted(row_R, first_M)]
    has_duplicates_M = np.bincount(group_M, minlength=len(feature_ND))[group_M] > 1
    group_N = np.full(len(feature_ND), -1)
    group_N[row_M[has_duplicates_M]] = group_M[has_duplicates_M]
    return group_N


def _distinct(feature_ND: npt.NDArray[np.generic], row_M: Ints) -> tuple[Ints, Ints]:
    """The rows whose feature is not zero, and for each the first row with the same feature."""
    blocks = [row_M[s : s + ITEM_COLUMNS] for s in range(0, len(row_M), ITEM_COLUMNS)]
    # A feature of zeros has no direction, and so no cosine to another one.
    nonzero_M = [feature_ND[block].any(axis=1) for block in blocks]
    row_M = row_M[np.concatenate([*nonzero_M, np.zeros(0, bool)])]
    hash_M = hash_rows(feature_ND, row_M)
    _, first_H, hash_index_M = np.unique(hash_M, return_index=True, return_inverse=True)
    return row_M, row_M[first_H][hash_index_M]


def _components(feature_ND: npt.NDArray[np.generic], row_R: Ints, min_cosine: float) -> Ints:
    """(R,) the connected component of each of these rows."""
    unit_RD = _unit_features(feature_ND, row_R)
    every_R = np.arange(len(row_R))
    one_E, other_E, has_more_R = _near_pairs(unit_RD, every_R, every_R, _NEAREST, min_cosine)
    component_R = graph_components(one_E, other_E, len(row_R))
    # If a pair was missed, its two rows are in different components, and both have more
    # near-duplicates than were searched for. Rows of the largest component need not search,
    # because the other row of such a pair searches.
    pending_r = every_R[has_more_R]
    while len(pending_r):
        sizes = np.bincount(component_R[pending_r])
        searching = np.flatnonzero(component_R[pending_r] != sizes.argmax())
        if not len(searching):
            break
        one_e, other_e, found_r = _near_pairs(
            unit_RD[pending_r], searching, component_R[pending_r], 1, min_cosine
        )
        one_E = np.append(one_E, pending_r[one_e])
        other_E = np.append(other_E, pending_r[other_e])
        component_R = graph_components(one_E, other_E, len(row_R))
        is_done_r = np.zeros(len(pending_r), bool)
        # These have no near-duplicate outside their component, and components only grow.
        is_done_r[searching[~found_r]] = True
        pending_r = pending_r[~is_done_r]
    return component_R


def _unit_features(feature_ND: npt.NDArray[np.generic], row_R: Ints) -> npt.NDArray[np.float32]:
    """(R, D) these rows' features, scaled to length 1."""
    unit_RD = scratch_array((len(row_R), feature_ND.shape[1]), np.float32)
    for block in row_blocks(len(row_R), ITEM_COLUMNS):
        part = np.asarray(feature_ND[row_R[block]], np.float32)
        unit_RD[block] = normalize_rows(torch.from_numpy(part)).numpy()
    return unit_RD


def _near_pairs(
    unit_RD: npt.NDArray[np.float32], row_Q: Ints, component_R: Ints, k: int, min_cosine: float
) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Pairs of a row and one of its `k` nearest rows in other components, with at least a cosine.

    The third result says for which rows all `k` have that cosine, so that there may be more.
    """
    search = TopK(cosine_scorer({"unit": unit_RD}, use_gpu=False), None, k)
    order = np.argsort(component_R, kind="stable")
    members = Jagged(order, offsets_from_lengths(np.bincount(component_R)))
    ones, others, alls = [], [], []
    largest = int(members.lengths[component_R[row_Q]].max(initial=1))
    step = max(1, min(_QUERIES, _EXCLUDED // largest))
    for start in range(0, len(row_Q), step):
        row_q = row_Q[start : start + step]
        queries = Jagged(row_q, np.arange(len(row_q) + 1))
        best = search(queries, np.full(len(row_q), -1), members.take(component_R[row_q]))
        is_near_qK = (best.row_BK >= 0) & (best.score_BK >= min_cosine)
        query, column = is_near_qK.nonzero()
        ones.append(row_q[query])
        others.append(best.row_BK[query, column])
        alls.append(is_near_qK[:, -1])
    nothing = np.zeros(0, np.int64)
    one_E, other_E = (np.concatenate([*parts, nothing]) for parts in (ones, others))
    return one_E, other_E, np.concatenate([*alls, np.zeros(0, bool)])
