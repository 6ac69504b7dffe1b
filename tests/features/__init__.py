"""Feature tables for tests that need one, committed as extraction commits them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.features.commit import TableContent, commit_table, write_part
from visrec.features.table import Identity, Manifest
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store


def feature_identity(dim: int) -> Identity:
    """The identity of the features that `write_features` commits."""
    return Identity(
        backbone="b", weights_digest="w", preprocessing={}, precision="float32", dim=dim
    )


def write_features(
    store: Store,
    item_ids: Sequence[str],
    feature_ND: npt.NDArray[np.float16],
    *,
    rows_per_part: int | None = None,
) -> Manifest:
    """Commits a features directory with these items, in one part or in parts of some rows."""
    identity = feature_identity(feature_ND.shape[1])
    rows = pa.table({"item_id": item_ids, "digest": item_ids, "source": item_ids})
    files, step = {}, rows_per_part or len(rows)
    for start in range(0, len(rows), step):
        part = rows.slice(start, step)
        files[write_part(store, part, feature_ND[start : start + step], identity)] = len(part)
    content = TableContent(
        identity=identity, rows=rows, files=files, rejected=REJECTED.empty_table(), settings={}
    )
    return commit_table(store, content, None)
