"""Progress of a long step on the terminal: rows done, rate, time left."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from visrec.cli.output import is_terminal, say
from visrec.cli.summary import Summary, terminal_width
from visrec.progress import ProgressActor, ProgressHandle, ProgressSnapshot
from visrec.tasks import LocalActor, get, on_ray
from visrec.text import printable, truncate

_POLL_S = 0.5
# Between lines where the output is not a terminal: while rows are being done, and while none are,
# so that a log stays short.
_LINE_S, _IDLE_LINE_S = 5.0, 60.0


@contextmanager
def track_progress(
    label: str, total: int, summary: Summary, unit: str = "rows", done: int = 0
) -> Iterator[ProgressHandle]:
    """Shows the progress that the workers report until the step ends.

    Args:
        label: name of the step.
        total: number of rows of the step.
        summary: receives the wall time of the step and the workers' seconds.
        unit: what the rows are, which is also the name under which the workers count them.
        done: number of rows that earlier runs did.

    Yields:
        The `ProgressActor` that the workers report to.
    """
    progress_actor = start_progress_actor()
    ended = threading.Event()
    step = _Step(label, total, unit, done)
    watcher = threading.Thread(target=_watch, args=(progress_actor, step, ended), daemon=True)
    watcher.start()
    try:
        with summary.phase(label):
            yield progress_actor
    finally:
        ended.set()
        watcher.join()
    snapshot: ProgressSnapshot = get(progress_actor.snapshot.remote())
    for message in snapshot.messages:
        say(f"  {printable(message)}")
    summary.add_worker_seconds(snapshot.amounts)


def start_progress_actor() -> ProgressHandle:
    """A `ProgressActor` of this job."""
    if not on_ray():
        return LocalActor(ProgressActor())
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the driver's node: the counts must survive the loss of any other node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(ProgressActor)
    return actor.options(scheduling_strategy=here).remote()


@dataclass(frozen=True)
class _Step:
    """A step that is under way.

    Attributes:
        label: its name.
        total: number of rows.
        unit: what the rows are.
        done: number of rows that earlier runs did.
    """

    label: str
    total: int
    unit: str
    done: int = 0


class StepProgress:
    """Progress of a step that this process does by itself: a line every few seconds.

    Args:
        label: name of the step.
        unit: what its rows are.
    """

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        self._start = self._last_printed = time.perf_counter()
        self._first: int | None = None

    def report(self, done: int, total: int) -> None:
        """Prints a line if the last one is old enough.

        Args:
            done: rows that are done; those of the first call were done by earlier runs.
            total: number of rows of the step.
        """
        if self._first is None:
            self._first = done
        now = time.perf_counter()
        if now - self._last_printed >= _LINE_S:
            self._last_printed = now
            step = _Step(self._label, total, self._unit, self._first)
            _say_progress(step, done - self._first, "", now - self._start)


def _watch(progress_actor: ProgressHandle, step: _Step, ended: threading.Event) -> None:
    """Prints messages as they come, and the progress line from time to time."""
    start = time.perf_counter()
    on_terminal = is_terminal()
    last_printed, last_rows = 0.0, 0.0
    while not ended.wait(_POLL_S):
        try:
            snapshot: ProgressSnapshot = get(progress_actor.snapshot.remote())
        except Exception:  # an error of Ray: the step itself fails with one that says more
            return
        for message in snapshot.messages:
            say(f"{_clear(on_terminal)}  {printable(message)}")
        seconds = time.perf_counter() - start
        rows = snapshot.amounts.get(step.unit, 0)
        interval = _LINE_S if rows != last_rows else _IDLE_LINE_S
        if step.total and on_terminal:
            line = f"  {printable(_progress_line(step, rows, snapshot.status, seconds))}"
            # A line that wraps would take two rows, and only the last row is cleared.
            line = truncate(line, (terminal_width() or len(line)) - 1)
            print(f"{_clear(on_terminal)}{line}", end="", flush=True)
        elif step.total and seconds - last_printed >= interval:
            last_printed, last_rows = seconds, rows
            _say_progress(step, rows, snapshot.status, seconds)
    if on_terminal:
        print(_clear(on_terminal), end="", flush=True)


def _say_progress(step: _Step, rows: float, status: str, seconds: float) -> None:
    """Tells how far a step is, on a line of its own."""
    remaining = step.total - step.done - rows
    say(
        f"  {printable(_progress_line(step, rows, status, seconds))}",
        event="progress",
        step=step.label,
        done=int(step.done + rows),
        total=step.total,
        unit=step.unit,
        seconds=round(seconds, 1),
        seconds_left=round(remaining * seconds / rows, 1) if rows else None,
    )


def _progress_line(step: _Step, rows: float, status: str, seconds: float) -> str:
    """One line on a step that has done so many rows in so many seconds."""
    counts = f"{step.label}: {step.done + rows:,.0f} of {step.total:,} {step.unit}"
    remaining = step.total - step.done - rows
    if not rows:
        parts = [f"{counts} done after {_duration(seconds)}"]
    else:
        parts = [counts, _rate(rows / seconds)]
        parts += [f"{_duration(remaining * seconds / rows)} left"] if remaining > 0 else []
    return ", ".join([*parts, status] if status else parts)


def _rate(per_second: float) -> str:
    if per_second >= 1:
        return f"{per_second:,.{0 if per_second >= 10 else 1}f} a second"
    per_minute = per_second * 60
    return f"{per_minute:.1f} a minute" if per_minute >= 1 else f"{per_minute * 60:.1f} an hour"


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _clear(on_terminal: bool) -> str:
    return "\r\x1b[K" if on_terminal else ""
