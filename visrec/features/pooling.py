"""Several pictures of an item as one: their feature, their digest and their source.

Shapes: V views of an item, D features.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.ids import TEXT
from visrec.sources.views import item_starts


def pool_features(feature_VD: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
    """(D,) the feature of an item from those of its views.

    It has the direction of the mean of the unit vectors, so that no view counts more than another,
    and the mean length of the views, so that items with many views and with one can be compared.
    The feature of a single view stays as it is.
    """
    if len(feature_VD) == 1:
        return np.asarray(feature_VD[0])
    wide_VD = feature_VD.astype(np.float64)
    length_V = np.linalg.norm(wide_VD, axis=1)
    mean_D = (wide_VD / np.where(length_V == 0, 1, length_V)[:, None]).mean(axis=0)
    scale = length_V.mean() / (np.linalg.norm(mean_D) or 1)
    return np.asarray((mean_D * scale).astype(np.float16))


def combine_digests(texts: Sequence[str]) -> str:
    """One digest for the digests, or the sources, of an item's views, in their order."""
    return texts[0] if len(texts) == 1 else hashlib.sha256("\0".join(texts).encode()).hexdigest()


def item_sources(views: pa.Table) -> pa.Table:
    """Item id and combined source of each item; null if the source of a view is unknown.

    Args:
        views: item_id and source of pictures, whose items follow one another.
    """
    starts = item_starts(views["item_id"])
    ends = np.append(starts[1:], len(views))
    first = views.select(["item_id", "source"]).take(pa.array(starts)).combine_chunks()
    several = np.flatnonzero(ends - starts > 1)
    if not len(several):
        return first
    sources = first["source"].to_pylist()
    for n in several:
        found = views["source"][starts[n] : ends[n]].to_pylist()
        sources[n] = None if None in found else combine_digests(found)
    return first.set_column(1, "source", pa.array(sources, TEXT))
