"""A local job gets SIGINT or SIGTERM: a sentence, its code, no process left, nothing half done.

A user's Ctrl-C and a scheduler's SIGTERM come at any moment: in the imports, while Ray starts, at
work. What becomes of a signal in odder places is in tests/cli/test_signals.py, without Ray.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.chaos.harness import amount
from tests.conftest import CHECKOUT
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos

COPIES = 100  # of each picture, so that the job is still at work at the last moment
# Seconds after the start, or after the first line that the job prints.
MOMENTS = (("import", 0.5), ("start", 6.0), ("work", 0.0), ("work", 1.0))


def living(mark: str) -> list[int]:
    """Processes with a mark in their environment: the job's, whoever has adopted them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            if mark.encode() in (entry / "environ").read_bytes() and state not in "ZX":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def images(gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for picture in (gallery / "images").iterdir():
        for copy in range(COPIES):
            (folder / f"{copy}_{picture.name}").hardlink_to(picture)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_local_job_cleanly(
    images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    # The short form tries one moment with each signal.
    short = [MOMENTS[0] if number == signal.SIGTERM else MOMENTS[2]]
    for phase, seconds in list(MOMENTS) * 3 if amount(0, 1) else short:
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            [
                *(sys.executable, "jobs/extract_features.py", "--workspace", str(tmp_path)),
                *("--images", str(images), "--backbone.name", "random-conv", "--local"),
            ],
            cwd=CHECKOUT,
            env={**os.environ, "VISREC_TEST_STOP": mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if phase == "work":
            assert "pictures" in process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        assert err.strip().startswith(f"extract_features: stopped by {name}. ")
        assert "\n" not in err.strip()
        assert living(mark) == []
        assert not Store.at(str(tmp_path / "features")).exists("_manifest.json")
