"""One worker at a time, by a file with a heartbeat: who has it is at work on what it names.

It saves work that would be done twice; that nothing is published twice or half does not depend on
it. No clocks are compared: a holder whose file has not changed for some beats, as the one who wants
it counts them, is taken for dead, and one that ran on this machine is looked for.
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

BEAT_S = 5.0  # two small requests each
_FREE = {"owner": None}
_BEATS = 4  # without a change, after which the holder is taken for dead


class Lease:
    """`with Lease(store, "night.lease") as lease: if lease.held: ...`

    Args:
        store: where the file lies.
        name: of the file.
        beat_s: seconds between two signs of life.
    """

    def __init__(self, store: Store, name: str, beat_s: float = BEAT_S) -> None:
        self._store, self._name, self._beat_s = store, name, beat_s
        self._mine = {"owner": uuid.uuid4().hex, **_process(os.getpid())}
        self._version = ""
        self._ended = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None
        self.held = False

    def __enter__(self) -> Self:
        self.held = self._take()
        if self.held:
            self._thread = threading.Thread(target=self._beat, daemon=True)
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
            # Where the store is away the file stays, and is free after some beats.
            with contextlib.suppress(StorageError):
                self._write(_FREE)

    def check(self) -> None:
        """Between two pieces of work.

        Raises:
            ConflictError: another has taken it, as when this process was stopped for long.
        """
        if self._lost:
            raise ConflictError(
                f"Another process has taken {self._store.uri(self._name)}: this one gave no sign "
                f"of life for {_BEATS * self._beat_s:g} s. What it has done stays."
            )

    def _take(self) -> bool:
        if self._store.create(self._name, to_json(self._mine)):
            self._version = self._store.read_versioned(self._name)[1]
            return True
        data, version = self._store.read_versioned(self._name)
        holder, waited = _holder(data), 0.0
        while not _is_free(holder) and waited < _BEATS * self._beat_s:
            time.sleep(self._beat_s / 2)
            waited += self._beat_s / 2
            data, now = self._store.read_versioned(self._name)
            holder = _holder(data)
            if now != version and not _is_free(holder):
                return False
            version = now
        self._version = version
        return self._write(self._mine)

    def _beat(self) -> None:
        beats = 0
        while not self._ended.wait(self._beat_s):
            beats += 1
            try:
                self._lost = not (self._write({**self._mine, "beats": beats}) or self._is_mine())
            except StorageError:
                continue  # the store is away: if for long, the next write finds another's mark
            if self._lost:
                return

    def _write(self, value: dict[str, Any]) -> bool:
        """Writes in place of what this process wrote last; False where that is not there."""
        if not self._store.replace(self._name, to_json(value), self._version):
            return False
        data, version = self._store.read_versioned(self._name)
        self._version = version
        return data == to_json(value)

    def _is_mine(self) -> bool:
        """Whether the file is this process's after all: of a write whose reply was lost."""
        data, self._version = self._store.read_versioned(self._name)
        return bool(_holder(data)["owner"] == self._mine["owner"])


def _holder(data: bytes) -> dict[str, Any]:
    """Who has it, by the file. A damaged file is a holder's of whom nothing is known: where it
    shows no sign of life, it is taken for dead."""
    unknown = {"owner": "unknown", "pid": 0, "started": "", "machine": ""}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return unknown
    whole = isinstance(found, dict) and (found == _FREE or unknown.keys() <= found.keys())
    return found if whole else unknown


def _is_free(holder: dict[str, Any]) -> bool:
    """Given back, or held by a process of this machine that is no more."""
    if holder["owner"] is None:
        return True
    mine = _process(holder["pid"])
    same_machine = holder["machine"] == mine["machine"]
    return bool(same_machine and holder["started"] != mine["started"])


def _process(pid: int) -> dict[str, Any]:
    """A process of this machine (and container), so that no other is taken for it."""
    try:
        # The 22nd field, in ticks since the machine started; the name before may have blanks.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError):  # nor is there one where the number is none
        started = ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: a machine that nobody else is, so only the heartbeat counts
        boot, space = uuid.uuid4().hex, ""
    return {"pid": pid, "started": started, "machine": f"{boot} {space}"}
