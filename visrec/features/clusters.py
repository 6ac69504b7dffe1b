"""Visual clusters: items that look alike, and items whose pictures are the same.

Features are z-scored, projected on their first principal components, and clustered by k-means, best
of several runs by silhouette. Two pictures are *near-identical* when they are in one cluster and
the cosine similarity of their features is within 1e-7 of 1.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.config import COUNTS, SEEDS, WIDTHS, check_fields, digest
from visrec.errors import StorageError
from visrec.features.table import load_features, read_manifest
from visrec.storage.store import Store

_VERSION = 1  # of the computation: another one makes another file
_ITEMS_A_CLUSTER = 10  # at least so many on average, or there are fewer clusters
_FULL_KMEANS = 100_000  # more items than this are clustered in mini-batches
_SILHOUETTE_ITEMS = 5_000  # the silhouette is a mean over at most this many items
_NEAR = 1e-7
_REACH = 2 * math.sqrt(2 * _NEAR)  # unit vectors so near are less apart, rounding allowed for
# The grid has cells so many times as wide as that, along so many directions. An item is in two
# cells on average, and few of a million share one with an item that does not look the same.
_CELL, _AXES = 16, 12
_ODD = 0x2545F4914F6CDD1D
_BLOCK = 4096  # rows at a time, wherever the features are widened to 32 or 64 bits
_BAND = 256  # rows whose pairs are looked at together

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How items are clustered by what they look like.

    Attributes:
        clusters: at most so many; fewer where there are not ten items for each.
        dimensions: principal components that are kept; fewer where there are fewer.
        runs: of k-means, from as many seeds; the best by silhouette is kept.
        seed: of the runs.
    """

    clusters: int = 100
    dimensions: int = 200
    runs: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self, "clusters", clusters=COUNTS, dimensions=WIDTHS, runs="[1, 1000]", seed=SEEDS
        )


@dataclass(frozen=True)
class Clusters:
    """What looks alike in a catalogue of N items.

    Args:
        cluster_N: (N,) int32, 0 to C - 1, each of which has an item.
        group_N: (N,) int32, 0 to G - 1: items of one group have near-identical pictures.
        visual_NP: (N, P) float32, where cosine similarity says how alike two items look: vectors of
            length 1, in the space that was clustered.
        silhouette: of the clusters, NaN where there is one cluster, or one item in each.
    """

    cluster_N: npt.NDArray[np.int32]
    group_N: npt.NDArray[np.int32]
    visual_NP: npt.NDArray[np.float32]
    silhouette: float

    @property
    def count(self) -> int:
        """C."""
        return int(self.cluster_N.max()) + 1


def load_clusters(
    features: Store, config: ClusterConfig, feature_ND: npt.NDArray[np.float16] | None = None
) -> Clusters:
    """The clusters of a features directory, in the order of its sorted item ids.

    They are kept beside the features, in a file named by the digests of the features and of the
    settings, so that two jobs share them and new features make new ones.

    Args:
        features: the features directory.
        config: how.
        feature_ND: its features, if they are at hand.
    """
    name = f"_clusters-{read_manifest(features).digest[:16]}-{digest(config, _VERSION)}.parquet"
    if features.exists(name):
        return _from_table(features.read_table(name))
    clusters = find_clusters(
        load_features(features)[1] if feature_ND is None else feature_ND, config
    )
    with suppress(StorageError):  # features that may only be read are clustered anew each time
        features.write_table(name, _to_table(clusters))
    return clusters


def _to_table(clusters: Clusters) -> pa.Table:
    width = clusters.visual_NP.shape[1]
    look = pa.FixedSizeListArray.from_arrays(pa.array(clusters.visual_NP.reshape(-1)), width)
    table = pa.table({"cluster": clusters.cluster_N, "group": clusters.group_N, "look": look})
    return table.replace_schema_metadata({"silhouette": repr(clusters.silhouette)})


def _from_table(table: pa.Table) -> Clusters:
    cluster, group, look = (table[name].combine_chunks() for name in ("cluster", "group", "look"))
    return Clusters(
        cluster_N=cluster.to_numpy(),
        group_N=group.to_numpy(),
        visual_NP=look.flatten().to_numpy().reshape(len(look), -1),
        silhouette=float(table.schema.metadata[b"silhouette"]),
    )


def find_clusters(feature_ND: npt.NDArray[np.float16], config: ClusterConfig) -> Clusters:
    """Clusters N items; the same on any number of cores.

    Args:
        feature_ND: (N, D).
        config: how.
    """
    # It comes with scikit-learn, which takes seconds to import: only who clusters waits for it.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):  # the sums of several threads come in any order
        point_NP = _principal(feature_ND, config.dimensions)
        cluster_N, silhouette = _best_of_runs(point_NP, config)
        length_N = np.linalg.norm(point_NP, axis=1, keepdims=True)
        return Clusters(
            cluster_N=cluster_N,
            group_N=_near_identical(feature_ND, cluster_N),
            visual_NP=np.asarray(point_NP / np.where(length_N == 0, 1, length_N), np.float32),
            silhouette=silhouette,
        )


def _best_of_runs(
    point_NP: npt.NDArray[np.float32], config: ClusterConfig
) -> tuple[npt.NDArray[np.int32], float]:
    """(N,) clusters, and their silhouette."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    n = len(point_NP)
    count = min(config.clusters, max(1, n // _ITEMS_A_CLUSTER))
    kind = KMeans if n <= _FULL_KMEANS else MiniBatchKMeans
    runs = []
    for run in range(config.runs):
        found_N = kind(count, n_init=1, random_state=config.seed + run).fit_predict(point_NP)
        cluster_N = np.unique(found_N, return_inverse=True)[1]  # no cluster without an item
        runs.append((cluster_N.astype(np.int32), _silhouette(point_NP, cluster_N, config.seed)))
    return max(runs, key=lambda found: np.nan_to_num(found[1], nan=-1))


def _silhouette(
    point_NP: npt.NDArray[np.float32], cluster_N: npt.NDArray[np.int64], seed: int
) -> float:
    from sklearn.metrics import silhouette_score

    drawn = np.random.default_rng(seed).permutation(len(point_NP))[:_SILHOUETTE_ITEMS]
    if not 1 < len(np.unique(cluster_N[drawn])) < len(drawn):
        return float("nan")
    return float(silhouette_score(point_NP[drawn], cluster_N[drawn]))


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _principal(feature_ND: npt.NDArray[np.float16], most: int) -> npt.NDArray[np.float32]:
    """(N, P) z-scored features on their first principal components.

    From the (D, D) correlations, summed in blocks: no wide copy of all features is made.
    """
    n, dim = feature_ND.shape
    mean_D, square_DD = np.zeros(dim), np.zeros((dim, dim))
    for block in _blocks(n, _BLOCK):
        mean_D += feature_ND[block].sum(axis=0, dtype=np.float64) / n
    for block in _blocks(n, _BLOCK):
        centred_BD = feature_ND[block] - mean_D
        square_DD += centred_BD.T @ centred_BD / n
    scale_D = np.sqrt(np.diag(square_DD))
    scale_D[scale_D == 0] = 1.0
    _, axes_DD = np.linalg.eigh(square_DD / np.outer(scale_D, scale_D))
    axes_DP = axes_DD[:, ::-1][:, : min(most, n)]
    point_NP = np.empty((n, axes_DP.shape[1]), np.float32)
    for block in _blocks(n, _BLOCK):
        point_NP[block] = ((feature_ND[block] - mean_D) / scale_D) @ axes_DP
    return point_NP


def _near_identical(
    feature_ND: npt.NDArray[np.float16], cluster_N: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """(N,) the group of each item: the connected parts of the graph of near-identical pairs."""
    n = len(feature_ND)
    along_N = _along(feature_ND, np.arange(n), 1)[:, 0]
    one, two = _near_pairs(feature_ND, np.arange(n), cluster_N, along_N)
    return graph_components(one, two, n).astype(np.int32)


def near_identical_groups(feature_ND: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """(N,) the group of each item where nothing is clustered: the cosine alone decides.

    Of features that are equal to the bit one stands for all. The others are compared within the
    cells of a grid over some directions: unit vectors that are near-identical are in one cell, or
    in two that touch, and an item at the lower border of a cell is in the one below as well.

    Args:
        feature_ND: (N, D) as they are stored.
    """
    n = len(feature_ND)
    some = np.concatenate([feature_ND[block].any(axis=1) for block in _blocks(n, _BLOCK)])
    row_S = np.flatnonzero(some)  # zeros are like nothing
    _, place, of_S = np.unique(_hashes(feature_ND, row_S), return_index=True, return_inverse=True)
    first_F = row_S[place]
    along_FK = _along(feature_ND, first_F, _AXES)
    row_E, cell_E = np.arange(len(first_F)), np.zeros(len(first_F), np.int64)
    for along_F in along_FK.T:
        place_E = along_F[row_E] / (_CELL * _REACH)
        number_E = np.floor(place_E).astype(np.int64)
        low_E = place_E - number_E < 1 / _CELL
        # The number of a cell is a hash of its numbers along the directions.
        row_E, before_E = np.append(row_E, row_E[low_E]), np.append(cell_E, cell_E[low_E])
        cell_E = before_E * _ODD + np.append(number_E, number_E[low_E] - 1)
    pairs = _near_pairs(feature_ND, first_F[row_E], cell_E, along_FK[row_E, 0])
    one, two = np.concatenate([pairs, [first_F[of_S], row_S]], axis=1)
    return graph_components(one, two, n)


def _hashes(feature_ND: npt.NDArray[Any], row_S: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """(S,) a number of 64 bits for what each row's bits are: a sum by random weights."""
    words = np.dtype(f"u{feature_ND.dtype.itemsize}")
    weight_D = np.random.default_rng(1).integers(0, 2**64, feature_ND.shape[1], np.uint64)
    blocks = (row_S[block] for block in _blocks(len(row_S), _BLOCK))
    parts = [feature_ND[rows].view(words).astype(np.uint64) @ weight_D for rows in blocks]
    return np.concatenate([*parts, np.zeros(0, np.uint64)])


def _along(feature_ND: npt.NDArray[Any], row_S: npt.NDArray[np.int64], directions: int) -> Floats:
    """(S, K) where unit vectors lie along directions drawn at random."""
    direction_KD = _unit(np.random.default_rng(0).normal(size=(directions, feature_ND.shape[1])))
    blocks = (row_S[block] for block in _blocks(len(row_S), _BLOCK))
    parts = [_unit(feature_ND[rows]) @ direction_KD.T for rows in blocks]
    return np.concatenate([*parts, np.zeros((0, directions))])


def _near_pairs(
    feature_ND: npt.NDArray[Any],
    row_E: npt.NDArray[np.int64],
    code_E: npt.NDArray[Any],
    along_E: Floats,
) -> npt.NDArray[np.int64]:
    """(2, P) pairs that connect all rows that are near-identical and of one code.

    Unit vectors whose cosine is within 1e-7 of 1 are less than `_REACH` apart along any direction,
    so that only pairs that are near each other along one are compared.
    """
    order = np.lexsort((along_E, code_E))
    code_E = code_E[order]
    edges = np.flatnonzero(np.append(True, code_E[1:] != code_E[:-1])).tolist()
    pairs = [np.zeros((2, 0), np.int64)]
    for start, stop in zip(edges, [*edges[1:], len(order)], strict=True):
        if stop - start < 2:
            continue
        row_K, along_K = row_E[order[start:stop]], along_E[order[start:stop]]
        for band in _blocks(len(row_K), _BAND):
            unit_BD = _unit(feature_ND[row_K[band]])
            end = int(np.searchsorted(along_K, along_K[band.stop - 1] + _REACH))
            for other in _blocks(end - band.start, _BLOCK):
                row_M = row_K[band.start :][other]
                near_BM = unit_BD @ _unit(feature_ND[row_M]).T >= 1 - _NEAR
                pairs.append(_forest(near_BM, row_K[band], row_M))
    return np.concatenate(pairs, axis=1)


def graph_components(
    one_E: npt.NDArray[np.int64], two_E: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.int64]:
    """(size,) the connected part that each node is in, by E edges."""
    # Imported here: every job imports this module, and few look for what is alike (.6 s).
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(one_E), bool), (one_E, two_E)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1])


def _forest(
    near_BM: npt.NDArray[np.bool_], row_B: npt.NDArray[np.int64], row_M: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """(2, E) edges that connect what the pairs connect, fewer than B + M of them."""
    b, m = near_BM.nonzero()
    size = len(row_B) + len(row_M)
    _, first, part = np.unique(
        graph_components(b, len(row_B) + m, size), return_index=True, return_inverse=True
    )
    row = np.concatenate([row_B, row_M])
    edges = np.stack([row[first][part], row])
    return np.asarray(edges[:, edges[0] != edges[1]])


def _unit(feature_BD: npt.NDArray[Any]) -> Floats:
    """Rows of length 1 in float64; zeros stay zeros, and are like nothing."""
    wide_BD = feature_BD.astype(np.float64)
    length_B = np.linalg.norm(wide_BD, axis=1, keepdims=True)
    return np.asarray(wide_BD / np.where(length_B == 0, 1.0, length_B))
