"""The catalogue as a trained model sees it: tonight's items, and tonight's users."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.features.table import load_features, read_manifest, require_same_identity
from visrec.ids import index_in
from visrec.models.artifact import Artifact
from visrec.models.base import Catalogue
from visrec.sources.items import category_codes, read_items
from visrec.storage.store import Store


def load_catalogue(
    artifact: Artifact, features: Store, items_uri: str | None
) -> tuple[pa.LargeStringArray, Catalogue]:
    """Loads all items that have features now.

    Args:
        artifact: the model.
        features: the features directory.
        items_uri: the items table, for a model that needs categories.

    Raises:
        InputError: the features come from another backbone than the model's.
    """
    expected = artifact.provenance.data.features_identity
    require_same_identity(
        read_manifest(features).identity, expected, features, "model, or --features"
    )
    item_ids, feature_ND = load_features(features)
    category_N = None
    if artifact.model.traits.requires_categories:
        category_N = category_codes(read_items(items_uri, item_ids).category_N, artifact.categories)
    return item_ids, Catalogue(feature_ND, index_in(item_ids, artifact.item_ids), category_N)


def trained_users(artifact: Artifact, user_ids: pa.Array) -> npt.NDArray[np.int64]:
    """(U,) the model's rows of these users.

    The row is -1 for users that training has not seen, and for all users if the model has no rows.
    """
    trained_ids = artifact.user_ids
    if trained_ids is None:
        return np.full(len(user_ids), -1)
    return index_in(user_ids, trained_ids)
