"""The night's driver is killed again and again; what comes out is the night undisturbed."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.chaos.harness import amount, measured
from tests.conftest import CHECKOUT
from tests.integration.workspace import night_settings, paint
from visrec.publish import LATEST, MANIFEST

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
NIGHT = "2026-11-21"
MARK = "VISREC_TEST_NIGHT"
WORKERS = tuple(
    b"ray::" + name
    for name in (
        *(b"MapWorker", b"RayTrainWorker", b"make_plan", b"commit", b"load_training_data"),
        *(b"prepare", b"check_files", b"FetchAndDecode", b"MapBatches", b"sum_up"),
    )
)
SHORTEST = 2.0  # seconds until a kill


def start(workspace: Path) -> subprocess.Popen[bytes]:
    """The night as its user starts it, its output in `log`."""
    flags = [f"--{key}={path}" for key, path in night_settings(workspace / "yaml", 6).items()]
    command = [sys.executable, "jobs/nightly.py", "--local", "--workspace", str(workspace)]
    with (workspace / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--as-of", NIGHT, *flags],
            cwd=CHECKOUT, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, MARK: str(workspace)},
        )  # fmt: skip


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


def published(workspace: Path) -> dict[str, str]:
    """Hashes of all that a night leaves: features, model, and the lists that the pointer names."""
    lists = workspace / "recommendations"
    run = lists / f"run={json.loads((lists / LATEST).read_text())['run_id']}"
    manifest = json.loads((run / MANIFEST).read_text())
    found = {}
    for name, facts in manifest["files"].items():
        found[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
        assert found[name] == facts["sha256"]
    found["model"] = manifest["inputs"]["model"]
    found["features"] = manifest["inputs"]["features"]
    return found


def rows(workspace: Path) -> Counter[str]:
    run = workspace / "recommendations" / f"run={NIGHT}"
    files = sorted(run.glob("part-*.parquet"))
    return Counter(user for file in files for user in pq.read_table(file)["user_id"].to_pylist())


def test_a_night_killed_at_random_moments_is_the_night_undisturbed(tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    paint(calm)
    pictures = tmp_path / "pictures"
    shutil.copytree(calm, pictures)
    since = time.monotonic()
    assert start(calm).wait(timeout=300) == 0, (calm / "log").read_text()
    longest = time.monotonic() - since
    truth, users = published(calm), rows(calm)

    kills, wanted, nights, dice = 0, amount(2, 60), 0, random.Random(0)
    while kills < wanted:
        stormy = tmp_path / f"stormy-{nights}"
        shutil.copytree(pictures, stormy)
        while True:
            process = start(stormy)
            try:
                # Towards the end of a count the night is left to end.
                patience = dice.uniform(SHORTEST, longest) if kills < wanted else 300
                assert process.wait(timeout=patience) == 0, (stormy / "log").read_text()
                break
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)  # the driver alone
                process.wait()
                kills += 1
        nights += 1
        assert published(stormy) == truth, (stormy / "log").read_text()
        assert rows(stormy) == users
        shutil.rmtree(stormy)
    assert set(users.values()) == {1}
    sums = {"rows_acknowledged": nights * len(users), "rows_lost": 0, "rows_doubled": 0}
    measured(3, faults_driver_kills=kills, nights=nights, **sums)
    measured(7, driver_kills=kills)


def test_nights_whose_workers_are_killed_are_nights_undisturbed(tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    paint(calm)
    pictures = tmp_path / "pictures"
    shutil.copytree(calm, pictures)
    assert start(calm).wait(timeout=300) == 0, (calm / "log").read_text()
    truth = published(calm)
    kills, wanted, nights, dice = 0, amount(2, 30), 0, random.Random(1)
    while kills < wanted:
        stormy = tmp_path / f"stormy-{nights}"
        shutil.copytree(pictures, stormy)
        process = start(stormy)
        while process.poll() is None:
            time.sleep(dice.uniform(0.2, 2.0))
            if kills < wanted and (working := at_work(stormy)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(working), signal.SIGKILL)
                    kills += 1
        assert process.returncode == 0, (stormy / "log").read_text()
        assert published(stormy) == truth, (stormy / "log").read_text()
        shutil.rmtree(stormy)
        nights += 1
    measured(7, worker_kills=kills, faults_worker_kills=kills)
