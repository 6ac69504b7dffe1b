"""A trial: one epoch of the training loop per step, and how it ends."""

import math
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tests.training import checkerboard
from visrec.errors import InputError
from visrec.models.curatornet import CuratorNetConfig
from visrec.sampling.triples import SamplingConfig
from visrec.training.fit import TrainingRecipe, build_trainer
from visrec.training.loop import TrainConfig
from visrec.training.task import TrainResources
from visrec.tuning import trials
from visrec.tuning.search import METRIC
from visrec.tuning.spaces import with_values
from visrec.tuning.trials import TrialPlan, TrialTrainable

DATA = checkerboard()
RECIPE = TrainingRecipe(
    "curatornet",
    CuratorNetConfig(item_width=8, user_width=8),
    TrainConfig(epochs=3, triples_per_epoch=640, batch_size=64),
    SamplingConfig(),
)
RATES = {"slow": {"train.learning_rate": 1e-5}, "fast": {"train.learning_rate": 0.02}}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference is the data itself."""
    monkeypatch.setattr(trials.ray, "get", lambda data: data)


def make_trial(values: dict[str, Any]) -> TrialTrainable:
    # Without the constructor of Ray Tune, which makes folders.
    trial, data = object.__new__(TrialTrainable), cast(Any, DATA)
    trial._plan = TrialPlan(RECIPE, data, TrainResources(cpus_per_worker=1), None)
    trial._begin_trial({"number": 1, "values": values})
    return trial


def run_to_end(trial: TrialTrainable) -> list[dict[str, Any]]:
    results = [trial.step()]
    while not results[-1]["done"]:
        results.append(trial.step())
    return results


def loop_aucs(values: dict[str, Any]) -> list[float]:
    """The AUC of each epoch, from the training loop alone."""
    trainer = build_trainer(with_values(RECIPE, values), DATA)
    trainer.run(lambda _: None)
    return [epoch["val_auc"] for epoch in trainer.progress.history]


@pytest.mark.parametrize("pace", RATES)
def test_trial_trains_as_the_loop_does(pace: str) -> None:
    results, expected = run_to_end(make_trial(RATES[pace])), loop_aucs(RATES[pace])
    assert [result["metrics"]["val_auc"] for result in results] == expected
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert [result[METRIC] for result in results] == [max(expected[: n + 1]) for n in range(3)]
    assert [result["status"] for result in results] == [None, None, "finished"]
    assert len({*loop_aucs(RATES["slow"]), *loop_aucs(RATES["fast"])}) > 3


def test_reused_process_starts_its_next_trial_from_scratch() -> None:
    trial = make_trial(RATES["slow"])
    trial.step()
    assert trial.reset_config({"number": 2, "values": RATES["fast"]})
    aucs = [result["metrics"]["val_auc"] for result in run_to_end(trial)]
    assert aucs == loop_aucs(RATES["fast"])


def test_diverged_trial_has_no_auc() -> None:
    # NaN scores would rank below nothing, which would be an AUC of 1.
    (result,) = run_to_end(make_trial({"train.learning_rate": 1e30}))
    assert (result["status"], result["epoch"], result["metrics"]) == ("diverged", 0, None)
    assert math.isnan(result[METRIC])


def test_trial_that_cannot_start_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("Found no triple; expected one.")

    monkeypatch.setattr(trials, "build_trainer", refuse)
    (result,) = run_to_end(make_trial(RATES["fast"]))
    assert (result["status"], result["error"]) == ("failed", "Found no triple; expected one.")
    assert math.isnan(result[METRIC])


@pytest.mark.parametrize("end", ["diverged", "failed"])
def test_scheduler_gets_nan_from_a_trial_that_ends_badly_after_a_good_epoch(end: str) -> None:
    def epochs() -> Iterator[dict[str, Any]]:
        yield {"val_auc": 0.9, "loss": 1.0}
        if end == "failed":
            raise InputError("Found no triple; expected one.")
        yield {"val_auc": math.nan, "loss": math.nan, "is_last": True, "is_finite": False}

    trial: Any = make_trial(RATES["slow"])
    trial._epochs = epochs()
    first, last = run_to_end(trial)
    assert (first[METRIC], last["status"], last["epoch"]) == (0.9, end, 1)
    assert math.isnan(last[METRIC])


def test_trial_that_is_stopped_closes_its_epochs() -> None:
    closed = []

    def epochs() -> Iterator[dict[str, Any]]:
        try:
            yield {"val_auc": 0.5, "loss": 1.0}
        finally:
            closed.append(True)

    trial: Any = make_trial(RATES["slow"])
    trial._epochs = epochs()
    trial.step()
    assert not closed
    trial.cleanup()
    assert closed
