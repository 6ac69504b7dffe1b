"""The data of a training: loaded once, then shared by the workers of a node.

Shapes: N items, U users, R training rows, V held-out validation rows, D feature width.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError
from visrec.features.clusters import (
    ClusterConfig,
    Clusters,
    load_clusters,
)
from visrec.features.item_features import (
    FeatureTables,
    ItemFeatures,
    LoadedFeatures,
    load_item_features,
)
from visrec.features.near_identical import near_identical_groups
from visrec.features.table import read_manifest
from visrec.interactions.activity import Activity
from visrec.interactions.log import InteractionLog, ReadReport
from visrec.interactions.prepare import prepare_if_possible
from visrec.interactions.read import read_log
from visrec.interactions.split import (
    HeldOut,
    SplitConfig,
    SplitPart,
    explain_empty_part,
    has_marked_test_rows,
    held_out_pairs,
    select_held_out,
    split,
)
from visrec.jagged import Jagged
from visrec.models.base import Catalogue, ModelTraits, Sizes
from visrec.models.provenance import DataProvenance, InteractionsProvenance, TextProvenance
from visrec.retrieval.moments import ItemOrder
from visrec.sampling.index import SamplingIndex
from visrec.sampling.triples import SamplingConfig
from visrec.sources.interactions import (
    InteractionsConfig,
    digest_interactions,
)
from visrec.sources.items import Items, artist_codes, category_codes, category_names, read_items
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.storage.tables import digest_table, require_unchanged


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """The inputs of a training, and which parts of them count.

    Attributes:
        features: the features directory.
        interactions: which rows of the interactions count.
        interactions_uri: where the interactions are; None for a model that is trained without.
        items_table: the items table; None where neither the model nor a guideline reads it.
        split: what is held out.
        traits: what the model requires.
        sampling: how triples are drawn; its guidelines may require clusters and artists. None for a
            model that does not train on triples.
        text_features: the features directory of the texts, for a model that takes them.
        item_features: the tables that the model takes.
        prepared: the folder of prepared partitions, which tasks read; None if one process reads the
            files themselves.
    """

    features: Store
    interactions: InteractionsConfig
    interactions_uri: str | None
    items_table: InputTable | None
    split: SplitConfig
    traits: ModelTraits
    sampling: SamplingConfig | None
    text_features: Store | None = None
    item_features: ItemFeatures = "pictures"
    prepared: Store | None = None

    @property
    def tables(self) -> FeatureTables:
        """The features that the model takes."""
        return FeatureTables.of(self.item_features, self.features, self.text_features)


@dataclass(frozen=True)
class TrainingData:
    """The training items of each user, and users to validate with. Items are catalogue rows.

    Attributes:
        item_ids: (N,) sorted.
        user_ids: (U,) sorted.
        feature_ND: (N, D) float16.
        train: U lists of items, in time order.
        basket_R: (R,) the basket of each training row; the numbers rise along a user's list.
        time_R: (R,) when each training row happened, in seconds.
        validation: users with a held-out basket.
        validation_basket_V: (V,) the basket of each held-out row; its number follows that of the
            user's last training basket.
        test_pairs: the held-out test rows, as `user_id` and `item_id`. Training only copies them to
            the model's directory, because evaluation may use no other rows for this model.
        provenance: digests and settings of the inputs, for the model's config.json.
        category_N: (N,) codes into `categories`, -1 for none.
        categories: category names, sorted; empty where the model does not use categories.
        clusters: visual clusters; None where no guideline uses them.
        near_identical_N: (N,) items with the same number have near-identical pictures; None if
            `clusters` has these numbers. Without both, they are computed when they are needed.
        artist_N: (N,) artist codes, -1 for none; None where no item has an artist, or no guideline
            uses artists.
        rating_R: (R,) the rating of each training row; None where there are none, or the model does
            not use them.
        validation_rating_V: (V,) the same for each held-out row.
        read_report: how many rows of the interactions were read and left out.
        notes: sentences for the user about parts of the split that are empty.
        without_text: items that have the mean text feature, because they have no text.
    """

    item_ids: pa.LargeStringArray
    user_ids: pa.LargeStringArray
    feature_ND: npt.NDArray[np.float16]
    train: Jagged
    basket_R: npt.NDArray[np.int64]
    time_R: npt.NDArray[np.int64]
    validation: HeldOut
    validation_basket_V: npt.NDArray[np.int64]
    test_pairs: pa.Table
    provenance: DataProvenance
    category_N: npt.NDArray[np.int64] | None = None
    categories: tuple[str, ...] = ()
    clusters: Clusters | None = None
    near_identical_N: npt.NDArray[np.int64] | None = None
    artist_N: npt.NDArray[np.int64] | None = None
    rating_R: npt.NDArray[np.float32] | None = None
    validation_rating_V: npt.NDArray[np.float32] | None = None
    read_report: ReadReport = field(default_factory=ReadReport)
    notes: tuple[str, ...] = ()
    without_text: int = 0

    @property
    def sampling_index(self) -> SamplingIndex:
        """The lookup tables that triples are drawn from."""
        near_identical_N = self.near_identical_N
        if near_identical_N is None and self.clusters is None:
            near_identical_N = near_identical_groups(self.feature_ND)
        return SamplingIndex(
            self.train,
            self.basket_R,
            len(self.item_ids),
            self.clusters,
            self.artist_N,
            near_identical_N,
        )

    @property
    def for_refit(self) -> "TrainingData":
        """The same data with each user's validation rows appended to their training rows."""
        held, train = self.validation, self.train
        added_U = np.zeros(len(train) + 1, np.int64)
        added_U[held.user_E + 1] = held.targets.lengths
        # `user_E` ascends, so the rows of the users stay in their order.
        end_V = np.repeat(train.offsets[held.user_E + 1], held.targets.lengths)
        rating_R = self.rating_R
        if rating_R is not None and self.validation_rating_V is not None:
            rating_R = np.insert(rating_R, end_V, self.validation_rating_V)
        item_R = np.insert(train.values, end_V, held.targets.values)
        return dataclasses.replace(
            self,
            train=Jagged(item_R, train.offsets + np.cumsum(added_U)),
            basket_R=np.insert(self.basket_R, end_V, self.validation_basket_V),
            time_R=np.insert(self.time_R, end_V, held.target_times.values),
            validation=held.take(np.zeros(0, np.int64)),
            validation_basket_V=self.validation_basket_V[:0],
            rating_R=rating_R,
            validation_rating_V=None,
        )

    @cached_property
    def activity(self) -> Activity:
        """When the training rows took each item."""
        return Activity.from_rows(self.train.values, self.time_R, len(self.item_ids))

    @cached_property
    def item_order(self) -> ItemOrder:
        """The items by their first row outside test; held-out items are ranked among them."""
        held = self.validation
        rows = [
            (self.train.values, self.time_R),
            (held.targets.values, held.target_times.values),
        ]
        return ItemOrder.of(Activity.from_parts(rows, len(self.item_ids)))

    def free_derived(self) -> None:
        """Frees the arrays that are derived from the rows, until they are needed again."""
        for name in ("activity", "item_order"):
            vars(self).pop(name, None)

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.feature_ND, np.arange(len(self.item_ids)), self.category_N)

    @property
    def sizes(self) -> Sizes:
        n, dim = self.feature_ND.shape
        return Sizes(
            items=n, users=len(self.user_ids), feature_dim=dim, categories=len(self.categories)
        )


def load_training_data(inputs: TrainingInputs) -> TrainingData:
    """Reads features and interactions, and splits the interactions.

    Raises:
        InputError: an input is missing or empty, inputs do not fit each other, or one of them
            changed while it was read.
    """
    digests = _digests(inputs)
    features = load_item_features(inputs.tables)
    item_ids = features.item_ids
    config, uri = inputs.interactions, inputs.interactions_uri
    prepared = prepare_if_possible(config, uri, inputs.prepared)
    log = read_log(config, uri, item_ids, prepared=prepared)
    part_R, basket_R = split(log, inputs.split), log.basket_numbers()
    in_train_R, in_validation_R = part_R == SplitPart.TRAIN, part_R == SplitPart.VALIDATION
    validation, test = (
        select_held_out(log, part_R, part, inputs.split)
        for part in (SplitPart.VALIDATION, SplitPart.TEST)
    )
    rating_R = _ratings(log, in_train_R) if inputs.traits.requires_ratings else None
    items = read_items(inputs.items_table, item_ids)
    categories = _categories(items, inputs.items_table) if inputs.traits.requires_categories else ()
    clusters, near_identical_N = _clusters_or_groups(inputs, features)
    by_artist = bool(inputs.sampling and inputs.sampling.artist_conditions)
    require_unchanged(digests, _digests(inputs))
    return TrainingData(
        item_ids=item_ids,
        user_ids=log.user_ids,
        feature_ND=features.feature_ND,
        train=log.items_where(in_train_R),
        basket_R=basket_R[in_train_R],
        time_R=log.time_R[in_train_R],
        # Users with validation rows also have training rows, so `train` has a list for each.
        validation=validation,
        validation_basket_V=basket_R[in_validation_R],
        test_pairs=held_out_pairs(test, log.user_ids, item_ids),
        category_N=category_codes(items.category_N, categories),
        categories=categories,
        clusters=clusters,
        near_identical_N=near_identical_N,
        rating_R=None if rating_R is None else rating_R[in_train_R],
        validation_rating_V=None if rating_R is None else rating_R[in_validation_R],
        artist_N=artist_codes(items.artist_N) if by_artist else None,
        read_report=log.read_report,
        notes=_empty_parts(log, inputs.split, validation, test),
        without_text=features.without_text,
        provenance=_provenance(inputs, features, digests, log),
    )


def _digests(inputs: TrainingInputs) -> dict[str, str | None]:
    log_uri, items_table = inputs.interactions_uri, inputs.items_table
    return {
        "features": read_manifest(inputs.tables.catalogue).digest,
        "text features": inputs.tables.text_digest,
        "interactions": digest_interactions(inputs.interactions, log_uri) if log_uri else None,
        "items": digest_table(items_table) if items_table else None,
    }


def _provenance(
    inputs: TrainingInputs,
    features: LoadedFeatures,
    digests: dict[str, str | None],
    log: InteractionLog,
) -> DataProvenance:
    manifest = read_manifest(inputs.tables.catalogue)
    return DataProvenance(
        features_digest=str(digests["features"]),
        features_identity=manifest.identity,
        interactions=InteractionsProvenance(
            digest=digests["interactions"],
            min_rating=inputs.interactions.min_rating,
            as_of=inputs.interactions.as_of,
            last_timestamp=int(log.time_R.max()) if len(log.time_R) else None,
            has_marked_test_rows=has_marked_test_rows(log, inputs.split),
        ),
        items_digest=digests["items"],
        split=inputs.split,
        item_features=inputs.item_features,
        text=_text_provenance(inputs, features, str(digests["text features"])),
    )


def _text_provenance(
    inputs: TrainingInputs, features: LoadedFeatures, digest: str
) -> TextProvenance | None:
    """The texts, in addition to the pictures; None without."""
    if inputs.tables.text is None or features.mean_text_T is None:
        return None
    identity = read_manifest(inputs.tables.text).identity
    mean = tuple(map(float, features.mean_text_T))
    return TextProvenance(digest=digest, identity=identity, mean=mean)


def _clusters_or_groups(
    inputs: TrainingInputs, features: LoadedFeatures
) -> tuple[Clusters | None, npt.NDArray[np.int64] | None]:
    """Visual clusters if a guideline uses them, otherwise the (N,) groups of near-identical items.

    Clusters have these groups, too. A model that does not train on triples needs neither.
    """
    if inputs.sampling is None:
        return None, None
    visual_feature_NP = features.feature_ND[:, : features.visual_dim]
    if inputs.sampling.needs_clusters:
        return load_clusters(inputs.tables.catalogue, ClusterConfig(), visual_feature_NP), None
    return None, near_identical_groups(visual_feature_NP)


def _empty_parts(
    log: InteractionLog, config: SplitConfig, validation: HeldOut, test: HeldOut
) -> tuple[str, ...]:
    """A sentence for each part of the split that was asked for and has no users."""
    empty = []
    if config.validation and not len(validation):
        empty.append(SplitPart.VALIDATION)
    if config.test and not len(test):
        empty.append(SplitPart.TEST)
    return tuple(dict.fromkeys(explain_empty_part(log, config, part) for part in empty))


def _categories(items: Items, items_table: InputTable | None) -> tuple[str, ...]:
    names = category_names(items.category_N)
    if not names:
        raise InputError(
            f"None of the {len(items.category_N)} items with a feature has a category in "
            f"{items_table and items_table.uri} (--items), and the model needs it; expected a "
            "column category with some values. Add it, or choose another --model.name."
        )
    return names


def _ratings(log: InteractionLog, train_R: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32] | None:
    """(R,) the rating of each row; the mean training rating where a row has none."""
    if log.rating_R is None or np.isnan(log.rating_R[train_R]).all():
        return None
    return np.where(np.isnan(log.rating_R), np.nanmean(log.rating_R[train_R]), log.rating_R)
