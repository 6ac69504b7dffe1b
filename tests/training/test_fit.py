"""The two fits: one that selects the epoch, and the refit with the validation rows."""

import dataclasses
import gc
import math
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training import checkerboard
from visrec.errors import VisrecError
from visrec.models.curatornet import CuratorNetConfig
from visrec.models.hybrid import EASE_BUFFERS, HybridConfig
from visrec.progress import ProgressActor, Timer
from visrec.sampling.triples import SamplingConfig
from visrec.tasks import LocalActor
from visrec.training import loop
from visrec.training.checkpoints import save_checkpoint
from visrec.training.data import TrainingData
from visrec.training.fit import (
    TrainingRecipe,
    build_trainer,
    restore_trainer,
    train_to_end,
    training_metrics,
)
from visrec.training.loop import TrainConfig, Trainer
from visrec.training.task import _report
from visrec.training.tracking import Tracker

DATA = checkerboard(noise=8.0)
TRAIN = TrainConfig(
    epochs=5,
    triples_per_epoch=320,
    batch_size=64,
    learning_rate=0.05,
    lr_patience=0,
    stop_patience=3,
)
RECIPE = TrainingRecipe(
    "curatornet", CuratorNetConfig(item_width=12, user_width=10), TRAIN, SamplingConfig()
)


def _with(**changes: object) -> TrainingRecipe:
    return dataclasses.replace(RECIPE, train=dataclasses.replace(TRAIN, **changes))


def _train(recipe: TrainingRecipe) -> Trainer:
    return train_to_end(build_trainer(recipe, DATA), recipe, DATA, lambda _: None)


def _have_equal_weights(one: Trainer, other: Trainer) -> bool:
    return all(
        torch.equal(one.best_weights[key], other.best_weights[key]) for key in one.best_weights
    )


def test_refit_trains_on_all_rows_for_the_selected_number_of_epochs() -> None:
    steady = {"lr_patience": 99}  # otherwise the refit has its own schedule: see below
    refitted = _train(_with(**steady))
    selection = refitted.progress.first_fit_progress
    assert selection
    aucs = [epoch["val_auc"] for epoch in selection.history]
    best = aucs.index(max(aucs)) + 1
    assert selection.best_epoch == best == refitted.progress.epoch < len(aucs)
    plain = build_trainer(_with(epochs=best, **steady), DATA.for_refit)
    plain.run(lambda _: None)
    assert _have_equal_weights(refitted, plain)


def test_refit_that_diverges_in_a_later_epoch_is_an_error() -> None:
    """Otherwise the model would be of fewer epochs than its metrics say."""

    def spoil(trainer: Trainer) -> None:
        if trainer.progress.first_fit_progress and trainer.progress.epoch == 1:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(math.inf)

    recipe = _with(lr_patience=99)
    with pytest.raises(
        VisrecError, match=r"refit .* diverged in epoch 2 of .*--train\.refit false"
    ):
        train_to_end(build_trainer(recipe, DATA), recipe, DATA, spoil)


def test_first_fit_is_freed_before_the_refit() -> None:
    first = build_trainer(RECIPE, DATA)
    of_both = [weakref.ref(first.model), weakref.ref(first.optimizer)]

    def report(trainer: Trainer) -> None:
        gc.collect()
        assert [ref() is None for ref in of_both] == [trainer is not first] * 2

    train_to_end(first, RECIPE, DATA, report)


def test_tracked_steps_rise_through_both_fits() -> None:
    recorder = Recorder()
    task: Any = SimpleNamespace(progress_actor=LocalActor(ProgressActor()))
    timer = Timer(task.progress_actor)

    def report(trainer: Trainer) -> None:
        _report(trainer, task, timer, recorder)

    train_to_end(build_trainer(RECIPE, DATA), RECIPE, DATA, report)
    steps = [step for step, _ in recorder.logged]
    assert steps == list(range(1, len(steps) + 1))
    assert len({frozenset(values) for _, values in recorder.logged}) == 2  # of both fits


class Recorder(Tracker):
    def __init__(self) -> None:
        self.run_id, self.logged = "r", list[tuple[int, dict[str, float]]]()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.logged.append((step, dict(values)))

    def finish(self) -> None:
        pass


def test_refit_repeats_the_learning_rates_of_the_selection() -> None:
    refitted = _train(_with(epochs=6, stop_patience=6, learning_rate=0.3))
    selection = refitted.progress.first_fit_progress
    assert selection
    rates, selection_rates = (
        [epoch["learning_rate"] for epoch in p.history] for p in (refitted.progress, selection)
    )
    assert rates == selection_rates[: selection.best_epoch]


def test_model_is_fitted_once_without_refit_or_without_validation() -> None:
    assert _train(_with(refit=False)).progress.first_fit_progress is None
    recipe = _with(epochs=2)
    trainer = train_to_end(
        build_trainer(recipe, DATA.for_refit), recipe, DATA.for_refit, lambda _: None
    )
    assert trainer.progress.first_fit_progress is None


def test_every_epoch_of_both_fits_is_reported() -> None:
    seen: list[tuple[bool, int]] = []
    trainer = train_to_end(
        build_trainer(RECIPE, DATA),
        RECIPE,
        DATA,
        lambda t: seen.append((t.progress.first_fit_progress is not None, t.progress.epoch)),
    )
    assert trainer.progress.first_fit_progress
    first, second = len(trainer.progress.first_fit_progress.history), trainer.progress.epoch
    assert seen == [(False, n + 1) for n in range(first)] + [(True, n + 1) for n in range(second)]


def _interrupt_and_restore(
    recipe: TrainingRecipe, data: TrainingData, refitting: bool, folder: Path
) -> Trainer:
    """The trainer as restored from the first epoch of a fit, after which the run was stopped."""

    def stop(trainer: Trainer) -> None:
        if bool(trainer.progress.first_fit_progress) == refitting:
            save_checkpoint(trainer, folder)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_to_end(build_trainer(recipe, data), recipe, data, stop)
    return restore_trainer(recipe, data, folder)


@pytest.mark.parametrize("refitting", [False, True])
def test_run_resumed_in_either_fit_ends_as_the_uninterrupted_one(
    refitting: bool, tmp_path: Path
) -> None:
    uninterrupted = _train(RECIPE)
    resumed = _interrupt_and_restore(RECIPE, DATA, refitting, tmp_path)
    assert (bool(resumed.progress.first_fit_progress), resumed.progress.epoch) == (refitting, 1)
    trainer = train_to_end(resumed, RECIPE, DATA, lambda _: None)
    assert training_metrics(trainer.progress) == training_metrics(uninterrupted.progress)
    assert _have_equal_weights(trainer, uninterrupted)


@pytest.mark.parametrize("refitting", [False, True])
def test_first_fit_starts_again_if_it_has_had_more_epochs_than_the_recipe_has(
    refitting: bool, tmp_path: Path
) -> None:
    def stop(trainer: Trainer) -> None:
        at = (bool(trainer.progress.first_fit_progress), trainer.progress.epoch)
        if at == (refitting, 1 if refitting else 3):
            save_checkpoint(trainer, tmp_path)
            raise InterruptedError

    long, short = _with(epochs=4), _with(epochs=2)
    with pytest.raises(InterruptedError):
        train_to_end(build_trainer(long, DATA), long, DATA, stop)
    resumed = train_to_end(restore_trainer(short, DATA, tmp_path), short, DATA, lambda _: None)
    new = _train(short)
    assert training_metrics(resumed.progress) == training_metrics(new.progress)
    assert _have_equal_weights(resumed, new)


def test_selection_starts_again_if_the_recipe_has_more_epochs(tmp_path: Path) -> None:
    short = _with(epochs=2)
    save_checkpoint(_train(short), tmp_path)
    assert restore_trainer(short, DATA, tmp_path).progress.first_fit_progress
    restored = restore_trainer(RECIPE, DATA, tmp_path)
    assert (restored.progress.first_fit_progress, restored.progress.epoch) == (None, 0)
    assert _have_equal_weights(train_to_end(restored, RECIPE, DATA, lambda _: None), _train(RECIPE))


def test_metrics_have_the_selection_and_the_refit() -> None:
    trainer = _train(RECIPE)
    metrics = training_metrics(trainer.progress)
    aucs = [epoch["val_auc"] for epoch in metrics["history"]]
    assert metrics["val_auc"] == max(aucs)
    assert metrics["epochs"] == len(aucs)
    assert metrics["best_epoch"] == len(metrics["refit"]) == aucs.index(max(aucs)) + 1
    assert not any("seconds" in epoch for epoch in metrics["history"] + metrics["refit"])
    assert not any("val_auc" in epoch for epoch in metrics["refit"])


# What is taken together does not look alike, and the network sees pictures alone.
COMPANY = checkerboard(noise=100.0)
HYBRID = TrainingRecipe(
    "hybrid",
    HybridConfig(item_width=12, user_width=10, vector_dropout=1.0, activity_dropout=1.0),
    dataclasses.replace(TRAIN, epochs=2, learning_rate=0.001),
    SamplingConfig(),
)


def test_added_score_raises_items_that_are_taken_together() -> None:
    trainer = train_to_end(build_trainer(HYBRID, COMPANY), HYBRID, COMPANY, lambda _: None)
    selection = trainer.progress.first_fit_progress
    assert selection
    assert max(epoch["val_auc"] for epoch in selection.history) < 0.7
    assert selection.best_auc > 0.9
    assert selection.added_weight in trainer.model.added_score_weights
    assert training_metrics(trainer.progress)["added_weight"] == selection.added_weight
    # The refit's are of all rows.
    of_all, of_train = (build_trainer(HYBRID, COMPANY).model for _ in range(2))
    of_all.fit_added_score(COMPANY.for_refit.train)
    of_train.fit_added_score(COMPANY.train)
    for model in (of_all, of_train):
        model.set_added_score_weight(selection.added_weight)
    for name in EASE_BUFFERS:
        assert torch.equal(trainer.best_weights[name], getattr(of_all, name))
        assert not torch.equal(trainer.best_weights[name], getattr(of_train, name))


def test_nothing_is_added_where_it_does_not_help() -> None:
    plain = checkerboard(noise=0.1)  # the pictures tell all
    recipe = dataclasses.replace(HYBRID, train=dataclasses.replace(TRAIN, epochs=6))
    with_ease = train_to_end(build_trainer(recipe, plain), recipe, plain, lambda _: None)
    assert with_ease.progress.first_fit_progress
    assert with_ease.progress.first_fit_progress.added_weight == 0
    config = dataclasses.replace(recipe.model_config, ease_rank=0)
    recipe = dataclasses.replace(recipe, model_config=config)
    without = train_to_end(build_trainer(recipe, plain), recipe, plain, lambda _: None)
    assert with_ease.best_weights.keys() == without.best_weights.keys()
    assert _have_equal_weights(with_ease, without)


@pytest.mark.parametrize(("ndcg_with", "weight"), [(0.49, 0.0), (0.5, 1.0)])
def test_nothing_is_added_that_lowers_the_top_of_the_lists(
    ndcg_with: float, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_trainer(HYBRID, COMPANY)
    trainer.best_weights = trainer.model.state_dict()
    trainer.progress.best_auc = 0.7
    # The AUC of each weight: 0 and those of the model.
    found = [[0.7, 0.5], *([auc, ndcg_with] for auc in (0.71, 0.72, 0.73, 0.72))]
    monkeypatch.setattr(loop, "validation_means", lambda *_: found.pop(0))
    trainer.choose_added_weight()
    assert trainer.progress.added_weight == weight
    assert trainer.progress.best_auc == (0.73 if weight else 0.7)


@pytest.mark.parametrize("refitting", [False, True])
def test_resumed_run_adds_the_same_score(refitting: bool, tmp_path: Path) -> None:
    uninterrupted = train_to_end(build_trainer(HYBRID, COMPANY), HYBRID, COMPANY, lambda _: None)
    restored = _interrupt_and_restore(HYBRID, COMPANY, refitting, tmp_path)
    resumed = train_to_end(restored, HYBRID, COMPANY, lambda _: None)
    assert {*EASE_BUFFERS} <= resumed.best_weights.keys()
    assert _have_equal_weights(resumed, uninterrupted)
    assert _have_equal_weights(uninterrupted, resumed)
