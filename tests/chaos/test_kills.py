"""A night's driver, its workers and nodes are killed; what comes out is the night undisturbed.

One file, so that one process sets up the undisturbed night for all of them.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import amount, measured
from tests.chaos.night import MARK, NIGHT, Calm, published, rows, start
from tests.cluster import TokenCluster
from tests.conftest import CHECKOUT
from tests.integration.workspace import night_settings
from tests.servers import program

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
SHORTEST = 2.0  # seconds until a kill
# Of a night, and what each leaves.
STEPS = {
    "extract": ("features",),
    "train": ("models", "training"),
    "evaluate": ("evaluation",),
    "recommend": ("recommendations", "nights", "log"),
}
PATIENCE = 25  # seconds in which a step must have put something on another node
WORKERS = tuple(
    b"ray::" + name
    for name in (
        *(b"MapWorker", b"RayTrainWorker", b"plan_extraction", b"commit_extraction", b"load_training_data"),
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


def before(steps: list[str], calm_night: Calm, stormy: Path) -> None:
    """A workspace in which a night has these last steps still to do."""
    left = [name for step in steps for name in STEPS[step]]
    shutil.copytree(calm_night.workspace, stormy, ignore=shutil.ignore_patterns(*left))


def test_a_night_killed_at_random_moments_is_the_night_undisturbed(
    calm_night: Calm, tmp_path: Path
) -> None:
    kills, wanted, dice = 0, amount(1, 60), random.Random(0)
    seconds = calm_night.seconds  # of a whole one; fewer when nothing else is tested any more
    while kills < wanted:
        stormy, until_now = tmp_path / f"stormy-{kills}", kills
        before(list(STEPS), calm_night, stormy)
        while True:
            since, process = time.monotonic(), start(stormy)
            try:
                # Towards the end of a count the night is left to end.
                patience = dice.uniform(SHORTEST, seconds) if kills < wanted else 300
                assert process.wait(timeout=patience) == 0, (stormy / "log").read_text()
                if kills == until_now:
                    seconds = min(seconds, time.monotonic() - since)
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
        measured(3, faults_driver_kills=kills - until_now, nights=1, **sums)
        measured(7, driver_kills=kills - until_now)


def test_nights_whose_workers_are_killed_are_nights_undisturbed(
    calm_night: Calm, tmp_path: Path
) -> None:
    kills, wanted, dice = 0, amount(2, 30), random.Random(1)
    steps = list(STEPS)[-amount(3, len(STEPS)) :]
    while kills < wanted:
        stormy, until_now = tmp_path / f"stormy-{kills}", kills
        before(steps, calm_night, stormy)
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
        measured(7, worker_kills=kills - until_now, faults_worker_kills=kills - until_now)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TokenCluster]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with TokenCluster(num_cpus=2, env={"PATH": path}) as running:
        yield running


def night(cluster: TokenCluster, workspace: Path) -> subprocess.Popen[bytes]:
    """The night as an operator submits it, its output in `log`."""
    flags = [f"--{key}={path}" for key, path in night_settings(workspace / "yaml", 6).items()]
    job = ["python", "jobs/nightly.py", "--workspace", str(workspace), "--as-of", NIGHT, *flags]
    with (workspace / "log").open("ab") as log:
        return subprocess.Popen(
            [program("ray"), "job", "submit", "--working-dir", ".", "--", *job],
            cwd=CHECKOUT, env={**os.environ, **cluster.env()}, stdout=log, stderr=log,
        )  # fmt: skip


def step_of(workspace: Path) -> str | None:
    """The step that the night is in, by its own headings."""
    found = re.findall(rf"^{NIGHT} (\w+)$", (workspace / "log").read_text(), re.MULTILINE)
    return found[-1] if found else None


def test_a_node_goes_away_in_every_step(
    cluster: TokenCluster, calm_night: Calm, tmp_path: Path
) -> None:
    """The one that is at work; another comes in its place, as spot machines do."""
    nodes = [cluster.add_node() for _ in range(2)]
    steps, nights = list(STEPS)[-amount(1, len(STEPS)) :], amount(1, 3)
    removed: list[str] = []
    for number in range(nights):
        stormy = tmp_path / f"stormy-{number}"
        before(steps, calm_night, stormy)
        process, left, since = night(cluster, stormy), list(steps), 0.0
        while process.poll() is None:
            time.sleep(0.2)
            step = step_of(stormy)
            if step not in left:
                since = time.monotonic()
                continue
            busy = max(nodes, key=cluster.workers_of)
            late = time.monotonic() - since > PATIENCE
            if cluster.workers_of(busy) or late:
                time.sleep(0.5)  # into the middle of what it does
                cluster.kill_node(busy)
                nodes.remove(busy)
                removed.append(step)
                left.remove(step)
                nodes.append(cluster.add_node())
        assert process.returncode == 0, (stormy / "log").read_text()
        assert published(stormy) == calm_night.truth, (stormy / "log").read_text()
        shutil.rmtree(stormy)
    assert set(removed) == set(steps)
    measured(7, node_removals=len(removed), faults_node_removals=len(removed))
