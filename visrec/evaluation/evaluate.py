"""The Ray Data step of evaluation: every model ranks every held-out user, exactly.

What is shared is computed once: the split, the catalogue, each model's item arrays. An actor takes
a block of users through all models; the per-user metrics go to one task that sums them up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from visrec.errors import InputError
from visrec.evaluation.metrics import per_user, summarise
from visrec.evaluation.oracle import Oracle, read_oracle
from visrec.evaluation.ranking import stand
from visrec.interactions.log import build_log
from visrec.interactions.split import HeldOut, Part, SplitConfig, held_out, split
from visrec.models import MODELS
from visrec.models.artifact import Artifact, load_artifact
from visrec.models.contract import Arrays, Catalogue, Scorer, Sizes
from visrec.models.visrank import VisRankConfig
from visrec.progress import Timer
from visrec.scoring.recommend import load_catalogue, trained_users
from visrec.sources.interactions import InteractionsConfig, read_interactions
from visrec.storage import Store

USERS = 64  # users a task takes through all models


@dataclass(frozen=True)
class Contestant:
    """A model of the table: a trained one from its directory, or one that needs no training.

    Args:
        label: its name in the table.
        model: its entry in `MODELS`; None for the oracle.
        config: its config.
        store: its directory, for a trained one.
    """

    label: str
    model: str | None
    config: Any = None
    store: Store | None = None


BASELINES = (
    Contestant("visrank-max", "visrank", VisRankConfig(mode="max")),
    Contestant("visrank-mean", "visrank", VisRankConfig(mode="mean")),
    Contestant("visrank-mean_top_k", "visrank", VisRankConfig(mode="mean_top_k")),
    Contestant("popularity", "popularity", MODELS["popularity"].Config()),
    Contestant("random", "random", MODELS["random"].Config()),
)


@dataclass(frozen=True)
class EvaluationInputs:
    """Where evaluation reads.

    Args:
        model: the trained model's directory.
        features: the features directory.
        interactions: which of them count.
        interactions_uri: where they are.
        items_uri: the items table, or None.
        truth: planted truth, or None.
    """

    model: Store
    features: Store
    interactions: InteractionsConfig
    interactions_uri: str
    items_uri: str | None
    truth: Store | None


@dataclass(frozen=True)
class EvaluationData:
    """Held-out users, and what each contestant makes of the items; shared by the workers of a node.

    Args:
        item_ids: (N,) sorted.
        user_ids: (E,) the held-out users.
        held: their profiles and held-out items.
        contestants: the models.
        arrays: each one's item arrays.
        user_rows: each one's (E,) trained user rows, -1 for users it has not seen.
    """

    item_ids: pa.StringArray
    user_ids: pa.StringArray
    held: HeldOut
    contestants: Sequence[Contestant]
    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    user_rows: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def prepare_evaluation(inputs: EvaluationInputs) -> EvaluationData:
    """Reads everything once and lets each model see the items.

    Raises:
        InputError: something is missing, does not fit the model, or nobody is held out.
    """
    artifact = load_artifact(inputs.model)
    _require_held_out(artifact, inputs.model)
    item_ids, catalogue = load_catalogue(artifact, inputs.features, inputs.items_uri)
    log = build_log(read_interactions(inputs.interactions, inputs.interactions_uri), item_ids)
    part_R = split(log, SplitConfig(**artifact.made_from["split"]))
    held = held_out(log, part_R, Part.TEST)
    if not len(held):
        raise InputError(
            f"None of the {len(log.user_ids)} users of {inputs.interactions_uri} has two baskets, "
            "or rows marked in an evaluation column; evaluation needs some that do."
        )
    user_ids = log.user_ids.take(pa.array(held.user_E))
    trained = Contestant(artifact.name, artifact.name, artifact.config, inputs.model)
    known = log.where(part_R < Part.TEST)
    arrays = {trained.label: artifact.model.item_arrays(catalogue)}
    rows = {trained.label: trained_users(artifact, user_ids)}
    # Baselines know all that comes before the test basket, as the profiles do.
    fresh = Catalogue(catalogue.feature_ND, trained_N=np.arange(len(item_ids)))
    sizes = Sizes(items=len(item_ids), users=0, feature_dim=catalogue.feature_ND.shape[1])
    others = [c for c in BASELINES if c.label != trained.label]
    for baseline in others:
        model = MODELS[str(baseline.model)](baseline.config, sizes)
        model.fit(fresh, known)
        arrays[baseline.label] = model.item_arrays(fresh)
        rows[baseline.label] = np.full(len(user_ids), -1)
    contestants = [trained, *others]
    if inputs.truth:
        oracle = Contestant("oracle", None)
        arrays["oracle"], rows["oracle"] = read_oracle(inputs.truth, item_ids, user_ids)
        contestants.append(oracle)
    return EvaluationData(item_ids, user_ids, held, contestants, arrays, rows)


def _require_held_out(artifact: Artifact, store: Store) -> None:
    if not artifact.made_from["split"]["test"]:
        raise InputError(
            f"The model at {store.root} was trained with --split.test false: it has seen what it "
            "would be judged by. Train one with --split.test true to evaluate."
        )


def scorer_of(contestant: Contestant, data: EvaluationData) -> Scorer:
    """A contestant's scorer over the arrays that were computed for all workers."""
    arrays = data.arrays[contestant.label]
    if contestant.model is None:
        return Oracle.scorer(arrays)
    if contestant.store:
        return load_artifact(contestant.store).model.scorer(arrays)
    sizes = Sizes(items=len(data.item_ids), users=0, feature_dim=0)
    scorer: Scorer = MODELS[contestant.model](contestant.config, sizes).scorer(arrays)
    return scorer


def evaluate_chain(
    data: "ray.ObjectRef[EvaluationData]", users: int, threads: int, actors: int, tally: Any
) -> Dataset:
    """The chain over blocks of users; its rows are (model, user, metrics)."""
    blocks = -(-users // USERS)
    return ray.data.range(blocks, override_num_blocks=blocks).map_batches(
        RankUsers,
        fn_constructor_args=(data, threads, tally),
        batch_size=1,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=threads,
    )


class RankUsers:
    """A block's number in, the metrics of its users by every model out."""

    def __init__(self, data: "ray.ObjectRef[EvaluationData]", threads: int, tally: Any) -> None:
        torch.set_num_threads(threads)
        self._data: EvaluationData = ray.get(data)
        self._scorers = {c.label: scorer_of(c, self._data) for c in self._data.contestants}
        self._timer = Timer(tally)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        start = int(batch["id"][0]) * USERS
        rows = np.arange(start, min(start + USERS, len(self._data.held)))
        held = self._data.held.take(rows)
        parts = []
        for label, scorer in self._scorers.items():
            user_B = self._data.user_rows[label][rows]
            with self._timer.phase("rank"):
                standing = stand(scorer, held.profiles, user_B, held.targets)
                metrics = per_user(standing)
            facts = {
                "model": pa.repeat(pa.scalar(label), len(rows)),
                "user_id": self._data.user_ids.take(pa.array(rows)),
                "profile_size": held.profiles.lengths,
            }
            parts.append(pa.table({**facts, **metrics}))
        self._timer.done(users=len(rows))
        return pa.concat_tables(parts)


def sum_up(
    labels: Sequence[str], target: Store, *blocks: pa.Table
) -> dict[str, dict[str, dict[str, float]]]:
    """Writes the per-user metrics and returns each model's means with intervals.

    Args:
        labels: the models, in the order of the result.
        target: where `per_user.parquet` goes.
        blocks: what the chain gave, in any order.
    """
    whole = pa.concat_tables(blocks).sort_by([("model", "ascending"), ("user_id", "ascending")])
    target.write_table("per_user.parquet", whole)
    names = whole.column_names[3:]
    model = whole["model"].to_numpy(zero_copy_only=False)
    columns = {name: whole[name].to_numpy() for name in names}
    return {
        label: summarise({name: columns[name][model == label] for name in names})
        for label in labels
    }
