"""The visual clusters in the report: the pictures that the backbone finds alike.

Shapes: N items, C clusters, K items of one cluster, P width of the clustered vectors.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError, StorageError
from visrec.evaluation.report_content import ClusterRow, ItemCard, VisualClusters
from visrec.features.clusters import ClusterConfig, Clusters, load_clusters
from visrec.features.table import load_features
from visrec.sources.images import PictureSource, list_pictures
from visrec.storage.store import Store

_CLUSTERS = 24
_PICTURES = 8


def find_clusters(features: Store, images: PictureSource) -> VisualClusters | None:
    """The largest clusters, each with the items nearest to its centre; None without pictures.

    Args:
        features: the features directory.
        images: where the pictures are.

    Returns:
        The clusters; their items have neither titles nor pictures.
    """
    try:
        any(page.num_rows for page in list_pictures(images))  # looks no further than the first
    except (InputError, StorageError):
        # There may be no pictures, because features can be imported from a table. Why pictures that
        # exist cannot be listed, `add_pictures` says.
        return None
    item_ids, feature_ND = load_features(features)
    clusters = load_clusters(features, ClusterConfig(), feature_ND)
    size_C = np.bincount(clusters.cluster_N)
    largest = np.argsort(-size_C, kind="stable")[:_CLUSTERS]
    return VisualClusters(
        count=clusters.count,
        rows=[
            ClusterRow(
                size=int(size_C[c]),
                share=float(size_C[c] / len(item_ids)),
                items=[
                    ItemCard(item_id=key)
                    for key in item_ids.take(pa.array(_nearest_centre(clusters, c))).to_pylist()
                ],
            )
            for c in largest.tolist()
        ],
    )


def _nearest_centre(clusters: Clusters, cluster: int) -> npt.NDArray[np.int64]:
    """Rows of a cluster by decreasing similarity to its mean, one of each near-identical group."""
    row_K = np.flatnonzero(clusters.cluster_N == cluster)
    visual_KP = clusters.visual_NP[row_K]
    row_K = row_K[np.argsort(-(visual_KP @ visual_KP.mean(axis=0)), kind="stable")]
    _, first = np.unique(clusters.group_N[row_K], return_index=True)
    return np.asarray(row_K[np.sort(first)][:_PICTURES])
