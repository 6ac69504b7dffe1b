"""What training reads, put together once and shared by the workers of a node."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError
from visrec.features.clusters import (
    ClusterConfig,
    Clusters,
    load_clusters,
    near_identical,
)
from visrec.features.table import load_features, read_manifest
from visrec.interactions.log import InteractionLog, Reading, read_log
from visrec.interactions.split import (
    HeldOut,
    Part,
    SplitConfig,
    held_out,
    held_out_pairs,
    split,
    why_nobody,
)
from visrec.jagged import Jagged
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.sampling.index import SamplingIndex
from visrec.sampling.triples import SamplingConfig
from visrec.sources.interactions import (
    InteractionsConfig,
    digest_interactions,
)
from visrec.sources.items import Items, artist_codes, category_codes, category_names, read_items
from visrec.storage.store import Store
from visrec.storage.tables import digest_files, require_unchanged


@dataclass(frozen=True)
class TrainingData:
    """Training items of each user, and users to validate with; all items as catalogue rows.

    Args:
        item_ids: (N,) sorted.
        user_ids: (U,) sorted.
        feature_ND: (N, D) float16.
        train: U lists, in time order.
        basket_R: (R,) the basket of each training item; numbers rise along a list.
        validation: users with a held-out basket.
        validation_basket_V: (V,) the basket of each held-out item, numbered on from the user's.
        test_pairs: the held-out test rows by `user_id` and `item_id`. Training only passes them on
            to the model's directory, where evaluation finds what it may judge the model by.
        provenance: digests and settings, for the model's config.json.
        category_N: (N,) codes into `categories`, -1 for none.
        categories: names, sorted; empty where the model does not ask for them.
        clusters: what looks alike; None where the guidelines do not ask for it.
        alike_N: (N,) items of one number are near-identical; None where that is found out when it
            is asked for, or told by the clusters.
        rating_R: (R,) what the user thought of each training item; None where nothing is rated, or
            the model does not ask.
        validation_rating_V: (V,) the same of each held-out item.
        artist_N: (N,) codes of the artists, -1 for none; None where no item has one, or the
            guidelines do not ask.
        reading: what became of the rows of the interactions.
        notes: sentences about what the split lacks.
    """

    item_ids: pa.LargeStringArray
    user_ids: pa.LargeStringArray
    feature_ND: npt.NDArray[np.float16]
    train: Jagged
    basket_R: npt.NDArray[np.int64]
    validation: HeldOut
    validation_basket_V: npt.NDArray[np.int64]
    test_pairs: pa.Table
    provenance: Mapping[str, Any]
    category_N: npt.NDArray[np.int64] | None = None
    categories: tuple[str, ...] = ()
    clusters: Clusters | None = None
    alike_N: npt.NDArray[np.int64] | None = None
    artist_N: npt.NDArray[np.int64] | None = None
    rating_R: npt.NDArray[np.float32] | None = None
    validation_rating_V: npt.NDArray[np.float32] | None = None
    reading: Reading = field(default_factory=Reading)
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> SamplingIndex:
        """What triples are drawn from."""
        alike_N = self.alike_N
        if alike_N is None and self.clusters is None:
            alike_N = near_identical(self.feature_ND)
        return SamplingIndex(
            self.train, self.basket_R, len(self.item_ids), self.clusters, self.artist_N, alike_N
        )

    @property
    def refit(self) -> "TrainingData":
        """The same with the validation items for training, behind each user's others."""
        held = self.validation
        owner_R = np.concatenate([self.train.owners, held.user_E[held.targets.owners]])
        order = np.argsort(owner_R, kind="stable")
        item_R = np.concatenate([self.train.values, held.targets.values])[order]
        basket_R = np.concatenate([self.basket_R, self.validation_basket_V])[order]
        rating_R = self.rating_R
        if rating_R is not None and self.validation_rating_V is not None:
            rating_R = np.concatenate([rating_R, self.validation_rating_V])[order]
        return dataclasses.replace(
            self,
            train=Jagged.group(owner_R[order], item_R, len(self.train)),
            basket_R=basket_R,
            validation=held.take(np.zeros(0, np.int64)),
            validation_basket_V=basket_R[:0],
            rating_R=rating_R,
            validation_rating_V=None,
        )

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.feature_ND, np.arange(len(self.item_ids)), self.category_N)

    @property
    def sizes(self) -> Sizes:
        n, dim = self.feature_ND.shape
        return Sizes(
            items=n, users=len(self.user_ids), feature_dim=dim, categories=len(self.categories)
        )


def load_training_data(
    features: Store,
    interactions: InteractionsConfig,
    uri: str | None,
    held: SplitConfig,
    items_uri: str | None,
    needs: Needs,
    sampling: SamplingConfig | None,
) -> TrainingData:
    """Reads features and interactions and splits them; the test basket stays out.

    Args:
        features: the features directory.
        interactions: which of them count.
        uri: where they are; None where there are none, for a model that needs none.
        held: what is held out.
        items_uri: the items table, where the model or the guidelines ask for what it tells.
        needs: what the model asks for.
        sampling: whose guidelines may ask for clusters and artists; None does not.

    Raises:
        InputError: either is missing, empty, does not fit the other, or changed while it was read.
    """
    manifest = read_manifest(features)
    digests = _digests(features, interactions, uri, items_uri)
    item_ids, feature_ND = load_features(features)
    log = read_log(interactions, uri, item_ids)
    part_R, basket_R = split(log, held), log.basket_R()
    validation, test = (held_out(log, part_R, part) for part in (Part.VALIDATION, Part.TEST))
    lacking = [Part.VALIDATION] * (held.validation and not len(validation))
    lacking += [Part.TEST] * (held.test and not len(test))
    items = read_items(items_uri, item_ids)
    names = _categories(items, items_uri) if needs.categories else ()
    rating_R = _ratings(log, part_R == Part.TRAIN) if needs.ratings else None
    clusters = alike_N = None
    if sampling and sampling.needs_clusters:
        clusters = load_clusters(features, ClusterConfig(), feature_ND)
    elif sampling:
        alike_N = near_identical(feature_ND)
    require_unchanged(digests, _digests(features, interactions, uri, items_uri))
    return TrainingData(
        item_ids=item_ids,
        user_ids=log.user_ids,
        feature_ND=feature_ND,
        train=log.where(part_R == Part.TRAIN),
        basket_R=basket_R[part_R == Part.TRAIN],
        # Who has a validation item has training items too, so all of their baskets are here.
        validation=validation,
        validation_basket_V=basket_R[part_R == Part.VALIDATION],
        test_pairs=held_out_pairs(test, log.user_ids, item_ids),
        category_N=category_codes(items.category_N, names),
        categories=names,
        clusters=clusters,
        alike_N=alike_N,
        rating_R=None if rating_R is None else rating_R[part_R == Part.TRAIN],
        validation_rating_V=None if rating_R is None else rating_R[part_R == Part.VALIDATION],
        artist_N=artist_codes(items.artist_N) if sampling and sampling.by_artist else None,
        reading=log.reading,
        notes=tuple(dict.fromkeys(why_nobody(log, held, part) for part in lacking)),
        provenance={
            "features": {"digest": digests["features"], **manifest.identity.__dict__},
            "interactions": {
                "digest": digests["interactions"],
                "min_rating": interactions.min_rating,
                "as_of": interactions.as_of,
                "last_timestamp": int(log.time_R.max()) if len(log.time_R) else None,
            },
            "items": {"digest": digests["items"]},
            "split": held.__dict__,
        },
    )


def _digests(
    features: Store, interactions: InteractionsConfig, uri: str | None, items_uri: str | None
) -> dict[str, str | None]:
    return {
        "features": read_manifest(features).digest,
        "interactions": digest_interactions(interactions, uri) if uri else None,
        "items": digest_files(items_uri, "items") if items_uri else None,
    }


def _categories(items: Items, items_uri: str | None) -> tuple[str, ...]:
    names = category_names(items.category_N)
    if not names:
        raise InputError(
            f"None of the {len(items.category_N)} items with a feature has a category in "
            f"{items_uri} (--items), and the model needs it; expected a column category with some "
            "values. Add it, or choose another --model.name."
        )
    return names


def _ratings(log: InteractionLog, train_R: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32] | None:
    """(R,) each row's rating; where it has none, the mean rating of the training rows."""
    if log.rating_R is None or np.isnan(log.rating_R[train_R]).all():
        return None
    return np.where(np.isnan(log.rating_R), np.nanmean(log.rating_R[train_R]), log.rating_R)
