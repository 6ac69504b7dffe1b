"""Two fits: one that finds the epoch, and one with all that is known."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.training import checkerboard
from visrec.models.curatornet import CuratorNetConfig
from visrec.sampling.triples import SamplingConfig
from visrec.training.checkpoints import save_checkpoint
from visrec.training.fit import (
    TrainingRecipe,
    build_trainer,
    metrics_of,
    restore_trainer,
    train_to_end,
)
from visrec.training.loop import TrainConfig, Trainer

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


def _completed(recipe: TrainingRecipe) -> Trainer:
    return train_to_end(build_trainer(recipe, DATA), recipe, DATA, lambda _: None)


def _equal(one: Trainer, other: Trainer) -> bool:
    return all(torch.equal(one.best[key], other.best[key]) for key in one.best)


def test_refit_is_the_training_without_validation_for_the_best_number_of_epochs() -> None:
    steady = {"lr_patience": 99}  # else the schedules part: see below
    found = _completed(_with(**steady))
    choice = found.progress.chosen
    assert choice
    aucs = [epoch["val_auc"] for epoch in choice.history]
    best = aucs.index(max(aucs)) + 1
    assert choice.best_epoch == best == found.progress.epoch < len(aucs)
    plain = build_trainer(_with(epochs=best, **steady), DATA.refit)
    plain.run(lambda _: None)
    assert _equal(found, plain)


def test_refit_has_the_learning_rates_of_the_choice() -> None:
    found = _completed(_with(epochs=6, stop_patience=6, learning_rate=0.3))
    choice = found.progress.chosen
    assert choice
    rates, before = (
        [epoch["learning_rate"] for epoch in p.history] for p in (found.progress, choice)
    )
    assert rates == before[: choice.best_epoch]


def test_without_refit_or_without_validation_there_is_one_fit() -> None:
    assert _completed(_with(refit=False)).progress.chosen is None
    recipe = _with(epochs=2)
    found = train_to_end(build_trainer(recipe, DATA.refit), recipe, DATA.refit, lambda _: None)
    assert found.progress.chosen is None


def test_each_epoch_of_both_fits_is_reported() -> None:
    seen: list[tuple[bool, int]] = []
    trainer = train_to_end(
        build_trainer(RECIPE, DATA),
        RECIPE,
        DATA,
        lambda t: seen.append((t.progress.chosen is not None, t.progress.epoch)),
    )
    assert trainer.progress.chosen
    first, second = len(trainer.progress.chosen.history), trainer.progress.epoch
    assert seen == [(False, n + 1) for n in range(first)] + [(True, n + 1) for n in range(second)]


@pytest.mark.parametrize("refitting", [False, True])
def test_stopped_in_either_fit_and_resumed_ends_where_the_straight_run_does(
    refitting: bool, tmp_path: Path
) -> None:
    straight = _completed(RECIPE)

    def stop(trainer: Trainer) -> None:
        if bool(trainer.progress.chosen) == refitting:
            save_checkpoint(trainer, tmp_path)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_to_end(build_trainer(RECIPE, DATA), RECIPE, DATA, stop)
    resumed = restore_trainer(RECIPE, DATA, tmp_path)
    assert (bool(resumed.progress.chosen), resumed.progress.epoch) == (refitting, 1)
    found = train_to_end(resumed, RECIPE, DATA, lambda _: None)
    assert metrics_of(found.progress) == metrics_of(straight.progress)
    assert _equal(found, straight)


def test_choice_is_made_anew_where_more_epochs_are_asked_for(tmp_path: Path) -> None:
    short = _with(epochs=2)
    save_checkpoint(_completed(short), tmp_path)
    assert restore_trainer(short, DATA, tmp_path).progress.chosen
    anew = restore_trainer(RECIPE, DATA, tmp_path)
    assert (anew.progress.chosen, anew.progress.epoch) == (None, 0)
    assert _equal(train_to_end(anew, RECIPE, DATA, lambda _: None), _completed(RECIPE))


def test_record_tells_the_choice_and_the_refit() -> None:
    found = _completed(RECIPE)
    told = metrics_of(found.progress)
    aucs = [epoch["val_auc"] for epoch in told["history"]]
    assert told["val_auc"] == max(aucs)
    assert told["epochs"] == len(aucs)
    assert told["best_epoch"] == len(told["refit"]) == aucs.index(max(aucs)) + 1
    assert not any("seconds" in epoch for epoch in told["history"] + told["refit"])
    assert not any("val_auc" in epoch for epoch in told["refit"])
