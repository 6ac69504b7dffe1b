"""The Ray Data step from users to lists: one shard of users a row, one Parquet file a shard.

Item vectors and coded interactions are computed once and shared through the object store; an actor
scores one shard at a time and writes its file. A shard that is there already, made from the same
inputs, is left as it is.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from visrec import schemas
from visrec.features.table import Identity, load_features, read_manifest, require_same
from visrec.interactions.log import build_log, shard_of
from visrec.models.artifact import Artifact, load_artifact
from visrec.models.contract import Arrays, Catalogue, DotScorer, Scorer
from visrec.progress import Timer
from visrec.ragged import Ragged, offsets_of
from visrec.scoring.lists import Layout, lists_table, similar_table
from visrec.scoring.native import missing
from visrec.scoring.similar import Kind, neighbours, similarity
from visrec.scoring.topk import TopK, nearest_of_profile
from visrec.sources.interactions import InteractionsConfig, read_interactions
from visrec.sources.items import artist_codes, category_codes, read_items
from visrec.sources.tables import read_whole
from visrec.storage import Store

_COLD = "visrec.cold_users"
_BLOCK = 1024  # users scored between two progress reports; 100 lists of them are 2 MB


@dataclass(frozen=True, kw_only=True)
class ScoreResources:
    """What scoring may take of the cluster.

    Attributes:
        actors: processes that score; by default as many as the cluster has CPUs for (at most 64).
        use_gpu: one GPU for each.
        cpus_per_actor: CPU cores of each, and threads of its products.
    """

    actors: int | None = None
    use_gpu: bool = False
    cpus_per_actor: int = 1


@dataclass(frozen=True)
class ScoringInputs:
    """Where scoring reads.

    Args:
        model: the model's directory.
        features: the features directory.
        interactions: which of them count.
        interactions_uri: where they are.
        items_uri: the items table, or None.
        users_uri: the users table, or None.
    """

    model: Store
    features: Store
    interactions: InteractionsConfig
    interactions_uri: str
    items_uri: str | None
    users_uri: str | None


@dataclass(frozen=True)
class ScoringData:
    """Users, or items, and the items to score for them, shared by the workers of a node.

    Args:
        item_ids: (N,) sorted.
        available_N: (N,) which may be recommended.
        owner_ids: (U,) whose lists are made, shard after shard, sorted in each: users, or the
            items whose neighbours are looked for.
        shard_offsets: (S + 1,) where each shard's begin.
        profiles: U lists of consumed items, oldest first; of an item, the item itself.
        unseen_N: (N,) items that the model knows nothing of, so that they say nothing of a user.
        trained_U: (U,) the model's user rows, -1 for users it has not seen.
        count_N: (N,) float32, how many users took each item: the score for users whom the model
            cannot score.
        cold_U: (U,) users whom the model cannot score: they get the most popular items.
        artist_N: (N,) a number for each artist, -1 for none; None where no item has one.
        without_item: interactions left out because their item has no feature.
    """

    item_ids: pa.StringArray
    available_N: npt.NDArray[np.bool_]
    owner_ids: pa.StringArray
    shard_offsets: npt.NDArray[np.int64]
    profiles: Ragged
    unseen_N: npt.NDArray[np.bool_]
    trained_U: npt.NDArray[np.int64]
    count_N: npt.NDArray[np.float32]
    cold_U: npt.NDArray[np.bool_]
    artist_N: npt.NDArray[np.int64] | None
    without_item: int


def prepare_scoring(inputs: ScoringInputs, shards: int, kind: Kind) -> tuple[ScoringData, Arrays]:
    """Reads everything once: users, profiles, availability, and what the model says of the items.

    Raises:
        InputError: something is missing or does not fit the model, or it has no item vectors and
            the lists are of items.
    """
    artifact = load_artifact(inputs.model)
    item_ids, catalogue = load_catalogue(artifact, inputs.features, inputs.items_uri)
    others = None
    if inputs.users_uri:
        others = read_whole(inputs.users_uri, schemas.USERS, "users")["user_id"].combine_chunks()
    batches = read_interactions(inputs.interactions, inputs.interactions_uri)
    log = build_log(batches, item_ids, others)
    items = read_items(inputs.items_uri, item_ids)
    available_N = items.available_N
    unseen_N = np.zeros(len(item_ids), bool)
    if not artifact.model.needs.cold_items:
        unseen_N = catalogue.trained_N < 0
    available_N = available_N & ~unseen_N
    arrays = artifact.model.item_arrays(catalogue)
    owner_ids, profiles = log.user_ids, log.items
    trained_U = trained_users(artifact, log.user_ids)
    cold_U = profiles.keep(~unseen_N[profiles.values]).lengths == 0
    if not artifact.model.needs.cold_users:
        cold_U |= trained_U < 0
    if kind == "item_to_item":
        arrays = similarity(artifact.model.scorer(arrays), f"The model {artifact.model_id}")
        known_N = arrays["unit"].any(axis=1)  # what the model has not seen is near nothing
        row_Q, available_N = np.flatnonzero(known_N), available_N & known_N
        owner_ids, trained_U = item_ids.take(pa.array(row_Q)), np.full(len(row_Q), -1)
        profiles, cold_U = Ragged(row_Q, np.arange(len(row_Q) + 1)), np.zeros(len(row_Q), bool)
    shard_U = shard_of(owner_ids, shards)
    order = np.argsort(shard_U, kind="stable")  # the ids are sorted, so each shard's are
    data = ScoringData(
        item_ids=item_ids,
        available_N=available_N,
        owner_ids=owner_ids.take(pa.array(order)),
        shard_offsets=offsets_of(np.bincount(shard_U, minlength=shards)),
        profiles=profiles.take(order),
        unseen_N=unseen_N,
        trained_U=trained_U[order],
        count_N=np.bincount(log.item_R, minlength=len(item_ids)).astype(np.float32),
        cold_U=cold_U[order],
        artist_N=artist_codes(items.artist_N),
        without_item=log.without_item,
    )
    return data, arrays


def load_catalogue(
    artifact: Artifact, features: Store, items_uri: str | None
) -> tuple[pa.StringArray, Catalogue]:
    """All items that have features now, as the model sees them.

    Args:
        artifact: the model.
        features: the features directory.
        items_uri: the items table, for a model that needs categories.

    Raises:
        InputError: the features are of another backbone than the model's.
    """
    identity = {k: v for k, v in artifact.made_from["features"].items() if k != "digest"}
    require_same(
        read_manifest(features).identity, Identity(**identity), features, "model, or --features"
    )
    item_ids, feature_ND = load_features(features)
    category_N = None
    if artifact.model.needs.categories:
        category_N = category_codes(read_items(items_uri, item_ids).category_N, artifact.categories)
    return item_ids, Catalogue(feature_ND, _rows(item_ids, artifact.item_ids), category_N)


def trained_users(artifact: Artifact, user_ids: pa.Array) -> npt.NDArray[np.int64]:
    """(U,) the model's rows of these users, -1 for those it has not seen or need not know."""
    known = artifact.user_ids
    return np.full(len(user_ids), -1) if known is None else _rows(user_ids, known)


def _rows(ids: pa.Array, known: pa.Array) -> npt.NDArray[np.int64]:
    found = pc.fill_null(pc.index_in(ids, value_set=known), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def recommend_chain(
    data: "ray.ObjectRef[ScoringData]",
    arrays: "ray.ObjectRef[Arrays]",
    inputs: ScoringInputs,
    target: "Target",
    resources: ScoreResources,
    actors: int,
    tally: Any,
) -> Dataset:
    """The chain over shard numbers; its rows say what each shard's file is.

    The numbers lie there from the start: a task that makes them would want a CPU of its own.
    """
    numbers = [{"id": shard} for shard in range(target.shards)]
    return ray.data.from_items(numbers, override_num_blocks=target.shards).map_batches(
        ScoreShards,
        fn_constructor_args=(data, arrays, inputs.model, target, resources, tally),
        batch_size=1,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=resources.cpus_per_actor,
        num_gpus=1 if resources.use_gpu else None,
    )


@dataclass(frozen=True)
class Target:
    """What is written where.

    Args:
        run: the run's own directory.
        shards: how many files.
        k: entries a user.
        layout: of the tables.
        kind: whose lists they are.
        marks: file metadata: model id, run id, digest of all inputs.
    """

    run: Store
    shards: int
    k: int
    layout: Layout
    kind: Kind
    marks: Mapping[str, str]


class ScoreShards:
    """A shard's number in, its file written, what the file is out."""

    def __init__(
        self,
        data: "ray.ObjectRef[ScoringData]",
        arrays: "ray.ObjectRef[Arrays]",
        model: Store,
        target: Target,
        resources: ScoreResources,
        tally: Any,
    ) -> None:
        torch.set_num_threads(resources.cpus_per_actor)
        self._target, self._timer = target, Timer(tally)
        with self._timer.call("read"):
            self._data = ray.get(data)
            artifact = load_artifact(model)
            module: Any = artifact.model
            if resources.use_gpu:
                module = module.cuda()
            if target.kind == "item_to_item":
                self._scorer: Scorer = neighbours(ray.get(arrays), resources.use_gpu)
            else:
                self._scorer = module.scorer(ray.get(arrays))
            counts_N1 = torch.from_numpy(np.array(self._data.count_N))[:, None]
            popularity = DotScorer(counts_N1, lambda bags, _: torch.ones(len(bags), 1))
            self._search, self._fallback = (
                TopK(scorer, self._data.available_N, target.k)
                for scorer in (self._scorer, popularity)
            )
        if (reason := missing()) and not resources.use_gpu:
            tally.say_once.remote(f"no compiled kernel, so torch searches, slower: {reason}")

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        with self._timer.call():
            return self._shard(int(batch["id"][0]))

    def _shard(self, shard: int) -> dict[str, npt.NDArray[Any]]:
        name = shard_name(shard)
        marks = {**self._target.marks, "visrec.shard": str(shard)}
        found = existing_shard(self._target.run, name, marks)
        kept = found is not None
        if found is None:
            table = self._lists(shard)
            with self._timer.phase("write"):
                self._target.run.write_table(name, table, arrow_schema=False)
                found = existing_shard(self._target.run, name, marks)
            if found is None:
                raise RuntimeError(f"{self._target.run.uri(name)} is not what was written there")
        return {key: np.array([value]) for key, value in {**found, "kept": kept}.items()}

    def _lists(self, shard: int) -> pa.Table:
        """The lists of a shard's users, with the file's metadata."""
        data = self._data
        first, last = data.shard_offsets[shard : shard + 2]
        blocks = [
            self._block(start, min(start + _BLOCK, last)) for start in range(first, last, _BLOCK)
        ]
        tables, cold = zip(*(blocks or [self._block(first, first)]), strict=True)
        marks = {**self._target.marks, "visrec.shard": str(shard), _COLD: str(sum(cold))}
        return pa.concat_tables(tables).replace_schema_metadata(marks)

    def _block(self, start: int, stop: int) -> tuple[pa.Table, int]:
        """The lists of the users or items from `start` to `stop`, and how many users are cold."""
        data = self._data
        consumed, trained_B = data.profiles.slice(start, stop), data.trained_U[start:stop]
        profiles = consumed.keep(~data.unseen_N[consumed.values])
        with self._timer.phase("score"):
            best = self._search(profiles, trained_B, consumed)
        owner_ids = data.owner_ids.slice(start, stop - start)
        if self._target.kind == "item_to_item":
            self._timer.done(users=stop - start)
            with self._timer.phase("table"):
                lists = (best.row_BK, best.score_BK, self._target.layout)
                return similar_table(owner_ids, data.item_ids, *lists), 0
        cold_B = data.cold_U[start:stop]
        if cold_B.any():
            theirs = consumed.take(np.flatnonzero(cold_B))
            popular = self._fallback(theirs, trained_B[cold_B], theirs)
            best.row_BK[cold_B], best.score_BK[cold_B] = popular.row_BK, popular.score_BK
        with self._timer.phase("explain"):
            because_BK = self._because(profiles, np.where(cold_B[:, None], -1, best.row_BK))
        self._timer.done(users=stop - start)
        with self._timer.phase("table"):
            table = lists_table(
                owner_ids, data.item_ids, best.row_BK, best.score_BK, because_BK, cold_B,
                self._target.layout,
            )  # fmt: skip
        return table, int(cold_B.sum())

    def _because(self, profiles: Ragged, row_BK: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        space_Nd = self._scorer.space_Nd
        if space_Nd is None:
            return np.full(row_BK.shape, -1, np.int64)
        return nearest_of_profile(space_Nd, profiles, row_BK)


def shard_name(shard: int) -> str:
    """A shard's file."""
    return f"part-{shard:05d}.parquet"


def existing_shard(run: Store, name: str, marks: Mapping[str, str]) -> dict[str, Any] | None:
    """What a shard's file is, read back whole; None where it is missing or of other inputs."""
    if not run.exists(name):
        return None
    data = run.read(name)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowInvalid:
        return None
    found = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
    if any(found.get(key) != value for key, value in marks.items()):
        return None
    owner_ids = file.read(columns=file.schema_arrow.names[:1])[0]
    return {
        "name": name,
        "rows": len(owner_ids),
        "owners": pc.count_distinct(owner_ids).as_py(),
        "cold": int(found[_COLD]),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
