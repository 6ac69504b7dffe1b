"""Progress of the workers: they add to one counter, which the job reads and shows."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeAlias

# Of a `ProgressActor` on Ray, or of one in this process, as `visrec.tasks.LocalActor`.
ProgressHandle: TypeAlias = Any


class ProgressSnapshot(NamedTuple):
    """What a `ProgressActor` has collected.

    Attributes:
        amounts: all amounts so far, by name.
        messages: the messages since the last snapshot.
        status: the latest status, or an empty text.
    """

    amounts: dict[str, float]
    messages: list[str]
    status: str


class ProgressActor:
    """Amounts by name (rows done, seconds of a phase), messages to print, and a short status."""

    def __init__(self) -> None:
        self._amounts: Counter[str] = Counter()
        self._messages: list[str] = []
        self._logged_once: set[str] = set()
        self._status = ""

    def add(self, amounts: dict[str, float]) -> None:
        self._amounts.update(amounts)

    def log(self, message: str) -> None:
        self._messages.append(message)

    def log_once(self, message: str) -> None:
        """Logs a message unless another worker has logged it already."""
        if message not in self._logged_once:
            self._logged_once.add(message)
            self._messages.append(message)

    def set_status(self, status: str) -> None:
        """Replaces the few words at the end of the progress line."""
        self._status = status

    def snapshot(self) -> ProgressSnapshot:
        messages, self._messages = self._messages, []
        return ProgressSnapshot(dict(self._amounts), messages, self._status)


class Timer:
    """Measures the seconds of each phase in one worker and reports them to a `ProgressActor`.

    Args:
        progress_actor: where the seconds go; None outside of Ray, where nobody asks for them.
    """

    def __init__(self, progress_actor: ProgressHandle | None) -> None:
        self._progress_actor = progress_actor
        self._amounts: dict[str, float] = {}
        self._idle_since = time.perf_counter()

    @contextmanager
    def call(self, phase: str | None = None) -> Iterator[None]:
        """Times one call of an actor; the seconds since the previous call ended are `wait_s`.

        Args:
            phase: name of the phase, if the whole call is one phase.
        """
        self._add("wait_s", time.perf_counter() - self._idle_since)
        try:
            with self.phase(phase) if phase else nullcontext():
                yield
        finally:
            self.report()
            self._idle_since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to `<name>_s`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(f"{name}_s", time.perf_counter() - start)

    def report(self, **amounts: float) -> None:
        """Sends the seconds measured since the last report, and amounts such as `rows=64`."""
        for name, amount in amounts.items():
            self._add(name, amount)
        if self._progress_actor is not None:
            self._progress_actor.add.remote(self._amounts)
        self._amounts = {}

    def log_once(self, message: str) -> None:
        """Logs a message unless another worker has logged it already."""
        if self._progress_actor is not None:
            self._progress_actor.log_once.remote(message)

    def _add(self, name: str, amount: float) -> None:
        self._amounts[name] = self._amounts.get(name, 0.0) + amount
