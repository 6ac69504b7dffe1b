"""What a model is made of besides the data, and its making from beginning to end. No Ray in here.

A model is fitted twice: first with the validation baskets held out, to find the epoch that ranks
them best, and then anew, from the same seed, for as many epochs with those baskets among its
training items. What it is used or tested for comes after them, and is most like them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visrec.models import MODELS
from visrec.sampling.triples import SamplingConfig
from visrec.training.checkpoints import read_progress, restore_checkpoint
from visrec.training.data import TrainingData
from visrec.training.loop import Progress, TrainConfig, Trainer, WorkerContext, is_over


@dataclass(frozen=True)
class TrainingRecipe:
    """All that a model depends on, besides the data.

    Args:
        model_name: in `MODELS`.
        model_config: its config.
        train: how to fit.
        sampling: how to draw.
    """

    model_name: str
    model_config: Any
    train: TrainConfig
    sampling: SamplingConfig


def build_model(recipe: TrainingRecipe, data: TrainingData) -> Any:
    """The model with weights from the seed, fitted to what needs no gradient."""
    torch.manual_seed(recipe.train.seed)
    model = MODELS[recipe.model_name](recipe.model_config, data.sizes)
    model.fit(data.catalogue, data.train)
    return model


def build_trainer(
    recipe: TrainingRecipe,
    data: TrainingData,
    context: WorkerContext | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    chosen: Progress | None = None,
) -> Trainer:
    """A trainer before its first epoch.

    Args:
        recipe: what to fit and how.
        data: with the validation baskets held out.
        context: which worker of how many; one on the CPU by default.
        wrap: see `Trainer`.
        chosen: the finished progress by which the epoch was chosen: this is the fit after it.
    """
    context = context or WorkerContext()
    data = data.refit if chosen else data
    model = build_model(recipe, data).to(context.device)
    trainer = Trainer(model, data, recipe.train, recipe.sampling, context, wrap)
    trainer.progress.chosen = chosen
    return trainer


def restore_trainer(
    recipe: TrainingRecipe,
    data: TrainingData,
    folder: Path,
    context: WorkerContext | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> Trainer:
    """The trainer of a checkpoint, in either fit.

    Where more epochs are asked for than the choice was made from, it is made anew.
    """
    chosen = read_progress(folder).chosen
    if chosen and not is_over(chosen, recipe.train.epochs, recipe.train):
        return build_trainer(recipe, data, context, wrap)
    trainer = build_trainer(recipe, data, context, wrap, chosen)
    restore_checkpoint(trainer, folder)
    return trainer


def train_to_end(
    trainer: Trainer, recipe: TrainingRecipe, data: TrainingData, report: Callable[[Trainer], None]
) -> Trainer:
    """Runs a trainer to its end, and the second fit after it where there is to be one.

    Args:
        trainer: of either fit, wherever it stands.
        recipe: what it is of.
        data: with the validation baskets held out.
        report: called after each epoch of each.

    Returns:
        The trainer whose `best` weights are the model's.
    """
    trainer.run(report)
    if recipe.train.refit and len(data.validation) and not trainer.progress.chosen:
        trainer = build_trainer(recipe, data, trainer.context, trainer.wrap, trainer.progress)
        trainer.run(report)
    return trainer


def seconds(progress: Progress) -> float:
    """What the epochs of both fits took, validation in it."""
    fits = [progress, progress.chosen] if progress.chosen else [progress]
    return round(sum(epoch["seconds"] for fit in fits for epoch in fit.history), 3)


def metrics_of(progress: Progress) -> dict[str, Any]:
    """What a model's metrics.json says of its training.

    Without the seconds: the same data, settings and seed give the same bytes.
    """
    choice = progress.chosen or progress
    history, again = (
        [{k: v for k, v in epoch.items() if k not in without} for epoch in entries]
        for entries, without in (
            (choice.history, {"seconds"}),
            (progress.history if progress.chosen else [], {"seconds", "val_auc"}),
        )
    )
    return {
        "val_auc": choice.best_auc,
        "epochs": len(history),
        "best_epoch": choice.best_epoch,
        "history": history,
        "refit": again,
    }
