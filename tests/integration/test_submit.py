"""`ray job submit` to a cluster that requires a token."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import TokenCluster
from tests.conftest import CHECKOUT
from tests.integration.workspace import copy
from tests.servers import program

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[TokenCluster]:
    # Its jobs run with this Python, as on machines whose image has Ray.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with TokenCluster(env={"PATH": path}) as running:
        yield running


def submit(cluster: TokenCluster, script: str) -> subprocess.CompletedProcess[str]:
    """Submits a shell script as a job from this checkout, and follows it to its end."""
    command = [program("ray"), "job", "submit", "--working-dir", ".", "--", "sh", "-c", script]
    env = {**os.environ, **cluster.env()}
    return subprocess.run(
        command,
        cwd=CHECKOUT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def test_submitted_job_refuses_a_relative_workspace_and_trains_on_an_absolute_one(
    cluster: TokenCluster, featured: Path, tmp_path: Path
) -> None:
    """One submission for both, because most of its time is the start."""
    copy(featured, tmp_path, "features", "interactions.parquet")
    flags = (
        f"--workspace {tmp_path} --model_id sent --train.epochs 1 --train.triples_per_epoch 1024 "
        "--resources.cpus_per_worker 1"
    )
    # The second command runs only if the first one failed with exit code 2.
    done = submit(
        cluster,
        f"python jobs/train.py --workspace runs/here; test $? = 2 && python jobs/train.py {flags}",
    )
    assert done.returncode == 0, done.stdout
    refusal, _, rest = done.stdout.partition("validation AUC")
    assert "Found --workspace runs/here in a job submitted to a cluster" in refusal
    assert "Traceback" not in done.stdout
    assert rest
    assert (tmp_path / "models" / "sent" / "_manifest.json").exists()
    assert json.loads((tmp_path / "summaries" / "train.json").read_text())["model"] == "sent"
