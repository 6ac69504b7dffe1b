"""How far the workers are: they add to one counter, the job reads it and shows it."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray


@ray.remote(num_cpus=0)
class ProgressActor:
    """Amounts by name (rows done, seconds of a phase), lines to show, and how things stand."""

    def __init__(self) -> None:
        self._amounts: Counter[str] = Counter()
        self._lines: list[str] = []
        self._said_once: set[str] = set()
        self._standing = ""

    def add(self, amounts: dict[str, float]) -> None:
        self._amounts.update(amounts)

    def say(self, line: str) -> None:
        self._lines.append(line)

    def say_once(self, line: str) -> None:
        """A line that many workers may have to say."""
        if line not in self._said_once:
            self._said_once.add(line)
            self._lines.append(line)

    def stand(self, words: str) -> None:
        """A few words for the line of progress, in place of those before."""
        self._standing = words

    def read(self) -> tuple[dict[str, float], list[str], str]:
        """All amounts so far, the lines since the last call, and how things stand."""
        lines, self._lines = self._lines, []
        return dict(self._amounts), lines, self._standing


class Timer:
    """Seconds by phase in one worker, told to the tally at once.

    Args:
        tally: a handle of a `ProgressActor`.
    """

    def __init__(self, tally: Any) -> None:
        self._tally = tally
        self._amounts: dict[str, float] = {}
        self._idle_since = time.perf_counter()

    @contextmanager
    def call(self, phase: str | None = None) -> Iterator[None]:
        """One call of an actor: the seconds since the last one ended are `wait_s`.

        Args:
            phase: the name for all that is inside, if it is one phase.
        """
        self._add("wait_s", time.perf_counter() - self._idle_since)
        try:
            with self.phase(phase) if phase else nullcontext():
                yield
        finally:
            self.done()
            self._idle_since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to `<name>_s`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(f"{name}_s", time.perf_counter() - start)

    def done(self, **amounts: float) -> None:
        """Sends what was measured since the last call, with amounts such as `rows=64`."""
        for name, amount in amounts.items():
            self._add(name, amount)
        self._tally.add.remote(self._amounts)
        self._amounts = {}

    def say_once(self, line: str) -> None:
        """A line that many workers may have to say."""
        self._tally.say_once.remote(line)

    def _add(self, name: str, amount: float) -> None:
        self._amounts[name] = self._amounts.get(name, 0.0) + amount
