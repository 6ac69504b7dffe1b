"""The lease: one at a time, given back, and taken from who is dead and from nobody else."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.storage.test_conditional_writes import in_threads
from visrec.errors import ConflictError, StorageError
from visrec.storage.lease import Lease
from visrec.storage.store import Store, to_json

NAME, BEAT = "night.lease", 0.1


def lease(store: Store) -> Lease:
    return Lease(store, NAME, BEAT)


def held_by(count: int, store: Store) -> list[bool]:
    """Which of some that want it at once hold it; nobody gives it back before all know."""
    end = threading.Barrier(count)

    def want(_: int) -> bool:
        with lease(store) as mine:
            end.wait(timeout=30)
            return mine.held

    return in_threads(count, want)


def test_one_holds_it_until_it_is_given_back(store: Store) -> None:
    with lease(store) as first:
        assert first.held
        with lease(store) as second:
            assert not second.held
        first.check()
    with lease(store) as third:
        assert third.held


def test_of_many_at_once_one_holds_it(tmp_path: Path) -> None:
    assert held_by(6, Store(str(tmp_path))).count(True) == 1


def test_of_many_after_a_death_one_holds_it(tmp_path: Path) -> None:
    """A holder of another machine, who gives no sign of life: all find out at about once."""
    store = Store(str(tmp_path))
    store.create(NAME, to_json({"owner": "x", "pid": 1, "started": "1", "machine": "elsewhere"}))
    assert held_by(4, store).count(True) == 1


def test_a_process_of_this_machine_that_is_no_more_is_seen_at_once(tmp_path: Path) -> None:
    """Killed while it holds: nobody waits for its heartbeat, which would be a minute here."""
    code = (
        "import os, signal\nfrom visrec.storage.lease import Lease\n"
        "from visrec.storage.store import Store\n"
        f"with Lease(Store({str(tmp_path)!r}), {NAME!r}, 60) as mine:\n"
        "    assert mine.held\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -9
    assert json.loads((tmp_path / NAME).read_text())["owner"] is not None
    with Lease(Store(str(tmp_path)), NAME, 60) as mine:
        assert mine.held


def test_who_has_lost_it_is_told(tmp_path: Path) -> None:
    """As a process that was stopped for long: meanwhile another has taken it."""
    store = Store(str(tmp_path))
    with lease(store) as mine:
        mine.check()
        version = store.read_versioned(NAME)[1]
        theirs = to_json({"owner": "another", "pid": 1, "started": "", "machine": "elsewhere"})
        while not store.replace(NAME, theirs, version):
            version = store.read_versioned(NAME)[1]
        threading.Event().wait(20 * BEAT)
        with pytest.raises(ConflictError, match=r"Another process has taken .*night.lease"):
            mine.check()
    assert store.read(NAME) == theirs


def test_a_reply_that_is_lost_does_not_lose_it(tmp_path: Path) -> None:
    """A sign of life is written, and the store is away before its reply is read."""

    class Flaky(Store):
        def replace(self, name: str, data: bytes, version: str) -> bool:
            done = super().replace(name, data, version)
            if b'"beats": 2' in data:
                raise StorageError("the reply was lost")
            return done

    store = Flaky(str(tmp_path))
    with lease(store) as mine:
        threading.Event().wait(10 * BEAT)
        mine.check()
        assert store.read_json(NAME)["beats"] > 2
    assert store.read_json(NAME) == {"owner": None}


@pytest.mark.parametrize(
    "damaged",
    [b"", b"null", b"{", b"\xff", b"[" * 9999,
     b'{"owner": "a", "pid": "\\u0000", "started": "", "machine": ""}'],
)  # fmt: skip
def test_lease_that_is_damaged_is_taken_after_some_beats(tmp_path: Path, damaged: bytes) -> None:
    nights = Store(str(tmp_path))
    nights.write("night.lease", damaged)
    with Lease(nights, "night.lease", beat_s=0.01) as lease:
        assert lease.held
