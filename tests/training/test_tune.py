"""A trial: the training loop an epoch a step, and what it says of its end."""

import math
from typing import Any

import pytest

from tests.training import checkerboard
from visrec.errors import InputError
from visrec.interactions.triples import SamplingConfig
from visrec.models.curatornet import CuratorNetConfig
from visrec.training import tune
from visrec.training.loop import TrainConfig
from visrec.training.ray_train import TrainResources
from visrec.training.recipe import Recipe, begin
from visrec.training.records import Record
from visrec.training.search import METRIC
from visrec.training.tune import Plan, Trial

DATA = checkerboard()
RECIPE = Recipe(
    "curatornet",
    CuratorNetConfig(item_width=8, user_width=8),
    TrainConfig(epochs=3, triples_per_epoch=640, batch_size=64),
    SamplingConfig(),
)
RATES = {"slow": {"train.learning_rate": 1e-5}, "fast": {"train.learning_rate": 0.02}}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data are where they are read."""
    monkeypatch.setattr(tune.ray, "get", lambda found: found)


def plan(data: Any = DATA, recorded: dict[int, Record] | None = None) -> Plan:
    return Plan(RECIPE, data, TrainResources(cpus_per_worker=1), None, recorded or {})


def trial(values: dict[str, Any], told: Plan | None = None, number: int = 1) -> Trial:
    # Without Ray Tune's own constructor, which makes folders.
    made = object.__new__(Trial)
    made._plan = told or plan()
    made._begin({"number": number, "values": values})
    return made


def steps(made: Trial) -> list[dict[str, Any]]:
    results = [made.step()]
    while not results[-1]["done"]:
        results.append(made.step())
    return results


def aucs_of(values: dict[str, Any]) -> list[float]:
    """The same by the training loop alone."""
    recipe = tune.with_values(RECIPE, values)
    trainer = begin(recipe, DATA)
    trainer.run(lambda _: None)
    return [epoch["val_auc"] for epoch in trainer.progress.history]


@pytest.mark.parametrize("pace", RATES)
def test_trial_trains_as_the_loop_does(pace: str) -> None:
    results, expected = steps(trial(RATES[pace])), aucs_of(RATES[pace])
    assert [result["entry"]["val_auc"] for result in results] == expected
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert [result[METRIC] for result in results] == [max(expected[: n + 1]) for n in range(3)]
    assert [result["end"] for result in results] == [None, None, "finished"]
    assert len({*aucs_of(RATES["slow"]), *aucs_of(RATES["fast"])}) > 3


def test_process_that_is_used_again_begins_anew() -> None:
    used = trial(RATES["slow"])
    used.step()
    assert used.reset_config({"number": 2, "values": RATES["fast"]})
    found = [result["entry"]["val_auc"] for result in steps(used)]
    assert found == aucs_of(RATES["fast"])


def test_diverged_trial_has_no_auc() -> None:
    # Scores that are no numbers stand below nothing, which would be an AUC of 1.
    (result,) = steps(trial({"train.learning_rate": 1e30}))
    assert (result["end"], result["epoch"], result["entry"]) == ("diverged", 0, None)
    assert math.isnan(result[METRIC])


def test_trial_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("Found no triple; expected one.")

    monkeypatch.setattr(tune, "begin", refuse)
    (result,) = steps(trial(RATES["fast"]))
    assert (result["end"], result["error"]) == ("failed", "Found no triple; expected one.")
    assert math.isnan(result[METRIC])


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_recorded_trial_gives_back_what_it_gave_and_trains_nothing(epochs: int) -> None:
    history = tuple({"val_auc": 0.9 - n / 10, "loss": 1.0, "seconds": 2.0} for n in range(epochs))
    record = Record(1, RATES["slow"], history, "stopped")
    # There are no data to train on.
    results = steps(trial(RATES["slow"], plan(data=None, recorded={1: record})))
    assert [result["entry"] for result in results if result["entry"]] == list(history)
    assert results[-1]["epoch"] == epochs
    if epochs:
        assert results[-1][METRIC] == 0.9


def test_trial_that_ends_early_leaves_nothing_behind() -> None:
    ended = []

    def epochs(*_: Any) -> Any:
        try:
            yield {"val_auc": 0.5, "loss": 1.0}
        finally:
            ended.append(True)

    made = trial(RATES["slow"])
    made._epochs = epochs()
    made.step()
    assert not ended
    made.cleanup()
    assert ended
