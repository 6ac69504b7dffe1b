"""Exports killed with SIGKILL at random moments and followed by another one, on real servers."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.harness import amount, is_full, measured
from tests.conftest import CHECKOUT
from tests.exports.lists import Lists, made_lists, publish, seen
from tests.exports.readers import Reader
from visrec.exports import generations
from visrec.exports.published import export_published
from visrec.exports.targets import parse_target
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos
PROMISE = 29


class Exporter:
    """Exports in processes that can be killed.

    Args:
        url: the URL of the target.
        lists: where the runs are.
        leases: for the lease of the target.
    """

    def __init__(self, url: str, lists: Store, leases: Store) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.exports.process", url, lists.root, leases.root],
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, mode: str) -> int:
        """The id of a process that has just begun to export."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{mode}\n")
        self._process.stdin.flush()
        return self._read()

    def kill(self, pid: int) -> bool:
        """Kills the process; returns whether it had not ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = self._read()
        assert status in (0, signal.SIGKILL)
        return status == signal.SIGKILL

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def test_export_that_is_killed_leaves_each_store_with_one_run(
    tmp_path: Path, shop: Reader, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers poll until the kill; the next export is of the same run, or of a later one."""
    if not is_full() and "cluster" in request.node.name:
        pytest.skip("only in `make chaos`: Redis has the short form")
    lists, leases = Store.at(str(tmp_path / "lists")), Store.at(str(tmp_path / "exports"))
    target, users, dice = parse_target(shop.url), amount(60, 300), random.Random(28)
    runs: dict[str, Lists] = {}

    def publish_next() -> str:
        run_id = f"r{len(runs)}"
        runs[run_id] = made_lists(users, len(runs), changed=0.3)
        publish(lists, run_id, runs[run_id])
        return run_id

    monkeypatch.setattr(generations, "READERS_GRACE_S", 0)
    before = publish_next()
    export_published(target, lists, leases, only_changed=True)
    kills = polls = 0
    seconds = 1.0  # that an export takes, less as soon as one was faster
    with contextlib.closing(Exporter(shop.url, lists, leases)) as exporter:
        while kills < amount(1, 20):
            tonight = publish_next()
            pid, wait = exporter.start(dice.choice(["", "only_changed"])), dice.uniform(0, seconds)
            moment = time.monotonic() + wait
            while time.monotonic() < moment:
                assert shop.read_all() in (seen(runs[before]), seen(runs[tonight]))
                polls += 1
            if exporter.kill(pid):
                kills += 1
            else:
                seconds = min(seconds, wait)
            assert shop.read_all() in (seen(runs[before]), seen(runs[tonight]))
            before = publish_next() if dice.randrange(2) else tonight
            export_published(target, lists, leases, only_changed=bool(dice.randrange(2)))
            assert shop.read_all() == seen(runs[before])
            assert (shop.run_id(), shop.entries()) == (before, len(runs[before]))
    measured(PROMISE, faults_export_kills=kills, exports=len(runs), polls=polls, partial_reads=0)
