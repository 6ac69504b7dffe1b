"""The lease: one holder at a time, given back, and taken over only from dead holders."""

import json
import os
import platform
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.storage.test_conditional_writes import in_threads
from visrec.errors import ConflictError, StorageError
from visrec.storage.lease import Lease
from visrec.storage.store import Store, to_json

NAME, HEARTBEAT_S = "night.lease", 0.1


def lease(store: Store) -> Lease:
    return Lease(store, NAME, HEARTBEAT_S)


def take_at_once(count: int, store: Store) -> list[bool]:
    """Which of several threads get the lease; none gives it back before all have tried."""
    end = threading.Barrier(count)

    def take(_: int) -> bool:
        with lease(store) as taken:
            end.wait(timeout=30)
            return taken.held

    return in_threads(count, take)


def test_lease_is_held_by_one_until_it_is_given_back(store: Store) -> None:
    with lease(store) as first:
        assert first.held
        with lease(store) as second:
            assert not second.held
        first.check()
    with lease(store) as third:
        assert third.held


def test_holder_is_named_with_process_machine_and_time(store: Store) -> None:
    said: list[str] = []
    with lease(store) as first, Lease(store, NAME, HEARTBEAT_S, said.append) as second:
        assert not second.held
        assert second.holder == first.holder
        record = store.read_json(NAME)
        assert first.holder == (
            f"process {os.getpid()} on {platform.node()}, since {record['since']} UTC"
        )
        age = datetime.now(UTC) - datetime.fromisoformat(f"{record['since']}+00:00")
        assert timedelta(0) <= age < timedelta(minutes=10)
    assert said == [
        f"{store.uri(NAME)} is held by {first.holder}: waiting up to 0.4 s for its heartbeat."
    ]


def test_lease_of_an_earlier_version_has_a_holder_without_machine_and_time(tmp_path: Path) -> None:
    store, said = Store(str(tmp_path)), list[str]()
    store.create(NAME, to_json({"holder": "x", "pid": 7, "started": "1", "machine": "elsewhere"}))
    with Lease(store, NAME, 0.01, said.append) as taken:
        assert taken.held
    assert f"{NAME} is held by process 7: waiting" in said[0]


def test_free_lease_goes_to_one_of_many_threads(tmp_path: Path) -> None:
    assert take_at_once(6, Store(str(tmp_path))).count(True) == 1


def test_lease_of_a_dead_holder_goes_to_one_of_many_threads(tmp_path: Path) -> None:
    """The holder ran on another machine and sends no heartbeat; all notice it at the same time."""
    store = Store(str(tmp_path))
    store.create(NAME, to_json({"holder": "x", "pid": 1, "started": "1", "machine": "elsewhere"}))
    assert take_at_once(4, store).count(True) == 1


def test_lease_of_a_killed_local_process_is_taken_at_once(tmp_path: Path) -> None:
    """Nobody waits for its heartbeat, which would take minutes here."""
    code = (
        "import os, signal\nfrom visrec.storage.lease import Lease\n"
        "from visrec.storage.store import Store\n"
        f"with Lease(Store({str(tmp_path)!r}), {NAME!r}, 60) as taken:\n"
        "    assert taken.held\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -9
    assert json.loads((tmp_path / NAME).read_text())["holder"] is not None
    with Lease(Store(str(tmp_path)), NAME, 60) as taken:
        assert taken.held


def test_check_raises_after_another_process_took_the_lease(tmp_path: Path) -> None:
    """As happens to a process that is stopped for a while."""
    store = Store(str(tmp_path))
    with lease(store) as lost:
        lost.check()
        version = store.read_versioned(NAME)[1]
        other = to_json({"holder": "another", "pid": 1, "started": "", "machine": "elsewhere"})
        while not store.replace(NAME, other, version):
            version = store.read_versioned(NAME)[1]
        threading.Event().wait(20 * HEARTBEAT_S)
        with pytest.raises(
            ConflictError, match=r"Another process has taken .*night.lease"
        ) as caught:
            lost.check()
        assert caught.value.path == store.uri(NAME)
    assert store.read(NAME) == other


def test_lease_survives_a_lost_reply(tmp_path: Path) -> None:
    """A heartbeat is written, and the store fails before its reply is read."""

    class Flaky(Store):
        def replace(self, name: str, data: bytes, version: str) -> bool:
            done = super().replace(name, data, version)
            if b'"beats": 2' in data:
                raise StorageError("the reply was lost")
            return done

    store = Flaky(str(tmp_path))
    with lease(store) as taken:
        threading.Event().wait(10 * HEARTBEAT_S)
        taken.check()
        assert store.read_json(NAME)["beats"] > 2
    assert store.read_json(NAME) == {"holder": None}


@pytest.mark.parametrize(
    "damaged",
    [b"", b"null", b"{", b"\xff", b"[" * 9999,
     b'{"holder": "a", "pid": "\\u0000", "started": "", "machine": ""}'],
)  # fmt: skip
def test_damaged_lease_is_taken_after_a_few_heartbeats(tmp_path: Path, damaged: bytes) -> None:
    nights = Store(str(tmp_path))
    nights.write("night.lease", damaged)
    with Lease(nights, "night.lease", heartbeat_s=0.01) as lease:
        assert lease.held
