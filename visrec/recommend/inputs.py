"""Loads what scoring needs: the items, which the workers of a node share; and the queries, one
shard at a time.

Shapes: N items, U queries, S shards.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.capacity import shard_count
from visrec.errors import InputError
from visrec.interactions.log import ReadReport
from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays
from visrec.models.artifact import Artifact, load_artifact
from visrec.models.base import Catalogue
from visrec.recommend.catalogue import load_catalogue
from visrec.recommend.eligibility import no_column_error, recommendable_mask
from visrec.recommend.fingerprints import item_fingerprints
from visrec.recommend.queries import Queries, QueriesInMemory, QuerySource, UserCriteria
from visrec.recommend.users import Users, UserSummary, UserTables, open_users
from visrec.retrieval.near_duplicates import near_duplicate_groups
from visrec.retrieval.rules import Rules, RulesConfig
from visrec.retrieval.similar import Kind, similarity_arrays
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.sources.interactions import InteractionsConfig
from visrec.sources.items import Items, artist_codes, read_item_groups, read_items
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store


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
        prepared: the directory of the prepared tables of users, if several processes read them;
            None if one process reads the files.
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

    @property
    def user_tables(self) -> UserTables:
        """The tables that name users."""
        return UserTables(self.interactions, self.interactions_uri, self.users_table, self.rules)


@dataclass(frozen=True)
class ScoringData:
    """Queries, and the items to score for them. The workers of a node share one copy.

    A query is a user or, for item-to-item lists, an item. `queries` holds the queries or, if the
    interactions are in partitions, reads those of a shard when they are asked for.

    Attributes:
        item_ids: (N,) sorted.
        available_N: (N,) which items may be recommended.
        queries: reads the queries of a shard.
        query_count: queries in all shards.
        unseen_N: (N,) items that training has not seen and the model cannot score. In a profile,
            they say nothing about the user.
        takers_N: (N,) float32, how many users took each item.
        fallback_N: (N,) float32, the score of the fallback lists: how many users took the item in
            the last 7 days, plus a fraction below 1 that rises with `takers_N`.
        artist_N: (N,) a number for each artist, -1 for none; None if no item has an artist.
        fingerprint_N: (N,) hashes of everything that scoring knows about each item.
        rules: between the entries of a list, or None.
        read_report: how many rows of the interactions were read, and why some were dropped.
        block_list_warning: a warning about the block list, or None.
    """

    item_ids: pa.LargeStringArray
    available_N: npt.NDArray[np.bool_]
    queries: QuerySource
    query_count: int
    unseen_N: npt.NDArray[np.bool_]
    takers_N: npt.NDArray[np.float32]
    fallback_N: npt.NDArray[np.float32]
    artist_N: npt.NDArray[np.int64] | None
    fingerprint_N: npt.NDArray[np.uint64]
    rules: Rules | None = None
    read_report: ReadReport = field(default_factory=ReadReport)
    block_list_warning: str | None = None

    def overview(self) -> "ScoringOverview":
        """What the driver shows and records, without the data itself."""
        return ScoringOverview(
            queries=self.query_count,
            items=len(self.item_ids),
            available=int(self.available_N.sum()),
            shards=self.queries.shards,
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
    """Counts the users of each item, decides which items may be listed, and computes item arrays.

    Args:
        inputs: where to read.
        shards: how many shards the queries are assigned to; by default what `shard_count` says.
        kind: user_to_item or item_to_item.
        k: list length.

    Raises:
        InputError: something is missing or does not fit the model, the rules or the kind of lists.
    """
    artifact = load_artifact(inputs.model)
    item_ids, catalogue = load_catalogue(
        artifact, inputs.features, inputs.items_table, inputs.text_features
    )
    users, summary = _summarize_users(inputs, artifact, item_ids)
    known = dataclasses.replace(catalogue, activity_NA=summary.activity.features())
    arrays = artifact.model.item_arrays(known)
    items = read_items(inputs.items_table, item_ids)
    available_N, unseen_N = _scorable_items(inputs, artifact, items, catalogue, item_ids)
    list_length = min(k, len(item_ids))
    if kind == "user_to_item":
        count = summary.users
        criteria = _user_criteria(artifact, unseen_N)
        queries = users.to_queries(criteria, shards or shard_count(count, list_length))
    else:
        arrays, has_vector_N = _similarity_arrays(artifact, arrays)
        available_N = available_N & has_vector_N
        count = int(has_vector_N.sum())
        queries = _item_queries(has_vector_N, item_ids, shards or shard_count(count, list_length))
    rules, group_N = _build_rules(inputs, item_ids, catalogue, available_N)
    columns = _identity_columns(item_ids, group_N, rules)
    takers_N = summary.takers_N.astype(np.float32)
    data = ScoringData(
        item_ids=item_ids,
        available_N=available_N,
        queries=queries,
        query_count=count,
        unseen_N=unseen_N,
        takers_N=takers_N,
        fallback_N=fallback_scores(summary.activity.takers(days=7), takers_N),
        artist_N=artist_codes(items.artist_N),
        fingerprint_N=item_fingerprints(columns, [unseen_N, *arrays.values()]),
        rules=rules,
        read_report=summary.read.report,
        block_list_warning=summary.blocks.warning(inputs.rules, item_ids),
    )
    return data, arrays


def _user_criteria(artifact: Artifact, unseen_N: npt.NDArray[np.bool_]) -> UserCriteria:
    """What decides whether the model can score a user."""
    return UserCriteria(unseen_N, artifact.user_ids, artifact.model.traits.supports_new_users)


def _similarity_arrays(
    artifact: Artifact, arrays: ItemArrays
) -> tuple[ItemArrays, npt.NDArray[np.bool_]]:
    """The arrays for lists of similar items, and (N,) which items have a vector.

    An item without a vector has no neighbours.
    """
    similarity = similarity_arrays(artifact.model.scorer(arrays), f"The model {artifact.model_id}")
    return similarity, np.any(similarity["unit"], axis=1)


def _summarize_users(
    inputs: ScoringInputs, artifact: Artifact, item_ids: pa.LargeStringArray
) -> tuple[Users, UserSummary]:
    """The users, and what all lists depend on.

    Raises:
        InputError: the interactions do not fit the model, or none of them counts.
    """
    inputs.interactions.require_min_rating(
        artifact.provenance.data.interactions.min_rating, f"the model {artifact.model_id}"
    )
    users = open_users(inputs.user_tables, item_ids, inputs.prepared)
    summary = users.summarize()
    if inputs.interactions_uri is not None:
        summary.read.require_complete(inputs.interactions, inputs.interactions_uri)
        summary.read.require_any(item_ids)
    return users, summary


def fallback_scores(
    week_N: npt.NDArray[np.float32], takers_N: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(N,) the scores of fallback lists, in the order of takers in the last week, then takers ever.

    The whole part of a score is the takers in the last week. Its fraction orders items with equal
    takers last week by takers ever. It is their rank, not their number: a small number would vanish
    when a large score is rounded to float32, the type of the lists.

    Args:
        week_N: (N,) how many users took each item in the last 7 days.
        takers_N: (N,) how many ever did.
    """
    order_N = np.lexsort((takers_N, week_N))
    week_N, takers_N = week_N[order_N], takers_N[order_N]
    is_same_N = (np.diff(week_N, prepend=-1) == 0) & (np.diff(takers_N, prepend=-1) == 0)
    rank_N = np.cumsum(~is_same_N)
    first_N = rank_N[np.searchsorted(week_N, week_N)]
    last_N = rank_N[np.searchsorted(week_N, week_N, side="right") - 1]
    score_N = np.empty(len(week_N), np.float32)
    score_N[order_N] = week_N + (rank_N - first_N) / (last_N - first_N + 1)
    return score_N


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


def _item_queries(
    has_vector_N: npt.NDArray[np.bool_], item_ids: pa.LargeStringArray, shards: int
) -> QueriesInMemory:
    """Every item that has a vector, with itself as its profile."""
    row_U = np.flatnonzero(has_vector_N)
    profiles = Jagged(row_U, np.arange(len(row_U) + 1))
    trained_U = np.full(len(row_U), -1)
    cold_U = np.zeros(len(row_U), bool)
    ids = item_ids.take(pa.array(row_U))
    blocked = Jagged.empty(len(row_U))
    return QueriesInMemory.assign(Queries(ids, profiles, blocked, trained_U, cold_U), shards)


def _identity_columns(
    item_ids: pa.LargeStringArray, group_N: pa.LargeStringArray | None, rules: Rules | None
) -> list[pa.LargeStringArray]:
    """String columns of the items: their ids, and the groups that the rules put them in."""
    columns = [item_ids] if group_N is None else [item_ids, group_N]
    if rules is not None and rules.near_duplicate_N is not None:
        # The id of one of its items names a group, because row numbers change from night to night.
        near_duplicate_N = rules.near_duplicate_N
        columns.append(item_ids.take(pa.array(near_duplicate_N, mask=near_duplicate_N < 0)))
    return columns


def _build_rules(
    inputs: ScoringInputs,
    item_ids: pa.LargeStringArray,
    catalogue: Catalogue,
    available_N: npt.NDArray[np.bool_],
) -> tuple[Rules | None, pa.LargeStringArray | None]:
    """The rules between the entries of a list, None without any; and the groups of `rules.cap`."""
    config = inputs.rules
    group_N = None
    code_N = None
    near_duplicate_N = None
    if config.cap is not None:
        if inputs.items_table is None:
            raise no_column_error(config, "cap", config.cap_by)
        group_N = read_item_groups(inputs.items_table, config.cap_by, item_ids)
        code_N = artist_codes(group_N)
    if config.near_duplicate is not None:
        near_duplicate_N = near_duplicate_groups(
            catalogue.visual_feature_NP, available_N, config.near_duplicate
        )
    if code_N is None and near_duplicate_N is None:
        return None, group_N
    return Rules(config.cap or 0, code_N, near_duplicate_N), group_N
