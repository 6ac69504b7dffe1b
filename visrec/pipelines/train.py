"""Features and interactions to a model: samples triples, fits with Ray Train, keeps the best epoch.

python jobs/train.py --local
python jobs/train.py --workspace s3://shop/visrec --resources.workers 4 --resources.use_gpu true
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc
import ray

from visrec.cli.launch import JobConfig, ModelChoice, Summary, require_resources
from visrec.cli.progress import follow
from visrec.config import digest
from visrec.errors import InputError
from visrec.interactions.split import SplitConfig
from visrec.models import MODELS
from visrec.models.artifact import LATEST, MANIFEST, Artifact, load_artifact
from visrec.paths import require_folder_name
from visrec.pipelines.input_checks import require_features, require_interactions, require_table
from visrec.sampling.triples import SamplingConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.store import Store
from visrec.training.data import TrainingData, load_training_data
from visrec.training.fit import TrainingRecipe
from visrec.training.loop import TrainConfig, require_equal_shares
from visrec.training.ray_train import Job, TrainResources, fit_at_once, fit_with_ray


@dataclass(frozen=True, kw_only=True)
class TrainKeys:
    """What is trained, on what and how: the keys that train.py and tune.py share.

    Attributes:
        features: features directory; by default features of the workspace.
        interactions: what was taken by whom; visrank and random are trained without, too.
        items: items table with categories, for models that ask for them, and with artists, for
            guidelines that do; by default items.parquet of the workspace.
        models: where the model's directory goes; by default models of the workspace.
        model_id: name of the model; by default made of its name and of a digest of data and
            settings, so that the same command goes on with the same model.
        model: which model; its other keys are the model's own.
        split: what is held out.
        sampling: how triples are drawn.
        train: how the model is fitted.
        resources: what training may take of the cluster.
    """

    features: str | None = None
    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    items: str | None = None
    models: str | None = None
    model_id: str | None = None
    model: ModelChoice = field(default_factory=ModelChoice)
    split: SplitConfig = field(default_factory=SplitConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resources: TrainResources = field(default_factory=TrainResources)

    def __post_init__(self) -> None:
        if self.model_id is not None:
            require_folder_name(self.model_id, "model_id")
        if MODELS[self.model.name].trains_on != "nothing":
            require_equal_shares(self.train, self.resources.workers)


@dataclass(frozen=True, kw_only=True)
class TrainJob(TrainKeys, JobConfig):
    """Features and interactions to a model."""


def check(config: TrainJob) -> None:
    """Raises an InputError where an input is not there or not as declared."""
    require_features(config.resolve(config.features, "features"))
    check_tables(config)


def check_tables(config: TrainJob) -> None:
    """The same for what a night needs before its first step."""
    require_interactions(config.interactions, interactions_of(config))
    require_table(_items_uri(config), "items")


def main(config: TrainJob, summary: Summary) -> None:
    models, artifact, counts = train(config, summary)
    models.write_json(LATEST, {"model_id": artifact.model_id, "digest": artifact.digest})
    summary.rows = {
        "model": artifact.model_id,
        "validation AUC": _rounded(artifact.metrics["val_auc"]),
        "epochs": artifact.metrics["epochs"],
        **counts,
        "model at": (models / artifact.model_id).root,
        "digest": artifact.digest,
    }


def _rounded(auc: float | None) -> float | None:
    """None where nobody was there to validate with."""
    return None if auc is None or math.isnan(auc) else round(auc, 4)


def train(config: TrainJob, summary: Summary) -> tuple[Store, Artifact, dict[str, Any]]:
    """Trains what is not trained already; returns where the models are, this one, and counts."""
    features = Store.at(config.resolve(config.features, "features"))
    models = Store.at(config.resolve(config.models, "models"))
    models.check_writable()
    data, facts = read(config, features, summary)
    settings = digest(facts["provenance"], config.model, config.train, config.sampling)
    model_id = config.model_id or f"{config.model.name}-{settings[:12]}"
    store = models / model_id
    if store.exists(MANIFEST):
        print(f"{model_id} is trained already: nothing to do.", flush=True)
    else:
        # Checkpoints of other data or settings are never gone on from; for more epochs they are.
        once = dataclasses.replace(config.train, epochs=1)
        mark = digest(facts["provenance"], config.model, once, config.sampling)
        job = Job(
            recipe=recipe_of(config),
            data=data,
            artifact_store=store,
            model_id=model_id,
            settings=settings,
            threads=config.resources.cpus_per_worker,
            tally=None,
        )
        _fit(config, summary, job, f"{model_id}-{mark[:8]}")
    artifact = load_artifact(store)
    if artifact.provenance["settings"] != settings:
        raise _other_settings(store, model_id)
    return models, artifact, {**facts["counts"], **facts["rows"]}


def read(
    config: TrainJob, features: Store, summary: Summary
) -> tuple["ray.ObjectRef[TrainingData]", Any]:
    """The training data, left where a task put it together, and what the driver knows of it."""
    with summary.phase("read"):
        data = ray.remote(load_training_data).remote(*load_inputs(config, features))
        facts = ray.get(_describe.remote(data))
    print("  ".join(f"{value:,} {name}" for name, value in facts["counts"].items()), flush=True)
    for note in facts["notes"]:
        print(note, flush=True)
    return data, facts


def load_inputs(config: TrainJob, features: Store) -> tuple[Any, ...]:
    """What `load_training_data` is called with."""
    return (
        features,
        config.interactions,
        interactions_of(config),
        config.split,
        _items_uri(config),
        MODELS[config.model.name].needs,
        config.sampling if _draws_triples(config) else None,
    )


def recipe_of(config: TrainJob) -> TrainingRecipe:
    """What is fitted and how."""
    return TrainingRecipe(config.model.name, config.model.config, config.train, config.sampling)


def interactions_of(config: TrainJob) -> str | None:
    """The interactions; None where there are none and the model needs none."""
    if MODELS[config.model.name].needs.interactions:
        return config.resolve(config.interactions.path, "interactions.parquet")
    return config.resolve_if_exists(config.interactions.path, "interactions.parquet")


def _draws_triples(config: TrainJob) -> bool:
    return MODELS[config.model.name].trains_on not in ("nothing", "users")


def _items_uri(config: TrainJob) -> str | None:
    """The items table, for a model that needs categories or guidelines that ask for artists.

    Raises:
        InputError: there is none, and the model needs it.
    """
    needed = MODELS[config.model.name].needs.categories
    if not needed and not (_draws_triples(config) and config.sampling.by_artist):
        return None
    uri = config.resolve_if_exists(config.items, "items.parquet")
    if uri is None and needed:
        raise InputError(
            f"{config.model.name} needs each item's category, and found no items table at "
            f"{config.resolve(None, 'items.parquet')}; expected one with item_id and category. "
            "Name one with --items, or choose another --model.name."
        )
    return uri


def _other_settings(store: Store, model_id: str) -> InputError:
    return InputError(
        f"{store.root} was made from other data or with other settings than these; expected the "
        f"same, or a new name. Change --model_id {model_id}, or leave it out."
    )


def _fit(config: TrainJob, summary: Summary, job: Job, run: str) -> None:
    resources = config.resources
    summary.has_written = True
    with follow("train", 0, summary) as tally:
        job = dataclasses.replace(job, tally=tally)
        if MODELS[config.model.name].trains_on == "nothing":
            ray.get(ray.remote(fit_at_once).remote(job))
        else:
            require_resources(of_one_model(resources), config, "resources.workers")
            fit_with_ray(job, run, resources, Store.at(config.resolve(None, "training")))


def of_one_model(resources: TrainResources) -> dict[str, float]:
    """CPUs and GPUs that the training of one model takes."""
    cpus = {"CPU": float(resources.workers * resources.cpus_per_worker)}
    return {**cpus, "GPU": float(resources.workers)} if resources.use_gpu else cpus


@ray.remote
def _describe(data: TrainingData) -> dict[str, Any]:
    counts = {
        "items": len(data.item_ids),
        "users": len(data.user_ids),
        "training interactions": len(data.train.values),
        "validation users": len(data.validation),
        "test users held out": pc.count_distinct(data.test_pairs["user_id"]).as_py(),
    }
    return {
        "counts": counts,
        "rows": data.reading.summary,
        "notes": data.notes,
        "provenance": dict(data.provenance),
    }
