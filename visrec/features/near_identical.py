"""Groups of items whose pictures are the same, up to rounding: near-identical features.

Two items are *near-identical* if the cosine of their features is within 1e-7 of 1. A group is a
connected component of the graph of near-identical pairs.

The search never compares all pairs. Unit vectors whose cosine is within 1e-7 of 1 are less than
`_MAX_GAP` apart along any direction, so only rows that are close along a few random directions are
compared.

Shapes: N items, D features, S rows with a feature, F distinct rows, K directions, E entries of the
grid or edges, B and M rows of a block, G rows with one code.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from visrec.scratch import row_blocks

_TOLERANCE = 1e-7
# Twice the largest distance of near-identical unit vectors, which leaves room for rounding.
_MAX_GAP = 2 * math.sqrt(2 * _TOLERANCE)
# A cell of the grid is 16 `_MAX_GAP` wide along each of 12 directions. A row is then in two cells
# on average, and of a million rows, few share a cell with one that is not near-identical.
_CELL_GAPS, _GRID_DIRECTIONS = 16, 12
_CELL_HASH_FACTOR = 0x2545F4914F6CDD1D
_BLOCK_ROWS = 4096  # rows at a time, whenever features are widened to 64 bits
_BAND_ROWS = 256  # rows that are compared with others in one matrix product

# Features are float16 or float32; NumPy's type parameters would only repeat that.
Features = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def near_identical_groups(feature_ND: Features) -> Ints:
    """The group of each item, by cosine alone.

    One row stands for all rows that are equal to the bit. These rows are compared within the cells
    of a grid over random directions. Near-identical unit vectors are in the same cell or in
    neighbouring ones. So that neighbours are compared, too, a row at the lower border of a cell is
    also entered in the cell below.

    Args:
        feature_ND: (N, D) features as they are stored.

    Returns:
        (N,) numbers of groups.
    """
    n = len(feature_ND)
    has_feature_N = np.concatenate(
        [feature_ND[block].any(axis=1) for block in row_blocks(n, _BLOCK_ROWS)]
    )
    row_S = np.flatnonzero(has_feature_N)  # zeros are near-identical to nothing
    _, position_F, distinct_S = np.unique(
        _hash_rows(feature_ND, row_S), return_index=True, return_inverse=True
    )
    row_F = row_S[position_F]
    projection_FK = _project(feature_ND, row_F, _GRID_DIRECTIONS)
    entry_E, cell_E = _grid_entries(projection_FK)
    pairs = _near_pairs(feature_ND, row_F[entry_E], cell_E, projection_FK[entry_E, 0])
    one_E, other_E = np.concatenate([pairs, [row_F[distinct_S], row_S]], axis=1)
    return graph_components(one_E, other_E, n)


def near_identical_groups_within(feature_ND: Features, code_N: npt.NDArray[np.int32]) -> Ints:
    """The group of each item, where only items with the same code are compared.

    Args:
        feature_ND: (N, D) features as they are stored.
        code_N: (N,) for example the cluster of each item.

    Returns:
        (N,) numbers of groups.
    """
    n = len(feature_ND)
    projection_N = _project(feature_ND, np.arange(n), 1)[:, 0]
    one_E, other_E = _near_pairs(feature_ND, np.arange(n), code_N, projection_N)
    return graph_components(one_E, other_E, n)


def graph_components(one_E: Ints, other_E: Ints, size: int) -> Ints:
    """(size,) the connected component of each node of a graph with E edges."""
    # Imported here: it takes 0.6 s, every job imports this module, and few jobs need it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(one_E), bool), (one_E, other_E)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1])


def _hash_rows(feature_ND: Features, row_S: Ints) -> npt.NDArray[np.uint64]:
    """(S,) 64-bit hashes of the bits of each row: sums with random weights."""
    words = np.dtype(f"u{feature_ND.dtype.itemsize}")
    weight_D = np.random.default_rng(1).integers(0, 2**64, feature_ND.shape[1], np.uint64)
    blocks = (row_S[block] for block in row_blocks(len(row_S), _BLOCK_ROWS))
    parts = [feature_ND[rows].view(words).astype(np.uint64) @ weight_D for rows in blocks]
    return np.concatenate([*parts, np.zeros(0, np.uint64)])


def _project(feature_ND: Features, row_S: Ints, directions: int) -> Floats:
    """(S, K) positions of the rows' unit vectors along random directions."""
    direction_KD = _unit(np.random.default_rng(0).normal(size=(directions, feature_ND.shape[1])))
    blocks = (row_S[block] for block in row_blocks(len(row_S), _BLOCK_ROWS))
    parts = [_unit(feature_ND[rows]) @ direction_KD.T for rows in blocks]
    return np.concatenate([*parts, np.zeros((0, directions))])


def _grid_entries(projection_FK: Floats) -> tuple[Ints, Ints]:
    """Which rows are in which cells of the grid.

    Returns:
        (E,) positions among the F rows, and (E,) hashes of the cell's coordinates. A row occurs
        once for each of its cells.
    """
    entry_E = np.arange(len(projection_FK))
    cell_E = np.zeros(len(projection_FK), np.int64)
    for projection_F in projection_FK.T:
        position_E = projection_F[entry_E] / (_CELL_GAPS * _MAX_GAP)
        coordinate_E = np.floor(position_E).astype(np.int64)
        at_border_E = position_E - coordinate_E < 1 / _CELL_GAPS
        entry_E = np.append(entry_E, entry_E[at_border_E])
        earlier_E = np.append(cell_E, cell_E[at_border_E])
        coordinate_E = np.append(coordinate_E, coordinate_E[at_border_E] - 1)
        cell_E = earlier_E * _CELL_HASH_FACTOR + coordinate_E
    return entry_E, cell_E


def _near_pairs(
    feature_ND: Features, row_E: Ints, code_E: npt.NDArray[Any], projection_E: Floats
) -> Ints:
    """Pairs of rows that connect all near-identical rows with the same code.

    Args:
        feature_ND: (N, D) features.
        row_E: (E,) rows of the features.
        code_E: (E,) only rows with equal codes are compared.
        projection_E: (E,) positions along one direction.

    Returns:
        (2, P) rows of the features.
    """
    order_E = np.lexsort((projection_E, code_E))
    code_E = code_E[order_E]
    starts = np.flatnonzero(np.append(True, code_E[1:] != code_E[:-1])).tolist()
    pairs = [np.zeros((2, 0), np.int64)]
    for start, stop in zip(starts, [*starts[1:], len(order_E)], strict=True):
        if stop - start < 2:
            continue
        row_G, projection_G = row_E[order_E[start:stop]], projection_E[order_E[start:stop]]
        for band in row_blocks(len(row_G), _BAND_ROWS):
            unit_BD = _unit(feature_ND[row_G[band]])
            end = int(np.searchsorted(projection_G, projection_G[band.stop - 1] + _MAX_GAP))
            for block in row_blocks(end - band.start, _BLOCK_ROWS):
                row_M = row_G[band.start :][block]
                is_near_BM = unit_BD @ _unit(feature_ND[row_M]).T >= 1 - _TOLERANCE
                pairs.append(_spanning_forest(is_near_BM, row_G[band], row_M))
    return np.concatenate(pairs, axis=1)


def _spanning_forest(is_near_BM: npt.NDArray[np.bool_], row_B: Ints, row_M: Ints) -> Ints:
    """(2, E) fewer than B + M pairs that connect the same rows as all near pairs do."""
    b, m = is_near_BM.nonzero()
    size = len(row_B) + len(row_M)
    _, first, component = np.unique(
        graph_components(b, len(row_B) + m, size), return_index=True, return_inverse=True
    )
    row = np.concatenate([row_B, row_M])
    edges = np.stack([row[first][component], row])
    return np.asarray(edges[:, edges[0] != edges[1]])


def _unit(feature_BD: Features) -> Floats:
    """(B, D) rows scaled to length 1, in float64; rows of zeros stay zero."""
    wide_BD = feature_BD.astype(np.float64)
    length_B = np.linalg.norm(wide_BD, axis=1, keepdims=True)
    return np.asarray(wide_BD / np.where(length_B == 0, 1.0, length_B))
