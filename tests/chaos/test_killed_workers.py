"""Workers are killed in the middle of their work; what comes out is what would have come out."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.workspace import QUICK, copy, paint, run_extract, run_train
from visrec.training.loop import TrainConfig

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

# Long enough that a worker is found and killed before its last epoch ends.
LONGER = TrainConfig(**{**QUICK.__dict__, "epochs": 5, "triples_per_epoch": 16_384, "refit": False})


def train_workers() -> list[int]:
    """Processes of this test's Ray that train: Ray names them by what they run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if command.startswith(b"ray::") and b"RayTrainWorker" in command and is_ours(entry):
            found.append(int(entry.name))
    return found


def is_ours(entry: Path) -> bool:
    """Whether this process is an ancestor: other clusters of the machine are left alone."""
    pid = int(entry.name)
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def kill_after_first_checkpoint(training: Path, killed: list[int], give_up: float) -> None:
    while time.monotonic() < give_up and not killed:
        # Ray knows of a checkpoint somewhat after its files are there: when its own list names one.
        lists = training.glob("*/checkpoint_manager_snapshot.json")
        if any("checkpoint_dir_name" in known.read_text() for known in lists):
            for pid in train_workers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.05)


def tracked_curve() -> dict[int, float]:
    """Validation AUC by epoch in MLflow, which has a single run."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("visrec")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val_auc")}


def test_killed_train_worker_costs_nothing_but_time(
    ray_cluster: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    paint(calm)
    run_extract(calm)
    copy(calm, stormy, "features", "interactions.parquet")
    run_train(calm, LONGER, model_id="model")

    killed: list[int] = []
    killer = threading.Thread(
        target=kill_after_first_checkpoint,
        args=(stormy / "training", killed, time.monotonic() + 120),
    )
    killer.start()
    capsys.readouterr()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a server or a database
    run_train(stormy, LONGER, model_id="model", track="mlflow")
    killer.join()
    assert len(killed) == 1
    assert "resumed after epoch" in capsys.readouterr().out
    weights = [(w / "models/model/model.safetensors").read_bytes() for w in (calm, stormy)]
    assert weights[0] == weights[1]
    curves = [
        [
            (epoch["loss"], epoch["val_auc"])
            for epoch in json.loads((w / "models/model/metrics.json").read_text())["history"]
        ]
        for w in (calm, stormy)
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == LONGER.epochs
    assert tracked_curve() == {step + 1: auc for step, (_, auc) in enumerate(curves[0])}
