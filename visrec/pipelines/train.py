"""Trains a model on features and interactions, and keeps its best epoch.

visrec train --local
visrec train --workspace s3://shop/visrec --resources.workers 4 --resources.use_gpu true
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from visrec.cli.cluster import ensure_ray
from visrec.cli.job import JobConfig, ModelChoice
from visrec.cli.output import say
from visrec.cli.progress_line import track_progress
from visrec.cli.resources import require_resources
from visrec.cli.summary import Summary
from visrec.config import check_fields, digest
from visrec.errors import InputError
from visrec.features.item_features import ItemFeatures
from visrec.interactions.split import SplitConfig
from visrec.models import MODELS
from visrec.models.artifact import LATEST, MODEL_MANIFEST, Artifact, load_artifact
from visrec.models.provenance import DataProvenance
from visrec.paths import require_folder_name
from visrec.pipelines.input_checks import (
    announce_tables,
    require_features,
    require_interactions,
    require_table,
)
from visrec.pipelines.job_tables import (
    find_interactions,
    interactions_uri,
    items_table,
    prepared_store,
)
from visrec.sampling.triples import SamplingConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.tasks import Ref, call, on_ray, submit
from visrec.training.batch_sources import used_sampling
from visrec.training.data import TrainingData, TrainingInputs, load_training_data
from visrec.training.fit import TrainingRecipe, default_train_config, require_examples
from visrec.training.loop import TrainConfig, require_equal_shares
from visrec.training.task import TrainResources, TrainTask, fit_closed_form, fit_in_process
from visrec.training.tracking import TrackerAccess, TrackerName, require_tracker


@dataclass(frozen=True, kw_only=True)
class TrainKeys:
    """The keys that train.py and tune.py share: what is trained, on what, and how.

    Attributes:
        features: features directory of the pictures; by default features in the workspace.
        text_features: features directory of the texts; by default text_features in the workspace.
        item_features: what the model knows about an item: its picture, its text, or both. With
            both, items without a text count as average in it; items without a picture are not
            recommended.
        interactions: which users took which items; visrank and random do not need any.
        items: items table, with categories for models that use them and artists for guidelines
            that use them; by default items.* in the workspace.
        items_columns: its columns that have other names in the files, such as {item_id: sku}.
        model_id: name of the model; by default the name of its kind and a digest of data and
            settings, so that the same command continues with the same model.
        model: the model to train; its other keys are those of the model itself.
        split: what is held out.
        sampling: how triples are sampled.
        train: how the model is fitted.
        resources: the cluster resources that training uses.
        track: experiment tracker that shows the training; of a search, the training of its best
            trial. Each finds its server in its own variables, such as MLFLOW_TRACKING_URI.
    """

    features: str | None = None
    text_features: str | None = None
    item_features: ItemFeatures = "pictures"
    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    items: str | None = None
    items_columns: dict[str, str] = field(default_factory=dict)
    model_id: str | None = None
    model: ModelChoice = field(default_factory=ModelChoice)
    split: SplitConfig = field(default_factory=SplitConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    train: TrainConfig = field(default_factory=lambda: default_train_config(ModelChoice().name))
    resources: TrainResources = field(default_factory=TrainResources)
    track: TrackerName | None = None

    def __post_init__(self) -> None:
        require_tracker(self.track)
        if self.model_id is not None:
            require_folder_name(self.model_id, "model_id")
        check_fields(self, "")
        if MODELS[self.model.name].trains_on != "nothing":
            require_equal_shares(self.train, self.resources.workers)


@dataclass(frozen=True, kw_only=True)
class TrainJob(TrainKeys, JobConfig):
    """Trains a model."""


def check(config: TrainJob) -> None:
    """Checks the inputs before Ray starts.

    Raises:
        InputError: an input is missing or has other columns than declared.
    """
    require_features(config.item_features, config, config.features, config.text_features)
    check_tables(config)
    announce_tables(config.interactions, training_interactions(config), _items_table(config))


def check_tables(config: TrainJob) -> None:
    """Checks the tables alone, because a night makes the features before it trains."""
    require_interactions(config.interactions, training_interactions(config))
    require_table(_items_table(config), schemas.ITEMS)


def main(config: TrainJob, summary: Summary) -> None:
    trained = train(config, summary)
    artifact = trained.artifact
    latest = {"model_id": artifact.model_id, "digest": artifact.digest}
    models_store(config).write_json(LATEST, latest)
    summary.rows = {
        "model": artifact.model_id,
        "validation AUC": _rounded(artifact.metrics["val_auc"]),
        "epochs": artifact.metrics["epochs"],
        **trained.counts,
        "model at": trained.store.root,
        "digest": artifact.digest,
    }


def _rounded(auc: float | None) -> float | None:
    """The AUC for the summary; None without validation users."""
    return None if auc is None or math.isnan(auc) else round(auc, 4)


@dataclass(frozen=True)
class TrainedModel:
    """A trained model.

    Attributes:
        store: its directory.
        artifact: its content.
        counts: rows of the summary about the data.
    """

    store: Store
    artifact: Artifact
    counts: dict[str, Any]


def train(config: TrainJob, summary: Summary) -> TrainedModel:
    """Trains a model, unless the workspace has it already.

    Raises:
        InputError: the workspace has a model of this name that was made from other data or
            settings.
        NoExamplesError: the data give the model nothing to train on.
    """
    models = models_store(config)
    models.check_writable()
    if config.resources.workers > 1 or config.resources.use_gpu:
        ensure_ray(config, summary)
    loaded = load_data(config, summary)
    settings_digest = _settings_digest(config, loaded.provenance)
    model_id = config.model_id or f"{config.model.name}-{settings_digest[:12]}"
    store = models / model_id
    if store.exists(MODEL_MANIFEST):
        say(f"{model_id} is trained already: nothing to do.")
    else:
        # Checked here: Ray would restart a worker that fails for lack of data.
        call(require_examples, training_recipe(config), loaded.data)
        task = TrainTask(
            recipe=training_recipe(config),
            data=loaded.data,
            artifact_store=store,
            model_id=model_id,
            settings_digest=settings_digest,
            threads=config.resources.cpus_per_worker,
            progress_actor=None,
            track=config.track and TrackerAccess.from_environment(config.track),
        )
        _fit(config, summary, task, f"{model_id}-{_checkpoint_digest(config, loaded)[:8]}")
    artifact = load_artifact(store)
    if artifact.provenance.settings_digest != settings_digest:
        raise InputError(
            f"{store.root} was made from other data or with other settings than these; expected "
            f"the same, or a new name. Change --model_id {model_id}, or leave it out."
        )
    return TrainedModel(store, artifact, {**loaded.counts, **loaded.read_counts})


def models_store(config: TrainJob) -> Store:
    """The directory of the workspace's models."""
    return Store.at(config.resolve(None, "models"))


def _settings_digest(config: TrainJob, provenance: DataProvenance) -> str:
    return digest(provenance.to_dict(), config.model, config.train, config.sampling)


def _checkpoint_digest(config: TrainJob, loaded: "LoadedData") -> str:
    """The digest of all data and settings except the number of epochs.

    A training is resumed from a checkpoint with the same digest.
    """
    ignoring_epochs = dataclasses.replace(config.train, epochs=1)
    config = dataclasses.replace(config, train=ignoring_epochs)
    return _settings_digest(config, loaded.provenance)


@dataclass(frozen=True)
class LoadedData:
    """Training data, which may be in Ray's object store, and what the driver knows of it.

    Attributes:
        data: its reference.
        counts: numbers of items, users and rows in each part of the split.
        read_counts: rows of the interactions that were read and left out.
        notes: sentences for the user about parts of the split that are empty.
        provenance: digests and settings of the inputs.
    """

    data: Ref
    counts: dict[str, int]
    read_counts: dict[str, Any]
    notes: tuple[str, ...]
    provenance: DataProvenance

    @property
    def has_validation(self) -> bool:
        return self.counts["validation users"] > 0


def load_data(config: TrainJob, summary: Summary) -> LoadedData:
    """Loads the training data in a task, which leaves it in the object store."""
    features = Store.at(config.resolve(config.features, "features"))
    with summary.phase("read"):
        data = submit(load_training_data, training_inputs(config, features))
        loaded = LoadedData(data=data, **call(_describe, data))
    say("  ".join(f"{value:,} {name}" for name, value in loaded.counts.items()))
    for note in loaded.notes:
        say(note)
    return loaded


def _describe(data: TrainingData) -> dict[str, Any]:
    """The fields of `LoadedData` except the reference, by name."""
    counts = {
        "items": len(data.item_ids),
        "users": len(data.user_ids),
        "training interactions": len(data.train.values),
        "validation users": len(data.validation),
        "test users held out": pc.count_distinct(data.test_pairs["user_id"]).as_py(),
    }
    if data.without_text:
        counts["items without a text"] = data.without_text
    return {
        "counts": counts,
        "read_counts": data.read_report.summary,
        "notes": data.notes,
        "provenance": data.provenance,
    }


def training_inputs(config: TrainJob, features: Store) -> TrainingInputs:
    return TrainingInputs(
        features=features,
        interactions=config.interactions,
        interactions_uri=training_interactions(config),
        items_table=_items_table(config),
        split=config.split,
        traits=MODELS[config.model.name].traits,
        sampling=used_sampling(MODELS[config.model.name].trains_on, config.sampling),
        text_features=Store.at(config.resolve(config.text_features, "text_features")),
        item_features=config.item_features,
        prepared=prepared_store(config),
    )


def training_recipe(config: TrainJob) -> TrainingRecipe:
    return TrainingRecipe(config.model.name, config.model.config, config.train, config.sampling)


def training_interactions(config: TrainJob) -> str | None:
    """Where the interactions are; None without any, for a model that does not need them."""
    if MODELS[config.model.name].traits.requires_interactions:
        return interactions_uri(config, config.interactions)
    return find_interactions(config, config.interactions)


def _items_table(config: TrainJob) -> InputTable | None:
    """Where the items table is; None where neither the model nor a guideline uses it.

    Raises:
        InputError: the model requires categories, and there is no items table.
    """
    is_required = MODELS[config.model.name].traits.requires_categories
    sampling = used_sampling(MODELS[config.model.name].trains_on, config.sampling)
    if not is_required and not (sampling and sampling.artist_conditions):
        return None
    table = items_table(config, config.items, config.items_columns)
    if table is None and is_required:
        raise InputError(
            f"{config.model.name} needs each item's category, and found no items table at "
            f"{config.resolve(None, 'items.*')}; expected one with item_id and category. "
            "Name one with --items, or choose another --model.name."
        )
    return table


def _fit(config: TrainJob, summary: Summary, task: TrainTask, checkpoint_name: str) -> None:
    """Fits the model and writes it.

    Args:
        config: the configuration of the job.
        summary: receives the time and the progress.
        task: what the workers are given.
        checkpoint_name: name of the checkpoint folder; the same name resumes it.
    """
    resources = config.resources
    summary.has_written = True
    with track_progress("train", 0, summary) as progress_actor:
        task = dataclasses.replace(task, progress_actor=progress_actor)
        checkpoints = Store.at(config.resolve(None, "training"))
        if MODELS[config.model.name].trains_on == "nothing":
            call(fit_closed_form, task)
        elif not on_ray():
            fit_in_process(task, checkpoints / checkpoint_name)
        else:
            from visrec.training.ray_train import fit_with_ray  # which takes seconds to import

            require_resources(resources.total, config, "resources.workers")
            fit_with_ray(task, checkpoint_name, resources, checkpoints)
