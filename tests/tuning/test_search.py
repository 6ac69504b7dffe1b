"""The searcher proposes the next trial; the scheduler stops trials or lets them go on."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from visrec.tuning.records import Status, TrialRecord
from visrec.tuning.search import METRIC, ResumableAsha, TrialSearcher, has_optuna
from visrec.tuning.spaces import Choice, Range, Space, sample_values

SPACE: Space = {"a": Range(0.0, 1.0, log=False), "b": Choice(("good", {"bad": 1}))}
DEFAULT = {"a": 0.5, "b": "good"}


def searcher(
    recorded: dict[int, TrialRecord] | None = None, trials: int = 5, optuna: bool = False
) -> TrialSearcher:
    return TrialSearcher(SPACE, DEFAULT, recorded or {}, trials, seed=3, optuna=optuna)


def propose(search: TrialSearcher, times: int) -> list[dict[str, Any]]:
    return [search.suggest(f"trial-{n}") for n in range(times)]


def test_default_comes_first_and_other_values_are_sampled_by_number() -> None:
    first, *others = propose(searcher(), 5)
    assert first == {"number": 0, "values": DEFAULT}
    assert others == [{"number": n, "values": sample_values(SPACE, 3, n)} for n in range(1, 5)]


def test_missing_trials_get_the_values_of_an_uninterrupted_sweep() -> None:
    kept = {n: TrialRecord(n, {"a": float(n), "b": "good"}, (), "finished") for n in (1, 3)}
    proposed = propose(searcher(kept), 3)
    assert [trial["number"] for trial in proposed] == [0, 2, 4]
    assert proposed[0]["values"] == DEFAULT
    assert proposed[1:] == [{"number": n, "values": sample_values(SPACE, 3, n)} for n in (2, 4)]


def decide(scheduler: ResumableAsha, number: int, epoch: int, auc: float) -> str:
    trial = SimpleNamespace(trial_id=str(number), config={"number": number})
    if epoch == 1:
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, METRIC: auc})


def asha(epochs: int, *recorded: TrialRecord) -> ResumableAsha:
    scheduler = ResumableAsha(epochs, {record.number: record for record in recorded})
    scheduler.set_search_properties(METRIC, "max")
    return scheduler


def ended(number: int, *aucs: float, status: Status = "finished") -> TrialRecord:
    """The record of a trial that has ended."""
    history = tuple({"val_auc": auc, "seconds": 0.0} for auc in aucs)
    return TrialRecord(number, dict(DEFAULT), history, status)


def end_trial(scheduler: ResumableAsha, number: int, epoch: int, auc: float) -> None:
    """Ends a trial after some epochs; a NaN AUC is that of one that diverged or failed."""
    trial: Any = SimpleNamespace(trial_id=str(number), config={"number": number})
    scheduler.on_trial_complete(None, trial, {"epoch": epoch, METRIC: auc})


def test_a_third_of_the_trials_passes_the_first_rung_and_the_default_always_does() -> None:
    scheduler = asha(9)
    assert decide(scheduler, 0, 1, 0.1) == TrialScheduler.CONTINUE
    decisions = [decide(scheduler, n, 1, auc) for n, auc in enumerate([0.9, 0.5, 0.6, 0.95], 1)]
    assert decisions == ["CONTINUE", "STOP", "STOP", "CONTINUE"]
    # Second rung at 3 epochs, none at 2.
    assert decide(scheduler, 4, 2, 0.95) == TrialScheduler.CONTINUE
    assert decide(scheduler, 4, 3, 0.95) == TrialScheduler.CONTINUE
    assert decide(scheduler, 1, 3, 0.9) == TrialScheduler.STOP
    assert decide(scheduler, 0, 3, 0.1) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("last", ["stopped", "diverged", "failed"])
def test_scheduler_of_a_resumed_sweep_decides_as_that_of_an_uninterrupted_one(
    last: Status,
) -> None:
    """Trial 1 has finished; trial 2 was stopped, or diverged or failed after three good epochs."""
    uninterrupted, first, second = asha(9), (0.5, 0.6, 0.6), (0.7, 0.8, 0.9)
    for number, aucs in ((1, first), (2, second)):
        for epoch, auc in enumerate(aucs, 1):
            decide(uninterrupted, number, epoch, auc)
    end_trial(uninterrupted, 1, 3, 0.6)
    end_trial(uninterrupted, 2, 3, 0.9 if last == "stopped" else math.nan)
    resumed = asha(9, ended(1, *first), ended(2, *second, status=last))
    for scheduler in (uninterrupted, resumed):
        found = [decide(scheduler, 3, epoch, auc) for epoch, auc in ((1, 0.65), (3, 0.7))]
        # No trial is compared with one that diverged or failed.
        assert found == (["CONTINUE", "STOP"] if last == "stopped" else ["CONTINUE", "CONTINUE"])
        assert decide(scheduler, 4, 1, 0.4) == TrialScheduler.STOP


def test_trial_whose_process_died_counts_again_once_it_has_restarted() -> None:
    scheduler = asha(9)
    decide(scheduler, 1, 1, 0.9)
    trial: Any = SimpleNamespace(trial_id="1", config={"number": 1})
    scheduler.on_trial_error(None, trial)
    assert decide(scheduler, 2, 1, 0.5) == TrialScheduler.CONTINUE
    decide(scheduler, 1, 1, 0.9)
    assert decide(scheduler, 3, 1, 0.5) == TrialScheduler.STOP


@pytest.mark.parametrize(("epochs", "first"), [(1, 1), (4, 1), (9, 1), (20, 2), (90, 10)])
def test_first_rung_is_at_a_ninth_of_the_epochs(epochs: int, first: int) -> None:
    scheduler = asha(epochs)
    decide(scheduler, 1, 1, 0.9)
    decide(scheduler, 1, first, 0.9)
    stopped_at = next(
        epoch
        for epoch in range(1, epochs + 1)
        if decide(scheduler, 2, epoch, 0.1) == TrialScheduler.STOP
    )
    assert stopped_at == first


needs_optuna = pytest.mark.skipif(
    not has_optuna(), reason="Optuna is not installed: pip install 'visrec[tune]'"
)


def run_trial(proposed: dict[str, Any]) -> TrialRecord:
    """Best with `a` at 0.8 and `good`; with `a` above 0.9 it diverges after a good epoch."""
    number, values = proposed["number"], proposed["values"]
    assert all(SPACE[key].contains(value) for key, value in values.items())
    if values["a"] > 0.9:
        return TrialRecord(number, values, ({"val_auc": 2.0, "seconds": 0.0},), "diverged")
    auc = 1 - abs(values["a"] - 0.8) - 0.5 * (values["b"] != "good")
    return TrialRecord(number, values, ({"val_auc": auc, "seconds": 0.0},), "finished")


def run_sweep(
    trials: int, recorded: dict[int, TrialRecord] | None = None
) -> dict[int, TrialRecord]:
    """A sweep with Optuna, one trial after another, continuing from some records."""
    records = dict(recorded or {})
    search = searcher(records, trials, optuna=True)
    for _ in range(trials - len(records)):
        record = run_trial(search.suggest("any"))
        search.add_record(record)
        records[record.number] = record
    return records


@needs_optuna
def test_optuna_moves_to_good_values_and_away_from_those_that_diverge() -> None:
    records = run_sweep(60)
    assert list(records) == list(range(60))
    assert records[0].values == DEFAULT
    last = [records[n].values for n in range(40, 60)]
    # Of 20, where random values give 2 and 2.
    assert sum(v["b"] == "good" and abs(v["a"] - 0.8) < 0.1 for v in last) >= 8
    assert sum(v["a"] > 0.9 for v in last) <= 2


@needs_optuna
@pytest.mark.parametrize("kept", [1, 7, 15])
def test_optuna_proposes_the_same_after_a_kill(kept: int) -> None:
    uninterrupted = run_sweep(20)
    assert "diverged" in {uninterrupted[n].status for n in range(15)}
    assert run_sweep(20, {n: uninterrupted[n] for n in range(kept)}) == uninterrupted


@needs_optuna
def test_optuna_learns_nothing_from_a_trial_without_a_record() -> None:
    one, other = (searcher(trials=4, optuna=True) for _ in range(2))
    for n in range(3):
        assert one.suggest(str(n)) == other.suggest(str(n))
        one.on_trial_complete(str(n), error=True)
    assert one.suggest("3") == other.suggest("3")


@needs_optuna
def test_optuna_never_proposes_the_same_values_twice() -> None:
    proposed = [trial["values"]["a"] for trial in propose(searcher(trials=9, optuna=True), 9)]
    assert len(set(proposed)) == 9
