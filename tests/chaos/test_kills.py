"""The night's driver is killed again and again; what comes out is the night undisturbed."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.harness import amount, measured
from tests.chaos.night import MARK, Calm, published, rows, start

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
SHORTEST = 2.0  # seconds until a kill
WORKERS = tuple(
    b"ray::" + name
    for name in (
        *(b"MapWorker", b"RayTrainWorker", b"make_plan", b"commit", b"load_training_data"),
        *(b"prepare", b"check_files", b"FetchAndDecode", b"MapBatches", b"sum_up"),
    )
)


def at_work(workspace: Path) -> list[int]:
    """Processes that do the work of a night: those of Ray that run what visrec gave it."""
    mark, found = f"{MARK}={workspace}\0".encode(), []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if command.startswith(WORKERS) and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_night_killed_at_random_moments_is_the_night_undisturbed(
    calm_night: Calm, tmp_path: Path
) -> None:
    kills, wanted, dice = 0, amount(1, 60), random.Random(0)
    while kills < wanted:
        stormy, before = tmp_path / f"stormy-{kills}", kills
        shutil.copytree(calm_night.pictures, stormy)
        while True:
            process = start(stormy)
            try:
                # Towards the end of a count the night is left to end.
                patience = dice.uniform(SHORTEST, calm_night.seconds) if kills < wanted else 300
                assert process.wait(timeout=patience) == 0, (stormy / "log").read_text()
                break
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)  # the driver alone
                process.wait()
                kills += 1
        assert published(stormy) == calm_night.truth, (stormy / "log").read_text()
        assert rows(stormy) == calm_night.users
        assert set(calm_night.users.values()) == {1}
        shutil.rmtree(stormy)
        # By the night, so that a run that is stopped has counted what it has shown.
        sums = {"rows_acknowledged": len(calm_night.users), "rows_lost": 0, "rows_doubled": 0}
        measured(3, faults_driver_kills=kills - before, nights=1, **sums)
        measured(7, driver_kills=kills - before)


def test_nights_whose_workers_are_killed_are_nights_undisturbed(
    calm_night: Calm, tmp_path: Path
) -> None:
    kills, wanted, dice = 0, amount(2, 30), random.Random(1)
    while kills < wanted:
        stormy, before = tmp_path / f"stormy-{kills}", kills
        shutil.copytree(calm_night.pictures, stormy)
        process = start(stormy)
        while process.poll() is None:
            time.sleep(dice.uniform(0.2, 2.0))
            if kills < wanted and (working := at_work(stormy)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(working), signal.SIGKILL)
                    kills += 1
        assert process.returncode == 0, (stormy / "log").read_text()
        assert published(stormy) == calm_night.truth, (stormy / "log").read_text()
        shutil.rmtree(stormy)
        measured(7, worker_kills=kills - before, faults_worker_kills=kills - before)
