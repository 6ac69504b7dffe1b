"""Which features a model takes: those of the pictures, of the texts, or both side by side.

Every model scales each dimension of a feature by its own mean and standard deviation, so pictures
and texts are scaled alike, and a model sees one wider feature. With both, the catalogue is that of
the pictures. An item without a text gets the mean text feature of the items that the model was
trained on. That is zero once it is scaled: the missing text says nothing about the item, and the
value stays the same as long as the model serves.

Shapes: N items, P and T dimensions of the features of pictures and texts, D = P + T.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError
from visrec.features.table import (
    Identity,
    load_features,
    read_manifest,
    require_same_identity,
)
from visrec.ids import index_in
from visrec.scratch import row_blocks, scratch_array
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.storage.store import Store

ItemFeatures = Literal["pictures", "text", "both"]
_BLOCK_ROWS = 65_536  # items at a time where texts are put beside pictures


@dataclass(frozen=True, kw_only=True)
class FeatureTables:
    """Where the features of a model are.

    Attributes:
        catalogue: the directory of the table whose items are the catalogue.
        text: the directory of the texts' features, as a second table; None where the model takes
            one.
    """

    catalogue: Store
    text: Store | None = None

    @staticmethod
    def of(kind: ItemFeatures, pictures: Store, text: Store | None) -> "FeatureTables":
        """The tables for a kind of model, out of a workspace's two.

        Raises:
            InputError: it takes texts, and there is no directory of their features.
        """
        if kind == "pictures":
            return FeatureTables(catalogue=pictures)
        if text is None:
            raise InputError(
                "Found a model that takes texts, and no features of texts; expected the output of "
                "`visrec extract` with --text.model. Name it with --text_features.",
                key="text_features",
            )
        if kind == "text":
            return FeatureTables(catalogue=text)
        return FeatureTables(catalogue=pictures, text=text)

    @property
    def text_digest(self) -> str | None:
        """The digest of the texts' table; None without one."""
        return None if self.text is None else read_manifest(self.text).digest


@dataclass(frozen=True)
class LoadedFeatures:
    """The features of a catalogue.

    Attributes:
        item_ids: (N,) sorted.
        feature_ND: (N, D) float16.
        visual_dim: how many leading dimensions describe appearance; the rest are of texts.
        mean_text_T: (T,) what items without a text have; None unless texts are added to pictures.
        without_text: number of these items.
    """

    item_ids: pa.LargeStringArray
    feature_ND: npt.NDArray[np.float16]
    visual_dim: int
    mean_text_T: npt.NDArray[np.float16] | None = None
    without_text: int = 0


def load_item_features(
    tables: FeatureTables, mean_text_T: npt.NDArray[np.float16] | None = None
) -> LoadedFeatures:
    """Loads what a model takes, in the order of the item ids.


    Args:
        tables: where to read.
        mean_text_T: (T,) as training found it; None in training, which computes it here.

    Raises:
        InputError: a table is missing, or no item of the catalogue has a text.
    """
    item_ids, feature_ND = load_features(tables.catalogue)
    if tables.text is None:
        return LoadedFeatures(item_ids, feature_ND, feature_ND.shape[1])
    text_ids, text_XT = load_features(tables.text)
    row_N = index_in(item_ids, text_ids)
    has_text_N = row_N >= 0
    if not has_text_N.any():
        raise InputError(
            f"None of the {len(item_ids):,} items with a picture has a text in "
            f"{tables.text.root} (--text_features); expected the same item ids. "
            f"{explain_id_mismatch(item_ids, 'The first', text_ids, 'the second')}",
            path=tables.text.root,
            key="text_features",
        )
    if mean_text_T is None:
        mean_text_T = _mean_of_rows(text_XT, row_N[has_text_N])
    visual_dim = feature_ND.shape[1]
    both_ND = scratch_array((len(item_ids), visual_dim + text_XT.shape[1]), np.float16)
    for rows in row_blocks(len(item_ids), _BLOCK_ROWS):
        has_text_B = has_text_N[rows]
        both_ND[rows, :visual_dim] = feature_ND[rows]
        both_ND[rows, visual_dim:] = np.where(
            has_text_B[:, None], text_XT[row_N[rows]], mean_text_T
        )
    without_text = int((~has_text_N).sum())
    return LoadedFeatures(item_ids, both_ND, visual_dim, mean_text_T, without_text)


def _mean_of_rows(
    text_XT: npt.NDArray[np.float16], row_M: npt.NDArray[np.int64]
) -> npt.NDArray[np.float16]:
    blocks = (row_M[rows] for rows in row_blocks(len(row_M), _BLOCK_ROWS))
    sums = [text_XT[block].sum(axis=0, dtype=np.float64) for block in blocks]
    return np.asarray(np.sum(sums, axis=0) / len(row_M), np.float16)


def require_trained_identities(
    tables: FeatureTables, catalogue: Identity, text: Identity | None
) -> None:
    """Refuses features that other networks made than those that a model was trained on.

    Args:
        tables: the features as they are now.
        catalogue: identity of the catalogue's table in training.
        text: identity of the texts' table, as a second one; None where the model took one table.

    Raises:
        InputError: a table is missing or another network's.
    """
    found = read_manifest(tables.catalogue).identity
    require_same_identity(found, catalogue, tables.catalogue, "model, or --features")
    if tables.text is not None and text is not None:
        found = read_manifest(tables.text).identity
        require_same_identity(found, text, tables.text, "model, or --text_features")
