"""Which trial comes next and which goes on, as Ray Tune asks."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from visrec.tuning.records import Record, Status
from visrec.tuning.search import METRIC, Asha, Proposals, has_optuna
from visrec.tuning.spaces import Choice, Range, Space, draw

SPACE: Space = {"a": Range(0.0, 1.0, log=False), "b": Choice(("good", {"bad": 1}))}
DEFAULT = {"a": 0.5, "b": "good"}


def proposals(
    recorded: dict[int, Record] | None = None, trials: int = 5, optuna: bool = False
) -> Proposals:
    return Proposals(SPACE, DEFAULT, recorded or {}, trials, seed=3, optuna=optuna)


def asked(search: Proposals, times: int) -> list[dict[str, Any]]:
    return [search.suggest(f"trial-{n}") for n in range(times)]


def test_default_comes_first_and_the_others_are_drawn_by_number() -> None:
    first, *others = asked(proposals(), 5)
    assert first == {"number": 0, "values": DEFAULT}
    assert others == [{"number": n, "values": draw(SPACE, 3, n)} for n in range(1, 5)]


def test_what_is_missing_is_drawn_as_it_is_without_a_record() -> None:
    kept = {n: Record(n, {"a": float(n), "b": "good"}, (), "finished") for n in (1, 3)}
    found = asked(proposals(kept), 3)
    assert [one["number"] for one in found] == [0, 2, 4]
    assert found[0]["values"] == DEFAULT
    assert found[1:] == [{"number": n, "values": draw(SPACE, 3, n)} for n in (2, 4)]


def decide(scheduler: Asha, number: int, epoch: int, auc: float) -> str:
    trial = SimpleNamespace(trial_id=str(number), config={"number": number})
    if epoch == 1:
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, METRIC: auc})


def asha(epochs: int, *recorded: Record) -> Asha:
    scheduler = Asha(epochs, {record.number: record for record in recorded})
    scheduler.set_search_properties(METRIC, "max")
    return scheduler


def over(number: int, *aucs: float, status: Status = "finished") -> Record:
    """A trial that is over."""
    history = tuple({"val_auc": auc, "seconds": 0.0} for auc in aucs)
    return Record(number, dict(DEFAULT), history, status)


def end(scheduler: Asha, number: int, epoch: int, auc: float) -> None:
    """Tells that a trial is over after so many epochs; NaN where it does not count."""
    trial: Any = SimpleNamespace(trial_id=str(number), config={"number": number})
    scheduler.on_trial_complete(None, trial, {"epoch": epoch, METRIC: auc})


def test_a_third_goes_on_from_the_first_rung_and_the_default_always() -> None:
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
def test_scheduler_of_a_sweep_that_goes_on_decides_as_that_of_one_that_was_not_killed(
    last: Status,
) -> None:
    """Trial 1 is at its end; 2 was stopped, or diverged or failed after three good epochs."""
    whole, first, second = asha(9), (0.5, 0.6, 0.6), (0.7, 0.8, 0.9)
    for number, aucs in ((1, first), (2, second)):
        for epoch, auc in enumerate(aucs, 1):
            decide(whole, number, epoch, auc)
    end(whole, 1, 3, 0.6)
    end(whole, 2, 3, 0.9 if last == "stopped" else math.nan)
    resumed = asha(9, over(1, *first), over(2, *second, status=last))
    for scheduler in (whole, resumed):
        found = [decide(scheduler, 3, epoch, auc) for epoch, auc in ((1, 0.65), (3, 0.7))]
        # What came to nothing is nothing to be held against.
        assert found == (["CONTINUE", "STOP"] if last == "stopped" else ["CONTINUE", "CONTINUE"])
        assert decide(scheduler, 4, 1, 0.4) == TrialScheduler.STOP


def test_trial_whose_process_died_is_compared_with_when_it_trains_again() -> None:
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


def record_of(proposed: dict[str, Any]) -> Record:
    """Better the nearer `a` is to .8, with `good`; above .9 it diverges after a good epoch."""
    number, values = proposed["number"], proposed["values"]
    assert all(SPACE[key].holds(value) for key, value in values.items())
    if values["a"] > 0.9:
        return Record(number, values, ({"val_auc": 2.0, "seconds": 0.0},), "diverged")
    auc = 1 - abs(values["a"] - 0.8) - 0.5 * (values["b"] != "good")
    return Record(number, values, ({"val_auc": auc, "seconds": 0.0},), "finished")


def swept(trials: int, recorded: dict[int, Record] | None = None) -> dict[int, Record]:
    """A sweep by Optuna, one trial after the other, from some records on."""
    records = dict(recorded or {})
    search = proposals(records, trials, optuna=True)
    for _ in range(trials - len(records)):
        record = record_of(search.suggest("any"))
        search.learn(record)
        records[record.number] = record
    return records


@needs_optuna
def test_optuna_learns_where_it_is_good_and_not_where_a_good_trial_diverges() -> None:
    records = swept(60)
    assert list(records) == list(range(60))
    assert records[0].values == DEFAULT
    last = [records[n].values for n in range(40, 60)]
    # Of 20, where blind draws give 2 and 2.
    assert sum(v["b"] == "good" and abs(v["a"] - 0.8) < 0.1 for v in last) >= 8
    assert sum(v["a"] > 0.9 for v in last) <= 2


@needs_optuna
@pytest.mark.parametrize("kept", [1, 7, 15])
def test_optuna_tells_the_same_story_after_a_kill(kept: int) -> None:
    whole = swept(20)
    assert "diverged" in {whole[n].status for n in range(15)}
    assert swept(20, {n: whole[n] for n in range(kept)}) == whole


@needs_optuna
def test_optuna_is_not_told_of_a_trial_without_a_record() -> None:
    one, other = (proposals(trials=4, optuna=True) for _ in range(2))
    for n in range(3):
        assert one.suggest(str(n)) == other.suggest(str(n))
        one.on_trial_complete(str(n), error=True)
    assert one.suggest("3") == other.suggest("3")


@needs_optuna
def test_optuna_proposes_what_it_did_not_before() -> None:
    found = [one["values"]["a"] for one in asked(proposals(trials=9, optuna=True), 9)]
    assert len(set(found)) == 9
