"""Which trial comes next and which goes on, as Ray Tune asks."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from visrec.training.records import Record
from visrec.training.search import METRIC, Asha, Proposals, has_optuna
from visrec.training.spaces import Choice, Range, Space, draw

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


def test_recorded_trials_come_first_with_what_they_had() -> None:
    kept = {n: Record(n, {"a": float(n), "b": "good"}, (), "finished") for n in (1, 3)}
    found = asked(proposals(kept), 5)
    assert [one["number"] for one in found] == [1, 3, 0, 2, 4]
    assert [one["values"]["a"] for one in found[:2]] == [1.0, 3.0]
    assert found[2]["values"] == DEFAULT
    # What was drawn without the record is drawn with it.
    assert found[3:] == [{"number": n, "values": draw(SPACE, 3, n)} for n in (2, 4)]


def decide(scheduler: Asha, number: int, epoch: int, auc: float) -> str:
    trial = SimpleNamespace(trial_id=str(number), config={"number": number})
    if epoch == 1:
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, METRIC: auc})


def asha(epochs: int, *recorded: int) -> Asha:
    scheduler = Asha(epochs, recorded)
    scheduler.set_search_properties(METRIC, "max")
    return scheduler


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


def test_recorded_trials_go_to_their_end_and_count() -> None:
    scheduler = asha(9, 5)
    assert decide(scheduler, 1, 1, 0.9) == TrialScheduler.CONTINUE
    assert decide(scheduler, 5, 1, 0.2) == TrialScheduler.CONTINUE
    assert decide(scheduler, 2, 1, 0.3) == TrialScheduler.STOP


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


def judged(search: Proposals, number: int) -> dict[str, Any]:
    """Asks for a trial and tells that it was the better the nearer `a` is to .8, with `good`."""
    found = search.suggest(str(number))
    values = found["values"]
    assert all(SPACE[key].holds(value) for key, value in values.items())
    auc = 1 - abs(values["a"] - 0.8) - 0.5 * (values["b"] != "good")
    search.on_trial_complete(str(number), {METRIC: auc})
    return found


@needs_optuna
def test_optuna_learns_where_it_is_good() -> None:
    search = proposals(trials=60, optuna=True)
    found = [judged(search, n) for n in range(60)]
    assert [one["number"] for one in found] == list(range(60))
    assert found[0]["values"] == DEFAULT
    last = [one["values"] for one in found[40:]]
    # Of 20, where blind draws give 3.
    assert sum(v["b"] == "good" and abs(v["a"] - 0.8) < 0.15 for v in last) >= 9


@needs_optuna
def test_optuna_knows_what_is_on_record() -> None:
    random = [draw(SPACE, 0, n) for n in range(40)]
    kept = {
        n: Record(n, v, ({"val_auc": 1 - abs(v["a"] - 0.8), "seconds": 0.0},), "finished")
        for n, v in enumerate(random, 1)
    }
    search = proposals(kept, trials=60, optuna=True)
    found = [search.suggest(str(n)) for n in range(60)]
    assert [one["number"] for one in found] == [*range(1, 41), 0, *range(41, 60)]
    near = sum(abs(one["values"]["a"] - 0.8) < 0.2 for one in found[41:])
    assert near >= 12  # of 19, where blind draws give two fifths


@needs_optuna
def test_optuna_goes_on_after_a_failure() -> None:
    search = proposals(trials=4, optuna=True)
    for n in range(3):
        search.suggest(str(n))
        search.on_trial_complete(str(n), error=True)
    assert search.suggest("3")["number"] == 3


@needs_optuna
def test_optuna_does_not_begin_again_when_the_sweep_goes_on() -> None:
    first = asked(proposals(trials=3, optuna=True), 3)
    kept = {
        one["number"]: Record(
            one["number"], one["values"], ({"val_auc": 0.5, "seconds": 0.0},), "finished"
        )
        for one in first
    }
    found = asked(proposals(kept, trials=5, optuna=True), 5)
    assert found[:3] == first
    before = [one["values"]["a"] for one in first]
    assert all(one["values"]["a"] not in before for one in found[3:])
