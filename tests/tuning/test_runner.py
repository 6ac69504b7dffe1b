"""A trial: the training loop an epoch a step, and what it says of its end."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.training import checkerboard
from visrec.errors import InputError
from visrec.models.curatornet import CuratorNetConfig
from visrec.sampling.triples import SamplingConfig
from visrec.storage.store import Store
from visrec.training.fit import TrainingRecipe, build_trainer
from visrec.training.loop import TrainConfig
from visrec.training.ray_train import TrainResources
from visrec.tuning import runner
from visrec.tuning.records import Record, Status, best_of, write_record
from visrec.tuning.runner import Plan, Trial, line_of
from visrec.tuning.search import METRIC

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
    """The data are where they are read."""
    monkeypatch.setattr(runner.ray, "get", lambda found: found)


def trial(values: dict[str, Any]) -> Trial:
    # Without Ray Tune's own constructor, which makes folders.
    made, data = object.__new__(Trial), cast(Any, DATA)
    made._plan = Plan(RECIPE, data, TrainResources(cpus_per_worker=1), None)
    made._begin({"number": 1, "values": values})
    return made


def steps(made: Trial) -> list[dict[str, Any]]:
    results = [made.step()]
    while not results[-1]["done"]:
        results.append(made.step())
    return results


def aucs_of(values: dict[str, Any]) -> list[float]:
    """The same by the training loop alone."""
    recipe = runner.with_values(RECIPE, values)
    trainer = build_trainer(recipe, DATA)
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

    monkeypatch.setattr(runner, "begin", refuse)
    (result,) = steps(trial(RATES["fast"]))
    assert (result["end"], result["error"]) == ("failed", "Found no triple; expected one.")
    assert math.isnan(result[METRIC])


@pytest.mark.parametrize("end", ["diverged", "failed"])
def test_good_auc_of_a_trial_that_came_to_nothing_is_told_to_nobody(
    end: Status, tmp_path: Path
) -> None:
    def epochs() -> Iterator[dict[str, Any]]:
        yield {"val_auc": 0.9, "loss": 1.0, "seconds": 2.0}
        if end == "failed":
            raise InputError("Found no triple; expected one.")
        yield {"val_auc": math.nan, "loss": math.nan, "seconds": 2.0, "over": True, "sound": False}

    made = trial(RATES["slow"])
    made._epochs = epochs()
    first, last = steps(made)
    assert (first[METRIC], last["end"], last["epoch"]) == (0.9, end, 1)
    assert math.isnan(last[METRIC])  # what Ray Tune's scheduler is told
    keeper, search = told_of(Store.at(str(tmp_path)), first, last)
    (record,) = keeper.records.values()
    assert (record.status, len(record.history)) == (end, 1)
    assert math.isnan(record.auc)  # the table's, the search's
    assert "nan" in line_of(record)
    assert best_of([record]) is None
    assert search.told == [record]


def test_record_that_another_driver_wrote_first_is_what_all_are_told(tmp_path: Path) -> None:
    kept = Record(1, RATES["fast"], ({"val_auc": 0.7, "seconds": 1.0},), "finished")
    store = Store.at(str(tmp_path))
    write_record(store, kept)
    keeper, search = told_of(store, *steps(trial(RATES["slow"])))
    assert keeper.records == {1: kept}
    assert search.told == [kept]


class Told:
    """A search, or a tally, that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Record] = []
        self.add = self.say = self.stand = SimpleNamespace(remote=lambda _: None)

    def learn(self, record: Record) -> None:
        self.told.append(record)


def told_of(store: Store, *results: dict[str, Any]) -> tuple[Any, Told]:
    """What the driver keeps of a trial, and its search is told, as Ray Tune calls it."""
    search = Told()
    sweep: Any = SimpleNamespace(recorded={}, store=store, tally=Told())
    keeper = runner._RecordCallback(sweep, search)  # type: ignore[arg-type]
    values = RATES["slow"]
    done = SimpleNamespace(config={"number": 1, "values": values}, last_result=results[-1])
    for result in results:
        keeper.on_trial_result(0, [], done, result)
    keeper.on_trial_complete(0, [], done)
    return keeper, search


def test_line_of_progress_tells_running_trials_and_the_best_with_its_values(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    tally = Told()
    tally.stand = SimpleNamespace(remote=said.append)
    sweep: Any = SimpleNamespace(recorded={}, store=Store.at(str(tmp_path)), tally=tally)
    keeper = runner._RecordCallback(sweep, Told())  # type: ignore[arg-type]
    started = [SimpleNamespace(config={"number": n, "values": RATES["slow"]}) for n in (0, 1, 2)]
    for one in started:
        keeper.on_trial_start(0, [], one)
    assert said[-1] == "3 running, 0 epochs trained"
    entry = {"val_auc": 0.7, "loss": 1.0, "seconds": 1.0}
    started[1].last_result = {"entry": entry, "epoch": 1, "end": "finished", "error": ""}
    keeper.on_trial_result(0, [], started[1], started[1].last_result)
    assert said[-1] == "3 running, 1 epoch trained"
    keeper.on_trial_complete(0, [], started[1])
    best = f"best AUC so far 0.7000 (trial 1: {runner.words_of(RATES['slow'])})"
    assert said[-1] == f"2 running, 1 epoch trained, {best}"
    assert "learning_rate" in best
    keeper.on_trial_error(0, [], started[0])
    assert said[-1] == f"1 running, 1 epoch trained, {best}"


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
