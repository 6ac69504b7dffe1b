"""Exports killed with SIGKILL at random moments and followed by another one, on real servers."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.harness import amount, is_full, measured
from tests.conftest import CHECKOUT
from tests.exports.lists import Lists, made_lists, publish, seen
from tests.exports.readers import Reader
from visrec.exports.published import export_published
from visrec.exports.targets import parse_target
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos
PROMISE = 29


def start(url: str, lists: Store, leases: Store, flags: list[str]) -> subprocess.Popen[bytes]:
    """A process that has just begun to export."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.exports.process", url, lists.root, leases.root, *flags],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"start\n"
    return process


def test_export_that_is_killed_leaves_each_store_with_one_run(
    tmp_path: Path, shop: Reader, request: pytest.FixtureRequest
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

    before = publish_next()
    export_published(target, lists, leases, only_changed=True)
    kills = polls = 0
    seconds = 1.0  # that an export takes, less as soon as one was faster
    while kills < amount(1, 20):
        killed = publish_next()
        flags = ["only_changed"] * dice.randrange(2)
        process, since = start(shop.url, lists, leases, flags), time.monotonic()
        moment = since + dice.uniform(0, seconds)
        while time.monotonic() < moment and process.poll() is None:
            assert shop.read_all() in (seen(runs[before]), seen(runs[killed]))
            polls += 1
        if process.poll() is None:
            kills += 1
        else:
            seconds = min(seconds, time.monotonic() - since)
        process.kill()
        process.wait()
        assert shop.read_all() in (seen(runs[before]), seen(runs[killed]))
        before = publish_next() if dice.randrange(2) else killed
        export_published(target, lists, leases, only_changed=bool(dice.randrange(2)))
        assert shop.read_all() == seen(runs[before])
        assert (shop.run_id(), shop.entries()) == (before, len(runs[before]))
    measured(PROMISE, faults_export_kills=kills, exports=len(runs), polls=polls, partial_reads=0)
