"""The night, submitted to a cluster of three nodes, of which one is taken away in every step."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import amount, measured
from tests.chaos.night import NIGHT, Calm, published
from tests.cluster import TokenCluster
from tests.conftest import CHECKOUT
from tests.integration.workspace import night_settings
from tests.servers import program

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
STEPS = ("extract", "train", "evaluate", "recommend")
PATIENCE = 25  # seconds in which a step must have put something on another node


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
    steps, nights = STEPS[-amount(1, len(STEPS)) :], amount(1, 3)
    removed: list[str] = []
    for number in range(nights):
        stormy = tmp_path / f"stormy-{number}"
        shutil.copytree(calm_night.pictures, stormy)
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
