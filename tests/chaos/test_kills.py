"""Kills the driver, the workers and the nodes of a night; the result is that of an undisturbed one.

The tests are in one file, so that one process runs the undisturbed night for all of them.
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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import amount, is_full, measured
from tests.chaos.night import (
    ENV_TAG,
    NIGHT,
    Undisturbed,
    published_hashes,
    rows_per_user,
    start_night,
)
from tests.cluster import TokenCluster
from tests.conftest import CHECKOUT
from tests.integration.workspace import night_settings
from tests.servers import program

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
MIN_PATIENCE = 2.0  # seconds until a kill
# The steps of a night, with what each of them leaves in the workspace.
STEPS = {
    "extract": ("features",),
    "train": ("models", "training"),
    "evaluate": ("evaluation",),
    "recommend": ("recommendations", "nights", "log"),
}
PATIENCE = 25  # seconds in which a step must have placed work on another node
# How Ray names the processes that do the work of a night.
WORKERS = tuple(
    b"ray::" + name
    for name in (
        *(
            b"MapWorker",
            b"RayTrainWorker",
            b"plan_extraction",
            b"commit_extraction",
            b"load_training_data",
        ),
        *(b"prepare", b"read_back_and_rescore", b"FetchAndDecode", b"MapBatches", b"aggregate"),
    )
)


def working_processes(workspace: Path) -> list[int]:
    """Ids of the processes that do the work of a night."""
    tag, found = f"{ENV_TAG}={workspace}\0".encode(), []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if command.startswith(WORKERS) and tag in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def prepare(workspace: Path, steps: list[str], undisturbed: Undisturbed) -> None:
    """Makes a workspace in which a night still has to do these last steps."""
    left_out = [name for step in steps for name in STEPS[step]]
    ignore = shutil.ignore_patterns(*left_out)
    shutil.copytree(undisturbed.workspace, workspace, ignore=ignore)


def test_night_whose_driver_is_killed_at_random_ends_as_the_undisturbed_one(
    undisturbed_night: Undisturbed, tmp_path: Path
) -> None:
    kills, wanted, dice = 0, amount(1, 60), random.Random(0)
    seconds = undisturbed_night.seconds  # fewer as soon as a night was faster
    while kills < wanted:
        workspace, kills_before = tmp_path / f"killed-{kills}", kills
        prepare(workspace, list(STEPS), undisturbed_night)
        while True:
            since, process = time.monotonic(), start_night(workspace)
            try:
                # Once there are enough kills, the night is left to end.
                patience = dice.uniform(MIN_PATIENCE, seconds) if kills < wanted else 300
                assert process.wait(timeout=patience) == 0, (workspace / "log").read_text()
                if kills == kills_before:
                    seconds = min(seconds, time.monotonic() - since)
                break
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)  # the driver alone
                process.wait()
                kills += 1
        assert published_hashes(workspace) == undisturbed_night.hashes, (
            workspace / "log"
        ).read_text()
        assert rows_per_user(workspace) == undisturbed_night.users
        assert set(undisturbed_night.users.values()) == {1}
        shutil.rmtree(workspace)
        # Counted night by night, so that an interrupted run has counted what it has shown.
        sums = {
            "rows_acknowledged": len(undisturbed_night.users),
            "rows_lost": 0,
            "rows_doubled": 0,
        }
        measured(3, faults_driver_kills=kills - kills_before, nights=1, **sums)
        measured(7, driver_kills=kills - kills_before)


@pytest.mark.skipif(
    not is_full(), reason="only in `make chaos`: test_killed_workers.py has the short form"
)
def test_night_whose_workers_are_killed_ends_as_the_undisturbed_one(
    undisturbed_night: Undisturbed, tmp_path: Path
) -> None:
    kills, wanted, dice = 0, 30, random.Random(1)
    steps = list(STEPS)
    # Ray starts a task four times, so three kills in a step end no night, as slow as it may be.
    most_in_a_step = 3
    while kills < wanted:
        workspace, kills_before = tmp_path / f"killed-{kills}", kills
        prepare(workspace, steps, undisturbed_night)
        process, in_step = start_night(workspace), Counter[str | None]()
        while process.poll() is None:
            time.sleep(dice.uniform(0.2, 2.0))
            step = current_step(workspace)
            if in_step[step] == most_in_a_step or kills == wanted:
                continue
            if working := working_processes(workspace):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(working), signal.SIGKILL)
                    kills, in_step[step] = kills + 1, in_step[step] + 1
        assert process.returncode == 0, (workspace / "log").read_text()
        assert published_hashes(workspace) == undisturbed_night.hashes, (
            workspace / "log"
        ).read_text()
        shutil.rmtree(workspace)
        measured(7, worker_kills=kills - kills_before, faults_worker_kills=kills - kills_before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TokenCluster]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with TokenCluster(num_cpus=2, env={"PATH": path}) as running:
        yield running


def submit_night(cluster: TokenCluster, workspace: Path) -> subprocess.Popen[bytes]:
    """Submits the night as an operator does; its output goes to `log`."""
    settings = night_settings(workspace / "yaml", shards=6, workers=1)
    flags = [f"--{key}={path}" for key, path in settings.items()]
    job = ["python", "jobs/nightly.py", "--workspace", str(workspace), "--as-of", NIGHT, *flags]
    with (workspace / "log").open("ab") as log:
        return subprocess.Popen(
            [program("ray"), "job", "submit", "--working-dir", ".", "--", *job],
            cwd=CHECKOUT, env={**os.environ, **cluster.env()}, stdout=log, stderr=log,
        )  # fmt: skip


def current_step(workspace: Path) -> str | None:
    """The step that the night is in, by the headings that it prints."""
    found = re.findall(rf"^{NIGHT} (\w+)$", (workspace / "log").read_text(), re.MULTILINE)
    return found[-1] if found else None


@pytest.mark.skipif(
    not is_full(), reason="only in `make chaos`: it takes up to four minutes, as slow as Ray is"
)
def test_night_that_loses_a_node_in_a_step_ends_as_the_undisturbed_one(
    cluster: TokenCluster, undisturbed_night: Undisturbed, tmp_path: Path
) -> None:
    """The busiest node goes away in every step and is replaced, as spot machines are."""
    nodes = [cluster.add_node() for _ in range(2)]
    steps, nights = list(STEPS), 3
    removed: list[str] = []
    for number in range(nights):
        workspace = tmp_path / f"killed-{number}"
        prepare(workspace, steps, undisturbed_night)
        process, left, since = submit_night(cluster, workspace), list(steps), 0.0
        while process.poll() is None:
            time.sleep(0.2)
            step = current_step(workspace)
            if step not in left:
                since = time.monotonic()
                continue
            busy = max(nodes, key=cluster.workers_of)
            late = time.monotonic() - since > PATIENCE
            if cluster.workers_of(busy) or late:
                time.sleep(0.5)  # into the middle of its work
                cluster.kill_node(busy)
                nodes.remove(busy)
                removed.append(step)
                left.remove(step)
                nodes.append(cluster.add_node())
        assert process.returncode == 0, (workspace / "log").read_text()
        assert published_hashes(workspace) == undisturbed_night.hashes, (
            workspace / "log"
        ).read_text()
        shutil.rmtree(workspace)
    assert set(removed) == set(steps)
    measured(7, node_removals=len(removed), faults_node_removals=len(removed))
