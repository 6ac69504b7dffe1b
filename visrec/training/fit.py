"""A model's fit from beginning to end. This module does not use Ray.

A model is fitted twice. The first fit holds the validation rows out and selects the epoch that
ranks them best. The second, the refit, starts again from the same seed and trains up to that epoch,
with the validation rows among the training rows. The validation rows are the most recent ones, and
so the most similar to what the model has to predict. Some models add a score in closed form to that
of their network. The first fit also chooses the weight of that score, and each fit computes the
score from its own training rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visrec.models import MODELS
from visrec.models.base import Model, ModelConfig
from visrec.sampling.triples import SamplingConfig
from visrec.training.batch_sources import SOURCES
from visrec.training.checkpoints import read_progress, restore_checkpoint
from visrec.training.data import TrainingData
from visrec.training.distributed import WorkerContext
from visrec.training.loop import Progress, TrainConfig, Trainer, fit_is_finished


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that determines a model, besides the data.

    Attributes:
        model_name: the model's key in `MODELS`.
        model_config: the model's own configuration.
        train: how to fit.
        sampling: how to sample.
    """

    model_name: str
    model_config: ModelConfig
    train: TrainConfig
    sampling: SamplingConfig


def default_train_config(model_name: str) -> TrainConfig:
    """A model's default training settings.

    Args:
        model_name: the model's key in `MODELS`.
    """
    settings: dict[str, Any] = {**MODELS[model_name].default_overrides.to_dict()}
    return replace(TrainConfig(), **settings)


def require_examples(recipe: TrainingRecipe, data: TrainingData) -> None:
    """Checks that the data give the model something to train on.

    Raises:
        NoExamplesError: they do not.
    """
    model = MODELS[recipe.model_name]
    if model.trains_on != "nothing":
        SOURCES[model.trains_on](data, recipe.sampling, recipe.train.seed, model.traits)


def build_model(recipe: TrainingRecipe, data: TrainingData) -> Model:
    """A model with initial weights from the seed, after its closed-form `fit`."""
    torch.manual_seed(recipe.train.seed)
    model = MODELS[recipe.model_name](recipe.model_config, data.sizes)
    model.fit(data.catalogue, data.train)
    return model


def build_trainer(
    recipe: TrainingRecipe,
    data: TrainingData,
    context: WorkerContext | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    first_fit_progress: Progress | None = None,
) -> Trainer:
    """A trainer before its first epoch.

    Args:
        recipe: what to fit and how.
        data: training data with the validation rows held out.
        context: which worker this is; by default the only one, on the CPU.
        wrap: see `Trainer`.
        first_fit_progress: for a refit, the final progress of the first fit.
    """
    context = context or WorkerContext()
    data = data.for_refit if first_fit_progress else data
    model = build_model(recipe, data).to(context.device)
    trainer = Trainer(model, data, recipe.train, recipe.sampling, context, wrap)
    trainer.progress.first_fit_progress = first_fit_progress
    return trainer


def restore_trainer(
    recipe: TrainingRecipe,
    data: TrainingData,
    folder: Path,
    context: WorkerContext | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> Trainer:
    """The trainer of a checkpoint, which may be of either fit.

    The first fit starts again from scratch if it has already had more epochs than the recipe now
    allows, or if it has ended and the recipe now allows more.
    """
    progress = read_progress(folder)
    first = progress.first_fit_progress
    has_too_many = len(progress.first_fit.history) > recipe.train.epochs
    may_go_on = first and not fit_is_finished(first, recipe.train.epochs, recipe.train)
    if has_too_many or may_go_on:
        return build_trainer(recipe, data, context, wrap)
    trainer = build_trainer(recipe, data, context, wrap, first)
    restore_checkpoint(trainer, folder)
    return trainer


def train_to_end(
    trainer: Trainer, recipe: TrainingRecipe, data: TrainingData, report: Callable[[Trainer], None]
) -> Trainer:
    """Runs a trainer to its end, and then the refit, if there is one.

    Args:
        trainer: the trainer of either fit, new or restored. That of a first fit is freed before
            the refit.
        recipe: what the trainer was built from.
        data: training data with the validation rows held out.
        report: called after each epoch of either fit.

    Returns:
        The trainer whose `best_weights` are the model's.
    """
    trainer.run(report)
    if not trainer.progress.first_fit_progress:
        trainer.choose_added_weight()
        if recipe.train.refit and len(data.validation):
            # `run_training` and its caller still hold this trainer, so its arrays have to go first.
            trainer.free()
            trainer = build_trainer(recipe, data, trainer.context, trainer.wrap, trainer.progress)
            trainer.run(report)
    trainer.keep_added_score(trainer.progress.first_fit.added_weight)
    return trainer


def training_seconds(progress: Progress) -> float:
    """Seconds of all epochs of both fits, validation included."""
    first = progress.first_fit_progress
    fits = [progress, first] if first else [progress]
    return round(sum(epoch["seconds"] for fit in fits for epoch in fit.history), 3)


def training_metrics(progress: Progress) -> dict[str, Any]:
    """The content of a model's metrics.json.

    It contains no timings, so that the same data, settings and seed give the same bytes.
    """
    first = progress.first_fit
    refit = progress.history if progress.first_fit_progress else []
    return {
        "val_auc": first.best_auc,
        "epochs": len(first.history),
        "best_epoch": first.best_epoch,
        "added_weight": first.added_weight,
        "history": [_without(epoch, "seconds") for epoch in first.history],
        "refit": [_without(epoch, "seconds", "val_auc") for epoch in refit],
    }


def _without(epoch: dict[str, float], *keys: str) -> dict[str, float]:
    return {key: value for key, value in epoch.items() if key not in keys}
