"""Sweeps on Ray: they find the planted value, free everything, and resume after a kill."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray._private.internal_api import memory_summary

from tests.conftest import CHECKOUT
from tests.integration.workspace import copy
from visrec.cli.job import ModelChoice
from visrec.cli.parse import parse
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.interactions.split import SplitConfig
from visrec.models.curatornet import CuratorNetConfig
from visrec.models.visrank import VisRankConfig
from visrec.pipelines import tune
from visrec.pipelines.train import TrainJob
from visrec.pipelines.tune import TuneJob
from visrec.storage.store import Store
from visrec.training.loop import TrainConfig
from visrec.training.task import TrainResources
from visrec.tuning.records import read_records
from visrec.tuning.spaces import load_space, sample_values

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

# Learning rates: one too small to learn with, a good one, and one that diverges.
TOO_SMALL, GOOD, DIVERGING = 1e-9, 1e-3, 1e30
RATES = (TOO_SMALL, GOOD, DIVERGING)
QUICK = TrainConfig(
    epochs=3, triples_per_epoch=2048, batch_size=256, learning_rate=TOO_SMALL, stop_patience=9
)
SMALL = ModelChoice("curatornet", CuratorNetConfig(item_width=32, user_width=32))


def job(
    workspace: str, values: tuple[Any, ...] = RATES, key: str = "train.learning_rate", **keys: Any
) -> TuneJob:
    """A sweep of one key with a choice of values."""
    path = Path(workspace) / "space.yaml"
    path.write_text(yaml.safe_dump({key: {"choice": list(values)}}))
    settings = {
        "trials": 5,
        "train": QUICK,
        "model": SMALL,
        "resources": TrainResources(cpus_per_worker=1),
        "concurrency": 2,
        "sweep": "sweep",
        **keys,
    }
    return TuneJob(workspace=workspace, space=str(path), **settings)


def run(config: TuneJob) -> Summary:
    summary = Summary("tune")
    tune.main(config, summary)
    return summary


def sweep_of(config: TuneJob) -> Store:
    return Store.at(config.workspace) / "sweeps" / str(config.sweep)


def live_actors() -> set[tuple[str, str]]:
    """Classes and ids of the living actors."""
    actors: dict[str, Any] = ray._private.state.actors()
    return {(a["ActorClassName"], name) for name, a in actors.items() if a["State"] != "DEAD"}


def captured_objects() -> set[str]:
    """Objects captured in others, as Ray Tune captures data that it is given as a parameter."""
    lines = memory_summary(ray.get_runtime_context().gcs_address).splitlines()
    return {line.split()[-1] for line in lines if "CAPTURED_IN_OBJECT" in line}


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits, because Ray takes seconds to notice that a process has ended."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, live_actors()
        time.sleep(0.1)


def run_and_check_release(config: TuneJob) -> Summary:
    """Runs a sweep; afterwards it holds no CPUs, placement groups, actors or pinned data."""
    cpus = ray.cluster_resources()["CPU"]
    wait_until(lambda: ray.available_resources().get("CPU") == cpus)  # of other tests
    actors, held = live_actors(), captured_objects()
    summary = run(config)
    assert ray.available_resources()["CPU"] == cpus
    assert summary.rows["CPUs free"] == f"{cpus:g} before, {cpus:g} after"
    assert tune._placement_groups_of_this_job() == []
    wait_until(lambda: live_actors() <= actors)
    assert captured_objects() <= held
    return summary


@pytest.fixture(scope="module")
def finished_sweep(
    featured: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TuneJob, Summary]:
    """One small sweep, read only."""
    workspace = tmp_path_factory.mktemp("finished") / "shop"
    config = job(copy(featured, workspace, "features", "interactions.parquet"))
    return config, run_and_check_release(config)


def test_sweep_finds_the_planted_value(finished_sweep: tuple[TuneJob, Summary]) -> None:
    config, summary = finished_sweep
    space = load_space(config.space)
    rates = [sample_values(space, 0, n)["train.learning_rate"] for n in range(1, 5)]
    rates = [TOO_SMALL, *rates]
    assert set(rates) == set(RATES)  # the seed gives each of them to some trial
    trials = pq.read_table(f"{sweep_of(config).root}/trials.parquet").to_pylist()
    assert [trial["trial"] for trial in trials] == [0, 1, 2, 3, 4]
    assert [trial["train.learning_rate"] for trial in trials] == rates
    best = trials[summary.rows["best trial"]]
    assert best["train.learning_rate"] == GOOD
    assert best["best_val_auc"] == pytest.approx(summary.rows["best validation AUC"], abs=1e-4)
    assert best["best_val_auc"] > trials[0]["best_val_auc"] + 0.05
    assert (trials[0]["status"], trials[0]["epochs"]) == ("finished", QUICK.epochs)
    for trial in trials:
        if trial["train.learning_rate"] == DIVERGING:
            assert (trial["status"], trial["epochs"]) == ("diverged", 0)
            assert math.isnan(trial["best_val_auc"])
    assert Store.at(sweep_of(config).root).read("sweep.png").startswith(b"\x89PNG")


def test_best_configuration_is_one_of_the_training_job(
    finished_sweep: tuple[TuneJob, Summary],
) -> None:
    config, _ = finished_sweep
    best = parse(TrainJob, ["--config", f"{sweep_of(config).root}/best.yaml"])
    expected = tune.train_job(config)
    assert best == replace(expected, train=replace(expected.train, learning_rate=GOOD))


def test_rerun_trains_nothing(
    finished_sweep: tuple[TuneJob, Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, first = finished_sweep

    def no_trial(*_: Any) -> None:
        raise AssertionError("a trial was started")

    monkeypatch.setattr("visrec.tuning.runner._run_trials", no_trial)
    again = run(config)
    assert again.rows["from earlier runs"] == 5
    same = set(first.rows) - {"from earlier runs", "CPUs free"}
    assert {key: again.rows[key] for key in same} == {key: first.rows[key] for key in same}


@pytest.mark.parametrize(
    "changes",
    [
        {"train": replace(QUICK, epochs=4)},
        {"values": (TOO_SMALL, GOOD, 1e31)},
        {"seed": 1},
        {"scheduler": "none"},
        {"model": ModelChoice("curatornet", CuratorNetConfig(item_width=31, user_width=32))},
    ],
)
def test_sweep_with_other_settings_under_the_same_name_is_refused(
    finished_sweep: tuple[TuneJob, Summary], changes: dict[str, Any]
) -> None:
    config, _ = finished_sweep
    before = sorted(entry.fingerprint for entry in sweep_of(config).list())
    with pytest.raises(InputError, match=r"other settings.*--sweep sweep"):
        run(job(config.workspace, **changes))
    job(config.workspace)  # restores the file of the space
    assert sorted(entry.fingerprint for entry in sweep_of(config).list()) == before


# The driver as a process of its own, which joins the Ray cluster of the tests.


def flags(config: TuneJob) -> list[str]:
    """The command line of a job, as its YAML."""
    path = Path(config.workspace) / "tune.yaml"
    keys = yaml.safe_load(tune.as_yaml(tune.train_job(config)))
    tune_keys = ("space", "trials", "concurrency", "sweep")
    keys |= {name: getattr(config, name) for name in tune_keys}
    path.write_text(yaml.safe_dump(keys))
    return ["jobs/tune.py", "--config", str(path)]


def start(config: TuneJob, *more: str) -> "subprocess.Popen[str]":
    address = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, *flags(config), *more],
        cwd=CHECKOUT,
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def shop(featured: Path, tmp_path: Path) -> str:
    return copy(featured, tmp_path / "shop", "features", "interactions.parquet")


def test_killed_sweep_resumes_without_repeating_ended_trials(
    shop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Both rates learn, and there are enough epochs that the kill falls into the sweep.
    config = job(
        shop,
        (GOOD, 0.002),
        train=replace(QUICK, epochs=6, learning_rate=GOOD, triples_per_epoch=8192),
        scheduler="none",
    )
    sweep = sweep_of(config)
    driver = start(config, "--scheduler", "none")
    end = time.monotonic() + 200
    while not list(sweep.list("trials/")) and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    kept = read_records(sweep, 5)
    assert 0 < len(kept) < 5
    # The record is changed: if its trial were trained again, the change would be lost.
    changed = min(kept)
    name = f"trials/{changed:05}.json"
    record = sweep.read_json(name)
    record["history"][1]["val_auc"] = 0.987654
    sweep.write_json(name, record)
    bytes_before = {number: sweep.read(f"trials/{number:05}.json") for number in kept}

    summary = run(config)
    assert summary.rows["from earlier runs"] == len(kept)
    assert (summary.rows["trials"], summary.rows["finished"]) == (5, 5)
    assert (summary.rows["best trial"], summary.rows["best validation AUC"]) == (changed, 0.9877)
    assert {n: sweep.read(f"trials/{n:05}.json") for n in kept} == bytes_before
    # Only the missing trials are trained and logged.
    done = read_records(sweep, 5)
    new = [done[n] for n in done if n not in kept]
    assert summary.worker_seconds["train"] == pytest.approx(sum(r.seconds for r in new))
    assert capsys.readouterr().out.count("val AUC") == len(new)


def test_more_trials_continue_the_sweep_and_the_best_configuration_is_trained(
    finished_sweep: tuple[TuneJob, Summary], tmp_path: Path
) -> None:
    config, _ = finished_sweep
    workspace = copy(
        Path(config.workspace), tmp_path / "more", "features", "interactions.parquet", "sweeps"
    )
    summary = run(job(workspace, trials=6, train_best=True))
    assert (summary.rows["trials"], summary.rows["from earlier runs"]) == (6, 5)
    model = Store.at(workspace) / "models" / summary.rows["model"]
    metrics = model.read_json("metrics.json")
    # The same weights, triples and epochs as the trial, so the same AUC.
    best = read_records(sweep_of(job(workspace)), 6)[summary.rows["best trial"]]
    assert [epoch["val_auc"] for epoch in metrics["history"]] == [
        epoch["val_auc"] for epoch in best.history
    ]


def test_group_trial_is_stopped_and_everything_is_freed(shop: str) -> None:
    """ASHA stops the second trial, which is a group of two DDP workers; the group ends with it.

    The first trial is one process, which starts faster: other resources continue the same sweep.
    """
    settings: dict[str, Any] = {
        "train": replace(QUICK, learning_rate=GOOD),
        "concurrency": 1,
    }
    run(job(shop, (TOO_SMALL,), trials=1, **settings))
    group = TrainResources(workers=2, cpus_per_worker=1)
    config = job(shop, (TOO_SMALL,), trials=2, resources=group, **settings)
    summary = run_and_check_release(config)
    assert (summary.rows["finished"], summary.rows["stopped"]) == (1, 1)
    assert summary.rows["best trial"] == 0
    first, second = read_records(sweep_of(config), 2).values()
    assert (len(first.history), len(second.history)) == (3, 1)
    assert first.auc > second.auc + 0.05


def test_error_is_one_paragraph_and_an_exit_code(shop: str) -> None:
    diverging = job(shop, (DIVERGING,), train=replace(QUICK, learning_rate=DIVERGING), trials=2)
    wrong = Path(shop) / "wrong.yaml"
    wrong.write_text("train.learning_rat: {uniform: [0.1, 1.0]}\n")
    drivers = [
        start(diverging),
        start(diverging, "--space", str(wrong), "--sweep", "other"),
    ]
    failed, refused = (driver.communicate(timeout=300)[1].strip() for driver in drivers)
    assert [driver.returncode for driver in drivers] == [1, 2]
    assert failed.startswith("tune: All 2 trials failed or diverged; trial 0: its loss")
    assert refused.startswith("tune: Found 'train.learning_rat' in the search space; expected keys")
    assert "\n" not in failed + refused
    assert not (Path(shop) / "sweeps" / "other").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "trains no weights": (
        {
            "values": ("max", "mean"),
            "key": "model.mode",
            "model": ModelChoice("visrank", VisRankConfig()),
        },
        "trains no weights",
    ),
    "no validation users": ({"split": SplitConfig(validation=False)}, "no user to validate with"),
    "Optuna is not installed": ({"search": "optuna"}, "pip install"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sweep_that_is_impossible_is_refused(
    shop: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "has_optuna", lambda: False)
    changes, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        run(job(shop, **changes))
    assert not (Path(shop) / "sweeps" / "sweep").exists()


@pytest.mark.parametrize(("key", "value"), [("trials", 0), ("concurrency", 0), ("seed", -1)])
def test_number_out_of_range_is_refused(key: str, value: int) -> None:
    with pytest.raises(InputError, match=f"--{key} {value}"):
        TuneJob(**{key: value})  # type: ignore[arg-type]
