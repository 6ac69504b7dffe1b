"""The visual clusters in the report: the pictures that the backbone finds alike.

Shapes: N items, C clusters, K items of one cluster, P width of the clustered vectors.
"""

import numpy as np
import numpy.typing as npt

from visrec.errors import InputError
from visrec.evaluation.cards import make_cards
from visrec.evaluation.data import EvaluationData
from visrec.evaluation.report import ClusterRow, VisualClusters
from visrec.features.clusters import ClusterConfig, Clusters, load_clusters
from visrec.sources.images import list_pictures
from visrec.storage.store import Store

_CLUSTERS = 24
_PICTURES = 8


def make_clusters(
    data: EvaluationData, features: Store, images: str, items_uri: str | None
) -> VisualClusters | None:
    """The largest clusters, each with the pictures nearest to its centre; None without pictures.

    Args:
        data: as evaluation prepared it.
        features: the features directory that it was prepared from.
        images: where the pictures are.
        items_uri: an items table with titles, or None.
    """
    try:
        any(page.num_rows for page in list_pictures(images))  # looks no further than the first
    except InputError:
        return None  # there may be no pictures: features can be imported from a table
    clusters = load_clusters(features, ClusterConfig())
    size_C = np.bincount(clusters.cluster_N)
    largest = np.argsort(-size_C, kind="stable")[:_CLUSTERS]
    members = [_nearest_centre(clusters, int(c)) for c in largest]
    cards = make_cards(np.unique(np.concatenate(members)), data.item_ids, images, items_uri)
    return VisualClusters(
        count=clusters.count,
        rows=[
            ClusterRow(
                size=int(size_C[c]),
                share=float(size_C[c] / len(data.item_ids)),
                items=[cards[row] for row in rows],
            )
            for c, rows in zip(largest, members, strict=True)
        ],
    )


def _nearest_centre(clusters: Clusters, cluster: int) -> npt.NDArray[np.int64]:
    """Rows of a cluster by decreasing similarity to its mean, one of each near-duplicate group."""
    row_K = np.flatnonzero(clusters.cluster_N == cluster)
    visual_KP = clusters.visual_NP[row_K]
    row_K = row_K[np.argsort(-(visual_KP @ visual_KP.mean(axis=0)), kind="stable")]
    _, first = np.unique(clusters.group_N[row_K], return_index=True)
    return np.asarray(row_K[np.sort(first)][:_PICTURES])
