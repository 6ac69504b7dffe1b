"""Groups of near-duplicate pictures: the connected parts of the graph of pairs above a cosine.

Pairs are never kept: of pictures that are equal to the bit one stands for all, and of the others
each asks for its nearest ones. Who has more near-duplicates than were asked for looks for one
outside its own part, until there is none, so that memory grows with the items alone.
"""

import numpy as np
import numpy.typing as npt
import torch

from visrec.features.clusters import connected_parts
from visrec.hashes import hash_rows
from visrec.jagged import Jagged, offsets_of
from visrec.retrieval.similar import neighbours
from visrec.retrieval.topk import ITEM_COLUMNS, TopK, unit_rows

_NEAREST = 16  # pictures that each one asks for at first
_QUERIES = 4096  # pictures whose nearest ones are looked for together
_CLOSED = 2**21  # items that all of them together leave out
_ROUNDING = 1e-6  # by which the cosine of two float32 vectors of length 1 may be off
Ints = npt.NDArray[np.int64]


def near_duplicate_groups(
    feature_ND: npt.NDArray[np.generic], available_N: npt.NDArray[np.bool_], likeness: float
) -> Ints:
    """(N,) the group of each item, named by its lowest row; -1 for an item that is in none.

    Args:
        feature_ND: the pictures' features.
        available_N: items that can be in a list at all; the others are in no group.
        likeness: cosine from which two pictures are the same.
    """
    row_M, first_M = _distinct(feature_ND, np.flatnonzero(available_N))
    row_R = np.unique(first_M)  # one of each picture
    part_R = _parts(feature_ND, row_R, likeness - _ROUNDING)
    # Of a part the lowest row: rows rise, so the first that is met.
    _, place_P, part_R = np.unique(part_R, return_index=True, return_inverse=True)
    group_M = row_R[place_P][part_R][np.searchsorted(row_R, first_M)]
    several_M = np.bincount(group_M, minlength=len(feature_ND))[group_M] > 1
    group_N = np.full(len(feature_ND), -1)
    group_N[row_M[several_M]] = group_M[several_M]
    return group_N


def _distinct(feature_ND: npt.NDArray[np.generic], row_M: Ints) -> tuple[Ints, Ints]:
    """Rows that are not zero, and for each the first row with the same feature, to the bit."""
    blocks = [row_M[s : s + ITEM_COLUMNS] for s in range(0, len(row_M), ITEM_COLUMNS)]
    some_M = [feature_ND[block].any(axis=1) for block in blocks]  # zeros are like nothing
    row_M = row_M[np.concatenate([*some_M, np.zeros(0, bool)])]
    hash_M = hash_rows(feature_ND, row_M)
    _, place_H, of_M = np.unique(hash_M, return_index=True, return_inverse=True)
    return row_M, row_M[place_H][of_M]


def _parts(feature_ND: npt.NDArray[np.generic], row_R: Ints, least: float) -> Ints:
    """(R,) the connected part of each of these rows."""
    unit_Rd = np.empty((len(row_R), feature_ND.shape[1]), np.float32)
    for start in range(0, len(row_R), ITEM_COLUMNS):
        part = np.asarray(feature_ND[row_R[start : start + ITEM_COLUMNS]], np.float32)
        unit_Rd[start : start + ITEM_COLUMNS] = unit_rows(torch.from_numpy(part)).numpy()
    every = np.arange(len(row_R))
    one_E, other_E, more_R = _near(unit_Rd, every, every, _NEAREST, least)
    part_R = connected_parts(one_E, other_E, len(row_R))
    # A pair that is missing is of two parts and of two rows that have more than was asked for. Of
    # the largest part none needs to look: its pairs are found from the other side.
    open_r = every[more_R]
    while len(open_r):
        sizes = np.bincount(part_R[open_r])
        asking = np.flatnonzero(part_R[open_r] != sizes.argmax())
        if not len(asking):
            break
        one_e, other_e, found_r = _near(unit_Rd[open_r], asking, part_R[open_r], 1, least)
        edges = (np.append(one_E, open_r[one_e]), np.append(other_E, open_r[other_e]))
        one_E, other_E = edges
        part_R = connected_parts(one_E, other_E, len(row_R))
        done = np.zeros(len(open_r), bool)
        done[asking[~found_r]] = True  # nothing outside its part, and parts only grow
        open_r = open_r[~done]
    return part_R


def _near(
    unit_Rd: npt.NDArray[np.float32], row_Q: Ints, part_R: Ints, most: int, least: float
) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Pairs of a row and one of its `most` nearest rows of other parts that is near enough.

    And for each of the rows whether all of those are near, so that there may be more.
    """
    search = TopK(neighbours({"unit": unit_Rd}, use_gpu=False), None, most)
    order = np.argsort(part_R, kind="stable")
    members = Jagged(order, offsets_of(np.bincount(part_R)))
    ones, others, alls = [], [], []
    step = max(1, min(_QUERIES, _CLOSED // int(members.lengths[part_R[row_Q]].max(initial=1))))
    for start in range(0, len(row_Q), step):
        row_q = row_Q[start : start + step]
        itself = Jagged(row_q, np.arange(len(row_q) + 1))
        best = search(itself, np.full(len(row_q), -1), members.take(part_R[row_q]))
        near_qK = (best.row_BK >= 0) & (best.score_BK >= least)
        query, place = near_qK.nonzero()
        ones.append(row_q[query])
        others.append(best.row_BK[query, place])
        alls.append(near_qK[:, -1])
    nothing = np.zeros(0, np.int64)
    one_E, other_E = (np.concatenate([*parts, nothing]) for parts in (ones, others))
    return one_E, other_E, np.concatenate([*alls, np.zeros(0, bool)])
