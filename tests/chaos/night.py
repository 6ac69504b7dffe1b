"""A night of the small gallery as its user starts it, and all that it leaves."""

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
from visrec.publication.manifest import MANIFEST
from visrec.publication.pointer import LATEST

NIGHT = "2026-11-21"
MARK = "VISREC_TEST_NIGHT"  # in the environment of all processes of one


@dataclass(frozen=True)
class Calm:
    """A night that nothing disturbed.

    Args:
        workspace: as it was after, to be copied.
        truth: hashes of all that it left.
        users: rows of each user.
        seconds: that it took.
    """

    workspace: Path
    truth: dict[str, str]
    users: Counter[str]
    seconds: float


def undisturbed(folder: Path) -> Calm:
    calm = folder / "calm"
    paint(calm)
    since = time.monotonic()
    assert start(calm).wait(timeout=300) == 0, (calm / "log").read_text()
    return Calm(calm, published(calm), rows(calm), time.monotonic() - since)


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
