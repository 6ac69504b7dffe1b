"""The summary of a job: what it did and how long each phase took, for the terminal and as JSON."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from visrec.cli.output import say
from visrec.errors import StorageError
from visrec.storage.store import Store
from visrec.text import pad, printable, width, wrap

VERSION = 1  # of a summary's JSON; docs/schemas.md has its fields
_LABEL_WIDTH = 22  # cells, unless a label is wider
_MIN_VALUE_WIDTH = 20  # on a terminal with less room next to the labels, lines are left to wrap
_SHORTEST_SHOWN_S = 0.05  # shorter phases would print as 0.0


@dataclass
class Summary:
    """What a job did, printed at its end and written as JSON.

    Attributes:
        job: name of the job.
        rows: label and value of each line; the values are whatever JSON can hold.
        phases: seconds of wall time by phase, in order.
        worker_seconds: seconds of work by phase, summed over all workers.
        has_written: whether the job may have written anything.
        is_busy: whether another process was doing this work, so that this start did nothing.
        not_published: one sentence on which run stays published instead of this job's, and why;
            None if this job's run is published or the job publishes nothing.
    """

    job: str
    rows: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    worker_seconds: dict[str, float] = field(default_factory=dict)
    has_written: bool = False
    is_busy: bool = False
    not_published: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the wall time spent inside to the phase of that name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start

    def add_worker_seconds(self, amounts: Mapping[str, float]) -> None:
        """Takes over the seconds by phase (`<phase>_s`) that a `ProgressActor` has counted."""
        for name, amount in sorted(amounts.items()):
            if name.endswith("_s"):
                self.worker_seconds[name.removesuffix("_s")] = amount

    def render(self) -> str:
        """The lines for the terminal; rows with an empty value are left out."""
        rows = [(label, _format(value)) for label, value in self.rows.items()]
        rows += [
            (label, _format_seconds(seconds))
            for label, seconds in (
                ("wall time", self.phases),
                ("in the workers", self.worker_seconds),
            )
            if seconds
        ]
        rows = [(printable(label), printable(text)) for label, text in rows if text]
        label_width = max([_LABEL_WIDTH, *(width(label) for label, _ in rows)])
        columns = terminal_width()
        value_width = max(columns - label_width - 4, _MIN_VALUE_WIDTH) if columns else None
        lines = [f"\n{self.job}"]
        for label, text in rows:
            first, *more = wrap(text, value_width) if value_width else [text]
            lines.append(f"  {pad(label, label_width)} {first}")
            lines += [f"  {' ' * label_width} {line}" for line in more]
        return "\n".join(lines)

    def print(self) -> None:
        """Prints the summary: its lines, or the whole of it as JSON."""
        say(self.render(), event="summary", summary=self.to_dict())

    def write(self, workspace: Store) -> None:
        """Writes the summary as JSON into the workspace, in place of the job's last one."""
        workspace.write_json(f"summaries/{self.job}.json", self.to_dict())

    def write_if_possible(self, workspace: Store) -> None:
        """Writes the summary of a job that only reads; a workspace that this user may not write is
        no failure of the job."""
        try:
            self.write(workspace)
        except StorageError as error:
            say(f"{self.job}: The summary is not in the workspace. {error}", "warning")

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON has it."""
        return {
            "version": VERSION,
            "job": self.job,
            **self.rows,
            "wall_s": {name: round(s, 3) for name, s in self.phases.items()},
            "worker_s": {name: round(s, 3) for name, s in self.worker_seconds.items()},
        }


def terminal_width() -> int | None:
    """Columns of the terminal; None if the output is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _format_seconds(seconds: Mapping[str, float]) -> str:
    """The sum, and the seconds of each phase that is long enough to show."""
    parts = [f"{name} {s:.1f}" for name, s in seconds.items() if s >= _SHORTEST_SHOWN_S]
    return f"{sum(seconds.values()):.1f} s" + (f": {', '.join(parts)}" if parts else "")


def _format(value: object) -> str:
    """A value for people; an empty text for None and for empty collections."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(_format_entry(key, entry) for key, entry in value.items() if entry)
    if isinstance(value, Set):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_format, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}" if 1e5 <= abs(value) < 1e15 else f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _format_entry(key: object, value: object) -> str:
    """An entry of a mapping: `12 corrupt` for a count by reason, `reason: text` for the rest."""
    name = str(key).replace("_", " ")
    is_count = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{_format(value)} {name}" if is_count else f"{name}: {_format(value)}"
