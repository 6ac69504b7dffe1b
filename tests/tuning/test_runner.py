"""The driver's callback: what it records of each trial, and what it tells searcher and terminal."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from visrec.storage.store import Store
from visrec.tuning.records import Status, TrialRecord, best_trial, write_record
from visrec.tuning.runner import _last_line, _RecordCallback, describe_trial, describe_values
from visrec.tuning.search import METRIC

VALUES = {"train.learning_rate": 1e-5}
EPOCH = {"val_auc": 0.7, "loss": 1.0, "seconds": 1.0}


class FakeSearcher:
    """Keeps the records that it is given."""

    def __init__(self) -> None:
        self.records: list[TrialRecord] = []

    def add_record(self, record: TrialRecord) -> None:
        self.records.append(record)


class FakeProgressActor:
    """Keeps the statuses that it is given."""

    def __init__(self) -> None:
        self.statuses: list[str] = []
        self.add = self.log = SimpleNamespace(remote=lambda _: None)
        self.set_status = SimpleNamespace(remote=self.statuses.append)


class Driver:
    """A callback with a fake searcher and a fake progress actor."""

    def __init__(self, store: Store) -> None:
        self.searcher, self.actor = FakeSearcher(), FakeProgressActor()
        sweep: Any = SimpleNamespace(recorded={}, store=store, progress_actor=self.actor)
        self.callback = _RecordCallback(sweep, self.searcher)  # type: ignore[arg-type]


def make_trial(number: int = 1, last_result: dict[str, Any] | None = None) -> Any:
    return SimpleNamespace(config={"number": number, "values": VALUES}, last_result=last_result)


def step_result(
    epoch: int, metrics: dict[str, float] | None, status: Status | None, error: str = ""
) -> dict[str, Any]:
    auc = metrics["val_auc"] if metrics else math.nan
    return {
        "epoch": epoch, "metrics": metrics, "status": status, "error": error, METRIC: auc,
    }  # fmt: skip


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(Store.at(str(tmp_path)))


def end_trial(driver: Driver, *results: dict[str, Any]) -> None:
    """Calls the callback as Ray Tune does for a trial with these results."""
    trial = make_trial(last_result=results[-1])
    for result in results:
        driver.callback.on_trial_result(0, [], trial, result)
    driver.callback.on_trial_complete(0, [], trial)


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_good_auc_of_a_trial_that_ended_badly_is_never_used(driver: Driver, status: Status) -> None:
    good = {**EPOCH, "val_auc": 0.9}
    end_trial(driver, step_result(1, good, None), step_result(1, None, status))
    (record,) = driver.callback.records.values()
    assert (record.status, len(record.history)) == (status, 1)
    assert math.isnan(record.auc)
    assert "nan" in describe_trial(record)
    assert best_trial([record]) is None
    assert driver.searcher.records == [record]


def test_record_that_another_driver_wrote_first_is_the_one_that_counts(tmp_path: Path) -> None:
    first = TrialRecord(1, VALUES, ({"val_auc": 0.7, "seconds": 1.0},), "finished")
    store = Store.at(str(tmp_path))
    write_record(store, first)
    driver = Driver(store)
    end_trial(driver, step_result(1, {**EPOCH, "val_auc": 0.3}, "finished"))
    assert driver.callback.records == {1: first}
    assert driver.searcher.records == [first]


def test_history_of_a_restarted_trial_replaces_that_of_its_first_process(driver: Driver) -> None:
    aucs = [0.5, 0.6, 0.55, 0.65]  # of epochs 1 and 2, and of both again
    results = [
        step_result(1 + n % 2, {**EPOCH, "val_auc": auc}, "finished" if n == 3 else None)
        for n, auc in enumerate(aucs)
    ]
    end_trial(driver, *results)
    (record,) = driver.callback.records.values()
    assert [epoch["val_auc"] for epoch in record.history] == [0.55, 0.65]


def test_status_shows_running_trials_and_the_best_with_its_values(driver: Driver) -> None:
    callback, statuses = driver.callback, driver.actor.statuses
    trials = [make_trial(number) for number in (0, 1, 2)]
    for trial in trials:
        callback.on_trial_start(0, [], trial)
    assert statuses[-1] == "3 running, 0 epochs trained"
    trials[1].last_result = step_result(1, EPOCH, "finished")
    callback.on_trial_result(0, [], trials[1], trials[1].last_result)
    assert statuses[-1] == "3 running, 1 epoch trained"
    callback.on_trial_complete(0, [], trials[1])
    best = f"best AUC so far 0.7000 (trial 1: {describe_values(VALUES)})"
    assert statuses[-1] == f"2 running, 1 epoch trained, {best}"
    assert "learning_rate" in best
    callback.on_trial_error(0, [], trials[0])
    assert statuses[-1] == f"1 running, 1 epoch trained, {best}"


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("a\nb"), "b"), (MemoryError(), "MemoryError")]
)
def test_trial_that_fails_without_a_message_has_the_name_of_its_error(
    error: Exception, line: str
) -> None:
    assert _last_line(error) == line
