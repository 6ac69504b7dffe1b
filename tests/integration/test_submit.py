"""`ray job submit` and `visrec submit` to a cluster that requires a token."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

from tests.cluster import TokenCluster
from tests.conftest import CHECKOUT
from tests.integration.workspace import copy
from tests.servers import program
from visrec.storage.lease import Lease
from visrec.storage.store import Store

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


def visrec_submit(cluster: TokenCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `visrec submit` from this checkout to its end."""
    return subprocess.run(
        [sys.executable, "-m", "visrec", "submit", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **cluster.env()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def test_visrec_submit_ends_with_the_exit_code_of_the_command(
    cluster: TokenCluster, featured: Path, tmp_path: Path
) -> None:
    """0 to 3 at the same time, because most of their time is the start."""
    copy(featured, tmp_path, "images", "features", "interactions.parquet")
    night = date.today().isoformat()
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "images").write_text("a file where a folder should be")
    commands: dict[int, tuple[str, ...]] = {
        0: ("make-gallery", "--workspace", f"{tmp_path}/new", "--gallery.paintings", "60"),
        1: ("make-gallery", "--workspace", f"{tmp_path}/blocked", "--gallery.paintings", "60"),
        2: ("train", "--workspace", "runs/here"),
        3: ("nightly", "--workspace", str(tmp_path), "--as_of", night, "--exit_if_running", "3"),
    }
    with Lease(Store.at(str(tmp_path / "nights")), f"{night}.lease") as lease:
        assert lease.held
        with ThreadPoolExecutor(len(commands)) as pool:
            ended = dict(
                zip(
                    commands,
                    pool.map(lambda words: visrec_submit(cluster, *words), commands.values()),
                    strict=True,
                )
            )
    for code, done in ended.items():
        assert done.returncode == code, done.stdout
        assert "Submitted as raysubmit_" in done.stdout
    assert "paintings" in ended[0].stdout
    assert "make_gallery: " in ended[1].stdout
    assert "Found --workspace runs/here in a job submitted to a cluster" in ended[2].stdout
    assert "another process is at work on this night" in ended[3].stdout


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
