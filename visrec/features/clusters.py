"""Visual clusters: items that look alike.

Features are z-scored, projected on their first principal components, and clustered by k-means; the
best of several runs by silhouette is kept. Near-identical pictures are grouped within each cluster,
see `visrec.features.near_identical`.

Shapes: N items, D features, P principal components, C clusters, B rows of a block.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.config import COUNTS, SEEDS, WIDTHS, check_fields, digest
from visrec.errors import StorageError
from visrec.features.near_identical import near_identical_groups_within
from visrec.features.table import load_features, read_manifest
from visrec.scratch import row_blocks
from visrec.storage.store import Store

_VERSION = 2  # of the computation and of the stored columns: another version makes another file
_MIN_ITEMS_PER_CLUSTER = 10  # on average; a small catalogue gets fewer clusters
_FULL_KMEANS_ITEMS = 100_000  # a larger catalogue is clustered in mini-batches
_SILHOUETTE_ITEMS = 5_000  # the silhouette is a mean over at most this many items
_BLOCK_ROWS = 4096  # at a time, whenever features are widened to 32 or 64 bits


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How items are clustered by what they look like.

    Attributes:
        clusters: the largest number of clusters; fewer if there are not ten items for each.
        dimensions: number of principal components; fewer if there are fewer.
        runs: number of k-means runs, each from its own seed; the best by silhouette is kept.
        seed: the seed of the first run.
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
    """Which of N items look alike.

    Attributes:
        cluster_N: (N,) int32 from 0 to C - 1; every cluster has an item.
        group_N: (N,) int32 from 0; items of one group have near-identical pictures.
        visual_NP: (N, P) float32 unit vectors in the space that was clustered; their cosine says
            how alike two items look.
        silhouette: the silhouette of the clusters; NaN if there is one cluster, or one item in
            each.
    """

    cluster_N: npt.NDArray[np.int32]
    group_N: npt.NDArray[np.int32]
    visual_NP: npt.NDArray[np.float32]
    silhouette: float

    @property
    def count(self) -> int:
        """The number of clusters (C)."""
        return int(self.cluster_N.max()) + 1


def load_clusters(
    features: Store, config: ClusterConfig, feature_ND: npt.NDArray[np.float16] | None = None
) -> Clusters:
    """The clusters of a features directory, in the order of its sorted item ids.

    They are stored next to the features, in a file named by the digests of features and config, so
    that two jobs share them and new features get new ones.

    Args:
        features: the features directory.
        config: how to cluster.
        feature_ND: (N, D) its features, if they are in memory already.
    """
    name = f"_clusters-{read_manifest(features).digest[:16]}-{digest(config, _VERSION)}.parquet"
    if features.exists(name):
        return _from_table(features.read_table(name))
    if feature_ND is None:
        feature_ND = load_features(features)[1]
    clusters = find_clusters(feature_ND, config)
    with suppress(StorageError):  # a directory without write access is clustered anew each time
        features.write_table(name, _to_table(clusters))
    return clusters


def _to_table(clusters: Clusters) -> pa.Table:
    width = clusters.visual_NP.shape[1]
    visual = pa.FixedSizeListArray.from_arrays(pa.array(clusters.visual_NP.reshape(-1)), width)
    table = pa.table({"cluster": clusters.cluster_N, "group": clusters.group_N, "visual": visual})
    return table.replace_schema_metadata({"silhouette": repr(clusters.silhouette)})


def _from_table(table: pa.Table) -> Clusters:
    names = ("cluster", "group", "visual")
    cluster, group, visual = (table[name].combine_chunks() for name in names)
    return Clusters(
        cluster_N=cluster.to_numpy(),
        group_N=group.to_numpy(),
        visual_NP=visual.flatten().to_numpy().reshape(len(visual), -1),
        silhouette=float(table.schema.metadata[b"silhouette"]),
    )


def find_clusters(feature_ND: npt.NDArray[np.float16], config: ClusterConfig) -> Clusters:
    """Clusters N items; the result does not depend on the number of cores.

    Args:
        feature_ND: (N, D) features.
        config: how to cluster.
    """
    # It is installed with scikit-learn, which takes seconds to import: only clustering pays them.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):  # several threads would add up in any order
        point_NP = _principal_components(feature_ND, config.dimensions)
        cluster_N, silhouette = _best_of_runs(point_NP, config)
        length_N = np.linalg.norm(point_NP, axis=1, keepdims=True)
        return Clusters(
            cluster_N=cluster_N,
            group_N=near_identical_groups_within(feature_ND, cluster_N).astype(np.int32),
            visual_NP=np.asarray(point_NP / np.where(length_N == 0, 1, length_N), np.float32),
            silhouette=silhouette,
        )


def _best_of_runs(
    point_NP: npt.NDArray[np.float32], config: ClusterConfig
) -> tuple[npt.NDArray[np.int32], float]:
    """(N,) clusters of the run with the highest silhouette, and that silhouette."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    n = len(point_NP)
    count = min(config.clusters, max(1, n // _MIN_ITEMS_PER_CLUSTER))
    kmeans = KMeans if n <= _FULL_KMEANS_ITEMS else MiniBatchKMeans
    runs = []
    for run in range(config.runs):
        label_N = kmeans(count, n_init=1, random_state=config.seed + run).fit_predict(point_NP)
        cluster_N = np.unique(label_N, return_inverse=True)[1]  # drops clusters without an item
        runs.append((cluster_N.astype(np.int32), _silhouette(point_NP, cluster_N, config.seed)))
    return max(runs, key=lambda run: np.nan_to_num(run[1], nan=-1))


def _silhouette(
    point_NP: npt.NDArray[np.float32], cluster_N: npt.NDArray[np.int64], seed: int
) -> float:
    from sklearn.metrics import silhouette_score

    sample = np.random.default_rng(seed).permutation(len(point_NP))[:_SILHOUETTE_ITEMS]
    if not 1 < len(np.unique(cluster_N[sample])) < len(sample):
        return float("nan")
    return float(silhouette_score(point_NP[sample], cluster_N[sample]))


def _principal_components(
    feature_ND: npt.NDArray[np.float16], most: int
) -> npt.NDArray[np.float32]:
    """(N, P) z-scored features, projected on their first principal components.

    The components come from the (D, D) correlations, summed in blocks, so that no wide copy of all
    features is made.
    """
    n, dim = feature_ND.shape
    mean_D, covariance_DD = np.zeros(dim), np.zeros((dim, dim))
    for block in row_blocks(n, _BLOCK_ROWS):
        mean_D += feature_ND[block].sum(axis=0, dtype=np.float64) / n
    for block in row_blocks(n, _BLOCK_ROWS):
        centred_BD = feature_ND[block] - mean_D
        covariance_DD += centred_BD.T @ centred_BD / n
    scale_D = np.sqrt(np.diag(covariance_DD))
    scale_D[scale_D == 0] = 1.0
    _, axes_DD = np.linalg.eigh(covariance_DD / np.outer(scale_D, scale_D))
    axes_DP = axes_DD[:, ::-1][:, : min(most, n)]
    point_NP = np.empty((n, axes_DP.shape[1]), np.float32)
    for block in row_blocks(n, _BLOCK_ROWS):
        point_NP[block] = ((feature_ND[block] - mean_D) / scale_D) @ axes_DP
    return point_NP
