"""A night of the small gallery as a user starts it, and everything that it leaves behind."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from tests.conftest import CHECKOUT
from tests.integration.workspace import night_settings, paint
from visrec.publication.manifest import RUN_MANIFEST
from visrec.publication.pointer import LATEST

NIGHT = "2026-11-21"
ENV_TAG = "VISREC_TEST_NIGHT"  # in the environment of all processes of a night


@dataclass(frozen=True)
class Undisturbed:
    """A night that nothing disturbed.

    Attributes:
        workspace: after the night; tests copy it.
        hashes: what the night left, by `published_hashes`.
        users: number of rows of each user.
        seconds: how long it took.
    """

    workspace: Path
    hashes: dict[str, str]
    users: Counter[str]
    seconds: float


def run_undisturbed(folder: Path) -> Undisturbed:
    workspace = folder / "undisturbed"
    paint(workspace)
    start = time.monotonic()
    assert start_night(workspace).wait(timeout=300) == 0, (workspace / "log").read_text()
    seconds = time.monotonic() - start
    return Undisturbed(workspace, published_hashes(workspace), rows_per_user(workspace), seconds)


def start_night(workspace: Path) -> subprocess.Popen[bytes]:
    """Starts the night as a user does; its output goes to `log`."""
    settings = night_settings(workspace / "yaml", shards=6, workers=1)
    flags = [f"--{key}={path}" for key, path in settings.items()]
    command = [sys.executable, "jobs/nightly.py", "--local", "--workspace", str(workspace)]
    with (workspace / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--as-of", NIGHT, *flags],
            cwd=CHECKOUT, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, ENV_TAG: str(workspace)},
        )  # fmt: skip


def published_hashes(workspace: Path) -> dict[str, str]:
    """Hashes of what a night leaves: features, model, and the lists that the pointer names."""
    lists = workspace / "recommendations"
    run = lists / f"run={json.loads((lists / LATEST).read_text())['run_id']}"
    manifest = json.loads((run / RUN_MANIFEST).read_text())
    hashes = {}
    for name, facts in manifest["files"].items():
        hashes[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
        assert hashes[name] == facts["sha256"]
    hashes["model"] = manifest["inputs"]["model"]
    hashes["features"] = manifest["inputs"]["features"]
    return hashes


def rows_per_user(workspace: Path) -> Counter[str]:
    run = workspace / "recommendations" / f"run={NIGHT}"
    files = sorted(run.glob("part-*.parquet"))
    return Counter(user for file in files for user in pq.read_table(file)["user_id"].to_pylist())
