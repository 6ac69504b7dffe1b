"""What scoring reads: loaded once, then shared by the workers of a node.

Shapes: N items, U queries, S shards.
"""

import dataclasses
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.capacity import shard_count
from visrec.errors import InputError
from visrec.ids import id_array
from visrec.interactions.activity import Activity, moment_after, takers
from visrec.interactions.log import InteractionLog, ReadReport, assign_shards
from visrec.interactions.prepare import prepare_if_possible
from visrec.interactions.prepared import PreparedInteractions
from visrec.interactions.read import read_log
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.models.arrays import ItemArrays
from visrec.models.artifact import Artifact, load_artifact
from visrec.models.base import Catalogue
from visrec.recommend.catalogue import load_catalogue, trained_users
from visrec.recommend.eligibility import (
    blocked_pairs,
    items_by_user,
    recommendable_mask,
    unused_block_warning,
)
from visrec.recommend.fingerprints import item_fingerprints
from visrec.retrieval.near_duplicates import near_duplicate_groups
from visrec.retrieval.rules import Rules, RulesConfig
from visrec.retrieval.similar import Kind, similarity_arrays
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.sources.interactions import InteractionsConfig, read_disliked
from visrec.sources.items import Items, artist_codes, read_item_groups, read_items
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.storage.tables import load_table


@dataclass(frozen=True)
class ScoringInputs:
    """Where scoring reads.

    Attributes:
        model: the model's directory.
        features: the features directory.
        interactions: which interactions count.
        interactions_uri: where they are; None for item-to-item lists without interactions.
        items_table: the items table, or None.
        users_table: the users table, or None.
        rules: what a list may hold.
        text_features: the features directory of the texts, for a model that takes them.
        prepared: where interactions are prepared, to be read by several processes; None if one
            process reads their files.
    """

    model: Store
    features: Store
    interactions: InteractionsConfig
    interactions_uri: str | None
    items_table: InputTable | None
    users_table: InputTable | None
    rules: RulesConfig = field(default_factory=RulesConfig)
    text_features: Store | None = None
    prepared: Store | None = None


@dataclass(frozen=True)
class ScoringData:
    """Queries, and the items to score for them. The workers of a node share one copy.

    A query is a user or, for item-to-item lists, an item.

    Attributes:
        item_ids: (N,) sorted.
        available_N: (N,) which items may be recommended.
        query_ids: (U,) ids of the queries, shard after shard, sorted within each shard.
        shard_offsets: (S + 1,) where each shard begins.
        profiles: U lists of consumed items, oldest first; of an item, the item itself.
        blocked: U lists of items that are blocked for that user alone, or that the user rated too
            low to count.
        unseen_N: (N,) items that the model knows nothing about, so they say nothing about a user.
        trained_U: (U,) the model's user rows, -1 for users that training has not seen.
        count_N: (N,) float32, how many users took each item.
        fallback_N: (N,) float32, the score of the fallback lists: how many users took the item in
            the last 7 days, and a fraction below 1 that rises with `count_N`.
        cold_U: (U,) users whom the model cannot score: they get the most popular items.
        artist_N: (N,) a number for each artist, -1 for none; None if no item has an artist.
        dropped_missing_feature: interactions that were dropped because their item has no feature.
        fingerprint_N: (N,) hashes of everything that scoring knows about each item.
        rules: between the entries of a list, or None.
        read_report: how many rows of the interactions were read, and why some were dropped.
        block_list_warning: a warning about the block list, or None.
    """

    item_ids: pa.LargeStringArray
    available_N: npt.NDArray[np.bool_]
    query_ids: pa.LargeStringArray
    shard_offsets: npt.NDArray[np.int64]
    profiles: Jagged
    blocked: Jagged
    unseen_N: npt.NDArray[np.bool_]
    trained_U: npt.NDArray[np.int64]
    count_N: npt.NDArray[np.float32]
    fallback_N: npt.NDArray[np.float32]
    cold_U: npt.NDArray[np.bool_]
    artist_N: npt.NDArray[np.int64] | None
    dropped_missing_feature: int
    fingerprint_N: npt.NDArray[np.uint64]
    rules: Rules | None = None
    read_report: ReadReport = field(default_factory=ReadReport)
    block_list_warning: str | None = None

    def overview(self) -> "ScoringOverview":
        """What the driver shows and records, without the data itself."""
        return ScoringOverview(
            queries=len(self.query_ids),
            items=len(self.item_ids),
            available=int(self.available_N.sum()),
            shards=len(self.shard_offsets) - 1,
            read_report=self.read_report,
            block_list_warning=self.block_list_warning,
        )


@dataclass(frozen=True, kw_only=True)
class ScoringOverview:
    """Counts of scoring data.

    Attributes:
        queries: users, or items, that get a list.
        items: items of the catalogue.
        available: items that may be recommended.
        shards: number of shards.
        read_report: how many rows of the interactions were read, and why some were dropped.
        block_list_warning: a warning about the block list, or None.
    """

    queries: int
    items: int
    available: int
    shards: int
    read_report: ReadReport
    block_list_warning: str | None


def prepare_scoring(
    inputs: ScoringInputs, shards: int | None, kind: Kind, k: int
) -> tuple[ScoringData, ItemArrays]:
    """Reads users, profiles and availability, and computes the model's item arrays.

    Args:
        inputs: where to read.
        shards: how many shards the queries are dealt to; by default what `shard_count` says.
        kind: user_to_item or item_to_item.
        k: list length.

    Raises:
        InputError: something is missing or does not fit the model, the rules or the kind of lists.
    """
    artifact = load_artifact(inputs.model)
    item_ids, catalogue = load_catalogue(
        artifact, inputs.features, inputs.items_table, inputs.text_features
    )
    prepared = prepare_if_possible(inputs.interactions, inputs.interactions_uri, inputs.prepared)
    log = _read_log(inputs, artifact, item_ids, prepared)
    items = read_items(inputs.items_table, item_ids)
    available_N, unseen_N = _scorable_items(inputs, artifact, items, catalogue, item_ids)
    activity_NK = _activity(log, inputs.interactions, len(item_ids))
    arrays = artifact.model.item_arrays(dataclasses.replace(catalogue, activity_NK=activity_NK))
    count_N = np.bincount(log.item_R, minlength=len(item_ids)).astype(np.float32)
    if kind == "user_to_item":
        blocked = _read_blocked(inputs, log.user_ids, item_ids, prepared)
        queries = _user_queries(log, artifact, unseen_N, blocked)
    else:
        arrays = similarity_arrays(artifact.model.scorer(arrays), f"The model {artifact.model_id}")
        has_vector_N = np.any(arrays["unit"], axis=1)  # without one, no item is near
        available_N = available_N & has_vector_N
        queries = _item_queries(has_vector_N, item_ids)
    rules, group_N = _build_rules(inputs, item_ids, catalogue, available_N)
    queries, shard_offsets = _deal(queries, shards, min(k, len(item_ids)))
    columns = _identity_columns(item_ids, group_N, rules)
    data = ScoringData(
        item_ids=item_ids,
        available_N=available_N,
        **vars(queries),
        shard_offsets=shard_offsets,
        unseen_N=unseen_N,
        count_N=count_N,
        fallback_N=fallback_scores(takers(activity_NK, days=7), count_N),
        artist_N=artist_codes(items.artist_N),
        dropped_missing_feature=log.dropped_missing_feature,
        fingerprint_N=item_fingerprints(columns, [unseen_N, *arrays.values()]),
        rules=rules,
        read_report=log.read_report,
        block_list_warning=unused_block_warning(inputs.rules, item_ids, log.user_ids),
    )
    return data, arrays


def _read_log(
    inputs: ScoringInputs,
    artifact: Artifact,
    item_ids: pa.LargeStringArray,
    prepared: PreparedInteractions | None,
) -> InteractionLog:
    """The interactions, and every user of the interactions or of the users table."""
    extra_users = None
    if inputs.users_table:
        extra_users = id_array(load_table(inputs.users_table, schemas.USERS)["user_id"])
    inputs.interactions.require_min_rating(
        artifact.provenance.data.interactions.min_rating, f"the model {artifact.model_id}"
    )
    return read_log(
        inputs.interactions,
        inputs.interactions_uri,
        item_ids,
        extra_users,
        keep_all_users=True,
        prepared=prepared,
    )


def fallback_scores(
    week_N: npt.NDArray[np.float32], count_N: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(N,) the scores of fallback lists: takers in the last week, then takers ever.

    Args:
        week_N: (N,) how many users took each item in the last 7 days.
        count_N: (N,) how many ever did.
    """
    return np.asarray(week_N + count_N / (1 + count_N.max(initial=0)), np.float32)


def _activity(
    log: InteractionLog, config: InteractionsConfig, items: int
) -> npt.NDArray[np.float32]:
    """(N, K) what is known of the items at the cutoff, or after the last interaction."""
    cutoff = config.cutoff_timestamp()
    moment = moment_after(log.time_R) if cutoff is None else cutoff
    return Activity.from_rows(log.item_R, log.time_R, items).features_at(moment)


def _scorable_items(
    inputs: ScoringInputs,
    artifact: Artifact,
    items: Items,
    catalogue: Catalogue,
    item_ids: pa.LargeStringArray,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(N,) which items may be recommended, and (N,) which ones the model knows nothing about.

    Raises:
        InputError: the model knows nothing about any item that may be recommended.
    """
    unseen_N = np.zeros(len(item_ids), bool)
    if not artifact.model.traits.supports_new_items:
        unseen_N = catalogue.trained_N < 0
    available_N = recommendable_mask(inputs.rules, items, item_ids)
    if not np.any(available_N & ~unseen_N):
        ids = item_ids.filter(pa.array(available_N))
        raise InputError(
            f"None of the {len(ids)} available items was there when {artifact.model_id} was "
            "trained, and it cannot score others. Train again, or choose a model that scores new "
            f"items. {explain_id_mismatch(ids, 'The catalogue', artifact.item_ids, 'the model')}"
        )
    return available_N & ~unseen_N, unseen_N


@dataclass(frozen=True)
class _Queries:
    """The fields of `ScoringData` with these names."""

    query_ids: pa.LargeStringArray
    profiles: Jagged
    blocked: Jagged
    trained_U: npt.NDArray[np.int64]
    cold_U: npt.NDArray[np.bool_]

    def take(self, rows: npt.NDArray[np.int64]) -> "_Queries":
        """The queries at `rows`, in that order."""
        return _Queries(
            self.query_ids.take(pa.array(rows)),
            self.profiles.take(rows),
            self.blocked.take(rows),
            self.trained_U[rows],
            self.cold_U[rows],
        )


def _deal(queries: _Queries, shards: int | None, k: int) -> tuple[_Queries, npt.NDArray[np.int64]]:
    """The queries, which are sorted by id, shard after shard; and (S + 1,) where each begins."""
    shards = shards or shard_count(len(queries.query_ids), k)
    shard_U = assign_shards(queries.query_ids, shards)
    # A stable sort keeps the order of the ids within each shard.
    order = np.argsort(shard_U, kind="stable")
    return queries.take(order), offsets_from_lengths(np.bincount(shard_U, minlength=shards))


def _user_queries(
    log: InteractionLog,
    artifact: Artifact,
    unseen_N: npt.NDArray[np.bool_],
    blocked: Jagged,
) -> _Queries:
    """Every user of the log."""
    trained_U = trained_users(artifact, log.user_ids)
    cold_U = log.items.keep(~unseen_N[log.item_R]).lengths == 0
    if not artifact.model.traits.supports_new_users:
        cold_U |= trained_U < 0
    return _Queries(log.user_ids, log.items, blocked, trained_U, cold_U)


def _item_queries(has_vector_N: npt.NDArray[np.bool_], item_ids: pa.LargeStringArray) -> _Queries:
    """Every item that has a vector, with itself as its profile."""
    row_U = np.flatnonzero(has_vector_N)
    profiles = Jagged(row_U, np.arange(len(row_U) + 1))
    trained_U, cold_U = np.full(len(row_U), -1), np.zeros(len(row_U), bool)
    ids, blocked = item_ids.take(pa.array(row_U)), Jagged.empty(len(row_U))
    return _Queries(ids, profiles, blocked, trained_U, cold_U)


def _read_blocked(
    inputs: ScoringInputs,
    user_ids: pa.LargeStringArray,
    item_ids: pa.LargeStringArray,
    prepared: PreparedInteractions | None,
) -> Jagged:
    """U lists of the items that a user must not get: blocked, or rated too low."""
    if not inputs.interactions_uri:
        return Jagged.empty(len(user_ids))
    batches = prepared.batches() if prepared else None
    disliked = read_disliked(inputs.interactions, inputs.interactions_uri, batches)
    return items_by_user(chain(blocked_pairs(inputs.rules), disliked), user_ids, item_ids)


def _identity_columns(
    item_ids: pa.LargeStringArray, group_N: pa.LargeStringArray | None, rules: Rules | None
) -> list[pa.LargeStringArray]:
    """String columns of the items: their ids, and the groups that the rules put them in."""
    columns = [item_ids] if group_N is None else [item_ids, group_N]
    if rules is not None and rules.near_duplicate_N is not None:
        # One of its items names a group, because row numbers change from night to night.
        same_N = rules.near_duplicate_N
        columns.append(item_ids.take(pa.array(same_N, mask=same_N < 0)))
    return columns


def _build_rules(
    inputs: ScoringInputs,
    item_ids: pa.LargeStringArray,
    catalogue: Catalogue,
    available_N: npt.NDArray[np.bool_],
) -> tuple[Rules | None, pa.LargeStringArray | None]:
    """The rules between the entries of a list, None without any; and the groups of `rules.cap`."""
    config, group_N, code_N, same_N = inputs.rules, None, None, None
    if config.cap is not None:
        if inputs.items_table is None:
            raise InputError(
                f"Found --rules.cap {config.cap} and no items table; expected one with the column "
                f"{config.cap_by} (--rules.cap_by). Name it with --items."
            )
        group_N = read_item_groups(inputs.items_table, config.cap_by, item_ids)
        code_N = artist_codes(group_N)
    if config.near_duplicate is not None:
        same_N = near_duplicate_groups(catalogue.look_NP, available_N, config.near_duplicate)
    if code_N is None and same_N is None:
        return None, group_N
    return Rules(config.cap or 0, code_N, same_N), group_N
