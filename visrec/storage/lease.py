"""A lease: a file with a heartbeat that lets one process at a time work on what it names.

A lease only avoids duplicate work; publication is correct without it. A process that waits for a
lease takes it if the holder's file does not change for a few heartbeats, measured by the waiting
process alone, so clocks of two machines are never compared. If the holder ran on this machine and
its process is gone, the lease is taken at once.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from visrec.errors import ConflictError, StorageError
from visrec.storage.store import Store, to_json

HEARTBEAT_S = 5.0  # each takes two small requests
_MISSED_HEARTBEATS = 4  # after which the holder is presumed dead


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The content of a lease file.

    Attributes:
        holder: random id of the holder; None if the lease is free.
        pid: process id of the holder.
        started: when that process started, in ticks since boot; empty if unknown.
        machine: boot and process namespace in which the pid is valid.
        host: name of that machine, for people; empty if unknown.
        since: when the lease was taken, in UTC, for people; empty if unknown.
        beats: number of heartbeats.
    """

    holder: str | None
    pid: int = 0
    started: str = ""
    machine: str = ""
    host: str = ""
    since: str = ""
    beats: int = 0

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid else "an unknown process"
        host = f" on {self.host}" if self.host else ""
        return f"{process}{host}{f', since {self.since} UTC' if self.since else ''}"

    def to_json(self) -> bytes:
        return to_json({"holder": None} if self.holder is None else asdict(self))

    @staticmethod
    def from_json(data: bytes) -> "_Record":
        """The record of a file; that of an unknown process if the file is damaged.

        An unknown process is taken for dead if it sends no heartbeat.
        """
        try:
            fields = json.loads(data)
            if fields == {"holder": None}:
                return _FREE
            record = _Record(**fields)
        except (ValueError, TypeError, RecursionError):
            return _UNKNOWN
        is_valid = all(isinstance(value, str | int) for value in asdict(record).values())
        return record if is_valid else _UNKNOWN


_FREE = _Record(holder=None)
_UNKNOWN = _Record(holder="unknown")


class Lease:
    """`with Lease(store, "night.lease") as lease: if lease.held: ...`

    Attributes:
        held: whether this process has the lease.
        holder: the process that has it, in words: its id, machine and start.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        heartbeat_s: float = HEARTBEAT_S,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepares a lease, which `with` tries to take.

        Args:
            store: contains the file.
            name: the name of the file.
            heartbeat_s: seconds between two heartbeats.
            on_wait: called with a sentence before this process waits for a heartbeat.
        """
        self._store, self._name, self._heartbeat_s = store, name, heartbeat_s
        self._on_wait = on_wait
        self._record = replace(
            _describe_process(os.getpid(), holder=uuid.uuid4().hex),
            host=platform.node(),
            since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
        )
        self._version = ""
        self._ended = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None
        self.held = False
        self.holder = str(self._record)

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
        """Checks that this process still has the lease; to be called between two steps of the work.

        Raises:
            ConflictError: another process has taken the lease, because this process was suspended
                or its store did not answer.
        """
        if self._lost:
            path = self._store.uri(self._name)
            raise ConflictError(
                f"Another process has taken {path}: this process sent no heartbeat for "
                f"{_MISSED_HEARTBEATS * self._heartbeat_s:g} s. Its finished work is kept.",
                path=path,
            )

    def _take(self) -> bool:
        if self._store.create(self._name, self._record.to_json()):
            self._version = self._store.read_versioned(self._name)[1]
            return True
        data, version = self._store.read_versioned(self._name)
        record, waited = _Record.from_json(data), 0.0
        longest = _MISSED_HEARTBEATS * self._heartbeat_s
        if not _is_free(record):
            self._on_wait(
                f"{self._store.uri(self._name)} is held by {record}: waiting up to {longest:g} s "
                "for its heartbeat."
            )
        while not _is_free(record) and waited < longest:
            time.sleep(self._heartbeat_s / 2)
            waited += self._heartbeat_s / 2
            data, new_version = self._store.read_versioned(self._name)
            record = _Record.from_json(data)
            if new_version != version and not _is_free(record):
                self.holder = str(record)
                return False
            version = new_version
        self._version = version
        return self._write(self._record)

    def _send_heartbeats(self) -> None:
        beats = 0
        while not self._ended.wait(self._heartbeat_s):
            beats += 1
            try:
                still_held = self._write(replace(self._record, beats=beats)) or self._is_holder()
            except StorageError:
                continue  # if the store does not answer for long, another process takes the lease
            if not still_held:
                self._lost = True
                return

    def _write(self, record: _Record) -> bool:
        """Replaces the record that this process read or wrote last; False if it has changed."""
        if not self._store.replace(self._name, record.to_json(), self._version):
            return False
        data, version = self._store.read_versioned(self._name)
        self._version = version
        return data == record.to_json()

    def _is_holder(self) -> bool:
        """Whether the stored record is this process's; it may be, if a write's reply was lost."""
        data, self._version = self._store.read_versioned(self._name)
        return _Record.from_json(data).holder == self._record.holder


def _is_free(record: _Record) -> bool:
    """Whether the lease was given back, or its holder ran on this machine and has ended."""
    if record.holder is None:
        return True
    current = _describe_process(record.pid, record.holder)
    return record.machine == current.machine and record.started != current.started


def _describe_process(pid: int, holder: str) -> _Record:
    """A record with what distinguishes a process from every other one, here and elsewhere."""
    try:
        # The 22nd field, in ticks since boot; the command name before it may contain spaces.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError):  # ValueError: a pid that is not a path, in a damaged record
        started = ""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: a random machine id, so that only the heartbeat counts
        boot_id, namespace = uuid.uuid4().hex, ""
    return _Record(holder=holder, pid=pid, started=started, machine=f"{boot_id} {namespace}")
