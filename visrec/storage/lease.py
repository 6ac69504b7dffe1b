"""A lease: a file with a heartbeat that lets one process at a time work on what it names.

A lease only saves duplicate work; publication is correct without it. Clocks are never compared. A
holder is taken for dead when its file has not changed for a few heartbeats, as the waiting process
counts them, or at once if it ran on this machine and its process is gone.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from visrec.errors import ConflictError, StorageError
from visrec.storage.store import Store, to_json

HEARTBEAT_S = 5.0  # each takes two small requests
_FREE = {"holder": None}
_MISSED_HEARTBEATS = 4  # after which the holder is taken for dead


class Lease:
    """`with Lease(store, "night.lease") as lease: if lease.held: ...`

    Attributes:
        held: whether this process has the lease.
    """

    def __init__(self, store: Store, name: str, heartbeat_s: float = HEARTBEAT_S) -> None:
        """Prepares a lease, which `with` tries to take.

        Args:
            store: contains the file.
            name: of the file.
            heartbeat_s: seconds between two heartbeats.
        """
        self._store, self._name, self._heartbeat_s = store, name, heartbeat_s
        self._record = {"holder": uuid.uuid4().hex, **_describe_process(os.getpid())}
        self._version = ""
        self._ended = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None
        self.held = False

    def __enter__(self) -> Self:
        self.held = self._take()
        if self.held:
            self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
        if self.held and not self._lost:
            # If the store does not answer, the file stays and is free after a few heartbeats.
            with contextlib.suppress(StorageError):
                self._write(_FREE)

    def check(self) -> None:
        """Call this between two pieces of work.

        Raises:
            ConflictError: another process has taken the lease, because this one was stopped.
        """
        if self._lost:
            path = self._store.uri(self._name)
            raise ConflictError(
                f"Another process has taken {path}: this process sent no heartbeat for "
                f"{_MISSED_HEARTBEATS * self._heartbeat_s:g} s. Its finished work is kept.",
                path=path,
            )

    def _take(self) -> bool:
        if self._store.create(self._name, to_json(self._record)):
            self._version = self._store.read_versioned(self._name)[1]
            return True
        data, version = self._store.read_versioned(self._name)
        record, waited = _parse_record(data), 0.0
        while not _is_free(record) and waited < _MISSED_HEARTBEATS * self._heartbeat_s:
            time.sleep(self._heartbeat_s / 2)
            waited += self._heartbeat_s / 2
            data, new_version = self._store.read_versioned(self._name)
            record = _parse_record(data)
            if new_version != version and not _is_free(record):
                return False
            version = new_version
        self._version = version
        return self._write(self._record)

    def _send_heartbeats(self) -> None:
        beats = 0
        while not self._ended.wait(self._heartbeat_s):
            beats += 1
            try:
                still_held = self._write({**self._record, "beats": beats}) or self._is_holder()
            except StorageError:
                continue  # no answer; if that lasts, the next write finds another holder's record
            if not still_held:
                self._lost = True
                return

    def _write(self, record: dict[str, Any]) -> bool:
        """Replaces the record that this process wrote last; False if another one is there."""
        if not self._store.replace(self._name, to_json(record), self._version):
            return False
        data, version = self._store.read_versioned(self._name)
        self._version = version
        return data == to_json(record)

    def _is_holder(self) -> bool:
        """Whether the stored record is this process's, as after a write whose reply was lost."""
        data, self._version = self._store.read_versioned(self._name)
        return bool(_parse_record(data)["holder"] == self._record["holder"])


def _parse_record(data: bytes) -> dict[str, Any]:
    """The holder's record. A damaged file counts as the record of an unknown process, which is
    taken for dead if it sends no heartbeat."""
    unknown = {"holder": "unknown", "pid": 0, "started": "", "machine": ""}
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return unknown
    is_valid = isinstance(record, dict) and (record == _FREE or unknown.keys() <= record.keys())
    return record if is_valid else unknown


def _is_free(record: dict[str, Any]) -> bool:
    """Whether the lease was given back, or its holder was a process of this machine and is gone."""
    if record["holder"] is None:
        return True
    current = _describe_process(record["pid"])
    same_machine = record["machine"] == current["machine"]
    return bool(same_machine and record["started"] != current["started"])


def _describe_process(pid: int) -> dict[str, Any]:
    """What distinguishes a process from every other one, here and on other machines."""
    try:
        # The 22nd field, in ticks since boot; the command name before it may contain spaces.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError):  # ValueError: the pid of a damaged record
        started = ""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: a random machine id, so that only the heartbeat counts
        boot_id, namespace = uuid.uuid4().hex, ""
    return {"pid": pid, "started": started, "machine": f"{boot_id} {namespace}"}
