"""The catalogue as a trained model sees it: tonight's items, and tonight's users."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.features.item_features import (
    FeatureTables,
    load_item_features,
    require_trained_identities,
)
from visrec.ids import index_in
from visrec.models.artifact import Artifact
from visrec.models.base import Catalogue
from visrec.sources.items import category_codes, read_items
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store


def feature_tables(
    artifact: Artifact, features: Store, text_features: Store | None
) -> FeatureTables:
    """The features that a model takes.

    Args:
        artifact: the model.
        features: the features directory of the pictures.
        text_features: the table of the texts; None where there is none.

    Raises:
        InputError: the model takes texts, and there is no directory of their features.
    """
    return FeatureTables.of(artifact.provenance.data.item_features, features, text_features)


def load_catalogue(
    artifact: Artifact,
    features: Store,
    items_table: InputTable | None,
    text_features: Store | None = None,
) -> tuple[pa.LargeStringArray, Catalogue]:
    """Loads all items that have features now.

    Args:
        artifact: the model.
        features: the features directory of the pictures.
        items_table: the items table, for a model that needs categories.
        text_features: the features directory of the texts, for a model that takes them.

    Raises:
        InputError: the features come from another network than the model's.
    """
    tables = feature_tables(artifact, features, text_features)
    data = artifact.provenance.data
    text = data.text
    require_trained_identities(
        tables, data.features_identity, None if text is None else text.identity
    )
    mean_text_T = None if text is None else np.array(text.mean, np.float16)
    loaded = load_item_features(tables, mean_text_T)
    item_ids = loaded.item_ids
    category_N = None
    if artifact.model.traits.requires_categories:
        category_N = category_codes(
            read_items(items_table, item_ids).category_N, artifact.categories
        )
    trained_N = index_in(item_ids, artifact.item_ids)
    return item_ids, Catalogue(loaded.feature_ND, trained_N, category_N, loaded.visual_dim)


def trained_users(trained_ids: pa.Array | None, user_ids: pa.Array) -> npt.NDArray[np.int64]:
    """(U,) the model's row of each of some users, -1 for users that training has not seen.

    Args:
        trained_ids: (T,) the users that have a row in the model, in the order of the rows; None if
            the model has no rows.
        user_ids: (U,) distinct.
    """
    row_U = np.full(len(user_ids), -1)
    if trained_ids is not None:
        # Arrow hashes the second argument. The users of a shard are fewer than those of training.
        user_T = index_in(trained_ids, user_ids)
        row_U[user_T[user_T >= 0]] = np.flatnonzero(user_T >= 0)
    return row_U
