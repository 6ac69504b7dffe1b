"""What scoring reads, put together once and shared by the workers of a node."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.capacity import shards_for
from visrec.errors import InputError
from visrec.features.table import Identity, load_features, read_manifest, require_same
from visrec.ids import TEXT, id_array, is_among, rows_of
from visrec.interactions.log import InteractionLog, Reading, read_log, shard_of
from visrec.jagged import Jagged, offsets_of
from visrec.models.arrays import Arrays
from visrec.models.artifact import Artifact, load_artifact
from visrec.models.base import Catalogue
from visrec.recommend.fingerprints import item_fingerprints
from visrec.retrieval.near_duplicates import near_duplicate_groups
from visrec.retrieval.rules import Rules, RulesConfig
from visrec.retrieval.similar import Kind, similarity
from visrec.sources.id_mismatch import differing_ids
from visrec.sources.interactions import InteractionsConfig, read_not_liked
from visrec.sources.items import Items, artist_codes, category_codes, read_groups, read_items
from visrec.storage import schemas
from visrec.storage.store import Store
from visrec.storage.tables import read_batches, read_whole


@dataclass(frozen=True)
class ScoringInputs:
    """Where scoring reads.

    Args:
        model: the model's directory.
        features: the features directory.
        interactions: which of them count.
        interactions_uri: where they are; None where there are none, for lists of items.
        items_uri: the items table, or None.
        users_uri: the users table, or None.
        rules: of what a list may hold.
    """

    model: Store
    features: Store
    interactions: InteractionsConfig
    interactions_uri: str | None
    items_uri: str | None
    users_uri: str | None
    rules: RulesConfig = field(default_factory=RulesConfig)


@dataclass(frozen=True)
class ScoringData:
    """Users, or items, and the items to score for them, shared by the workers of a node.

    Args:
        item_ids: (N,) sorted.
        available_N: (N,) which may be recommended.
        query_ids: (U,) whose lists are made, shard after shard, sorted in each: users, or the
            items whose neighbours are looked for.
        shard_offsets: (S + 1,) where each shard's begin.
        profiles: U lists of consumed items, oldest first; of an item, the item itself.
        blocked: U lists of items that are blocked for that user alone, or were rated too low to
            count.
        unseen_N: (N,) items that the model knows nothing of, so that they say nothing of a user.
        trained_U: (U,) the model's user rows, -1 for users it has not seen.
        count_N: (N,) float32, how many users took each item: the score for users whom the model
            cannot score.
        cold_U: (U,) users whom the model cannot score: they get the most popular items.
        artist_N: (N,) a number for each artist, -1 for none; None where no item has one.
        without_item: interactions left out because their item has no feature.
        fingerprint_N: (N,) hashes of all that scoring knows of each item.
        rules: between the entries of a list, or None.
        reading: what became of the rows of the interactions.
        note: what is to be said of the block list, if anything.
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
    cold_U: npt.NDArray[np.bool_]
    artist_N: npt.NDArray[np.int64] | None
    without_item: int
    fingerprint_N: npt.NDArray[np.uint64]
    rules: Rules | None = None
    reading: Reading = field(default_factory=Reading)
    note: str | None = None


def prepare_scoring(
    inputs: ScoringInputs, shards: int | None, kind: Kind, k: int
) -> tuple[ScoringData, Arrays]:
    """Reads everything once: users, profiles, availability, and what the model says of the items.

    Args:
        inputs: where.
        shards: to which owners are dealt; by default as many as `shards_for` says.
        kind: whose lists are made.
        k: entries of a list.

    Raises:
        InputError: something is missing or does not fit the model or the rules, or the model has
            no item vectors and the lists are of items.
    """
    artifact = load_artifact(inputs.model)
    item_ids, catalogue = load_catalogue(artifact, inputs.features, inputs.items_uri)
    log = _read_log(inputs, artifact, item_ids)
    items = read_items(inputs.items_uri, item_ids)
    unseen_N = np.zeros(len(item_ids), bool)
    if not artifact.model.needs.supports_new_items:
        unseen_N = catalogue.trained_N < 0
    available_N = allowed(inputs.rules, items, item_ids)
    _require_known(available_N & ~unseen_N, item_ids.filter(pa.array(available_N)), artifact)
    available_N = available_N & ~unseen_N
    arrays, queries = artifact.model.item_arrays(catalogue), _users(log, artifact, unseen_N)
    if kind == "item_to_item":
        arrays = similarity(artifact.model.scorer(arrays), f"The model {artifact.model_id}")
        known_N = np.any(arrays["unit"], axis=1)  # what the model has not seen is near nothing
        available_N, queries = available_N & known_N, _items(known_N, item_ids)
    rules, group_N = _rules(inputs, item_ids, catalogue, available_N)
    blocked = Jagged.empty(len(queries.ids))
    if kind == "user_to_item" and inputs.interactions_uri:
        not_liked = read_not_liked(inputs.interactions, inputs.interactions_uri)
        blocked = listed(chain(blocked_pairs(inputs.rules), not_liked), queries.ids, item_ids)
    shards = shards or shards_for(len(queries.ids), min(k, len(item_ids)))
    shard_U = shard_of(queries.ids, shards)
    order = np.argsort(shard_U, kind="stable")  # the ids are sorted, so each shard's are
    data = ScoringData(
        item_ids=item_ids,
        available_N=available_N,
        query_ids=queries.ids.take(pa.array(order)),
        shard_offsets=offsets_of(np.bincount(shard_U, minlength=shards)),
        profiles=queries.profiles.take(order),
        blocked=blocked.take(order),
        unseen_N=unseen_N,
        trained_U=queries.trained_U[order],
        count_N=np.bincount(log.item_R, minlength=len(item_ids)).astype(np.float32),
        cold_U=queries.cold_U[order],
        artist_N=artist_codes(items.artist_N),
        without_item=log.without_item,
        fingerprint_N=item_fingerprints(
            _names(item_ids, group_N, rules), [unseen_N, *arrays.values()]
        ),
        rules=rules,
        reading=log.reading,
        note=blocks_nothing(inputs.rules, item_ids, log.user_ids),
    )
    return data, arrays


def _read_log(
    inputs: ScoringInputs, artifact: Artifact, item_ids: pa.LargeStringArray
) -> InteractionLog:
    """The interactions and every user who is named anywhere."""
    others = None
    if inputs.users_uri:
        others = id_array(read_whole(inputs.users_uri, schemas.USERS, "users")["user_id"])
    inputs.interactions.require_min_rating(
        artifact.provenance["interactions"]["min_rating"], f"the model {artifact.model_id}"
    )
    return read_log(inputs.interactions, inputs.interactions_uri, item_ids, others, every_user=True)


def _require_known(known_N: npt.NDArray[np.bool_], ids: pa.Array, artifact: Artifact) -> None:
    if not known_N.any():
        raise InputError(
            f"None of the {len(ids)} available items was there when {artifact.model_id} was "
            "trained, and it cannot score others. Train again, or choose a model that scores new "
            f"items. {differing_ids(ids, 'The catalogue', artifact.item_ids, 'the model')}"
        )


@dataclass(frozen=True)
class _Queries:
    """Whose lists are made: `ids`, `profiles`, `trained_U` and `cold_U` as in `ScoringData`, sorted
    by id."""

    ids: pa.LargeStringArray
    profiles: Jagged
    trained_U: npt.NDArray[np.int64]
    cold_U: npt.NDArray[np.bool_]


def _users(log: InteractionLog, artifact: Artifact, unseen_N: npt.NDArray[np.bool_]) -> _Queries:
    trained_U = trained_users(artifact, log.user_ids)
    cold_U = log.items.keep(~unseen_N[log.item_R]).lengths == 0
    if not artifact.model.needs.supports_new_users:
        cold_U |= trained_U < 0
    return _Queries(log.user_ids, log.items, trained_U, cold_U)


def _items(known_N: npt.NDArray[np.bool_], item_ids: pa.LargeStringArray) -> _Queries:
    """Each item that the model knows, with itself as its profile."""
    row_Q = np.flatnonzero(known_N)
    itself = Jagged(row_Q, np.arange(len(row_Q) + 1))
    trained_Q, cold_Q = np.full(len(row_Q), -1), np.zeros(len(row_Q), bool)
    return _Queries(item_ids.take(pa.array(row_Q)), itself, trained_Q, cold_Q)


def _names(
    item_ids: pa.LargeStringArray, group_N: pa.LargeStringArray | None, rules: Rules | None
) -> list[pa.LargeStringArray]:
    """What names each item, and the groups that the rules put it in."""
    names = [item_ids] if group_N is None else [item_ids, group_N]
    if rules is not None and rules.near_duplicate_N is not None:
        # A group is named by one of its items, for rows move from night to night.
        same_N = rules.near_duplicate_N
        names.append(item_ids.take(pa.array(same_N, mask=same_N < 0)))
    return names


def allowed(rules: RulesConfig, items: Items, item_ids: pa.Array) -> npt.NDArray[np.bool_]:
    """(N,) which items may be in anybody's list: available, in stock and not blocked.

    Raises:
        InputError: there is no stock column to judge by, or no item is left.
    """
    allowed_N = items.available_N
    if rules.min_stock is not None:
        if items.stock_N is None:
            raise InputError(
                f"Found --rules.min_stock {rules.min_stock:g} and no items table with a stock "
                "column; expected one. Name it with --items, or leave --rules.min_stock out."
            )
        allowed_N = allowed_N & ~(items.stock_N < rules.min_stock)
    if rules.blocked is not None:
        for batch in read_batches(rules.blocked, schemas.BLOCKED, "rules.blocked"):
            if "user_id" in batch.column_names:
                batch = batch.filter(pc.is_null(batch["user_id"]))
            found = is_among(item_ids, batch["item_id"])
            allowed_N = allowed_N & ~found.to_numpy(zero_copy_only=False)
    if not allowed_N.any():
        raise InputError(
            f"None of the {int(items.available_N.sum())} available items is in stock and not "
            "blocked. Check --rules.min_stock and --rules.blocked."
        )
    return allowed_N


def blocked_pairs(rules: RulesConfig) -> Iterator[pa.Table]:
    """What is blocked for one user each, a batch at a time."""
    if rules.blocked is not None:
        for batch in read_batches(rules.blocked, schemas.BLOCKED, "rules.blocked"):
            if "user_id" in batch.column_names:
                yield batch


def blocks_nothing(
    rules: RulesConfig, item_ids: pa.LargeStringArray, user_ids: pa.LargeStringArray
) -> str | None:
    """Two sentences on the rows of the block list that close no item for anybody; None where there
    are none. They may be of items and users that are gone, or their ids be written differently."""
    if rules.blocked is None:
        return None
    rows = idle = 0
    item = user = pa.array([], TEXT)
    for batch in read_batches(rules.blocked, schemas.BLOCKED, "rules.blocked"):
        rows += len(batch)
        no_item_V, no_user_V = rows_of(batch["item_id"], item_ids) < 0, np.zeros(len(batch), bool)
        if "user_id" in batch.column_names:
            no_user_V = batch["user_id"].is_valid().to_numpy() & (
                rows_of(batch["user_id"], user_ids) < 0
            )
            user = user if len(user) else id_array(batch["user_id"].filter(pa.array(no_user_V)))
        item = item if len(item) else id_array(batch["item_id"].filter(pa.array(no_item_V)))
        idle += int((no_item_V | no_user_V).sum())
    if not idle:
        return None
    ids, known, what = (item, item_ids, "catalogue") if len(item) else (user, user_ids, "users")
    return (
        f"{idle:,} of the {rows:,} rows of {rules.blocked} (--rules.blocked) block nothing: their "
        f"items have no feature, or their users are not known. "
        f"{differing_ids(ids, 'The block list', known, f'the {what}')}"
    )


def listed(batches: Iterable[pa.Table], user_ids: pa.Array, item_ids: pa.Array) -> Jagged:
    """U lists of the items in rows of user_id and item_id, each once."""
    pairs = [np.zeros(0, np.int64)]
    for batch in batches:
        user_V, item_V = rows_of(batch["user_id"], user_ids), rows_of(batch["item_id"], item_ids)
        known_V = (user_V >= 0) & (item_V >= 0)
        pairs.append(user_V[known_V] * len(item_ids) + item_V[known_V])
    user_P, item_P = np.divmod(np.unique(np.concatenate(pairs)), len(item_ids))
    return Jagged.group(user_P, item_P, len(user_ids))


def _rules(
    inputs: ScoringInputs,
    item_ids: pa.LargeStringArray,
    catalogue: Catalogue,
    available_N: npt.NDArray[np.bool_],
) -> tuple[Rules | None, pa.LargeStringArray | None]:
    """The rules between entries, None where there are none; and the items' groups."""
    config, group_N, code_N, same_N = inputs.rules, None, None, None
    if config.cap is not None:
        if inputs.items_uri is None:
            raise InputError(
                f"Found --rules.cap {config.cap} and no items table; expected one with the column "
                f"{config.cap_by} (--rules.cap_by). Name it with --items."
            )
        group_N = read_groups(inputs.items_uri, config.cap_by, item_ids)
        code_N = artist_codes(group_N)
    if config.near_duplicate is not None:
        same_N = near_duplicate_groups(catalogue.feature_ND, available_N, config.near_duplicate)
    if code_N is None and same_N is None:
        return None, group_N
    return Rules(config.cap or 0, code_N, same_N), group_N


def load_catalogue(
    artifact: Artifact, features: Store, items_uri: str | None
) -> tuple[pa.LargeStringArray, Catalogue]:
    """All items that have features now, as the model sees them.

    Args:
        artifact: the model.
        features: the features directory.
        items_uri: the items table, for a model that needs categories.

    Raises:
        InputError: the features are of another backbone than the model's.
    """
    identity = {k: v for k, v in artifact.provenance["features"].items() if k != "digest"}
    require_same(
        read_manifest(features).identity, Identity(**identity), features, "model, or --features"
    )
    item_ids, feature_ND = load_features(features)
    category_N = None
    if artifact.model.needs.categories:
        category_N = category_codes(read_items(items_uri, item_ids).category_N, artifact.categories)
    return item_ids, Catalogue(feature_ND, rows_of(item_ids, artifact.item_ids), category_N)


def trained_users(artifact: Artifact, user_ids: pa.Array) -> npt.NDArray[np.int64]:
    """(U,) the model's rows of these users, -1 for those it has not seen or need not know."""
    known = artifact.user_ids
    return np.full(len(user_ids), -1) if known is None else rows_of(user_ids, known)
