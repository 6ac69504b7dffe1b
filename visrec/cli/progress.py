"""Progress of a long step on the terminal: rows done, rate, time left."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from visrec.cli.launch import Summary, terminal_columns
from visrec.progress import ProgressActor
from visrec.text import cut, printable

# Between lines where the output is no terminal: of news, and of none, as in a log of cron.
_SECONDS, _QUIET_SECONDS = 5.0, 60.0


@contextmanager
def follow(
    label: str, total: int, summary: Summary, unit: str = "rows", done: int = 0
) -> Iterator[Any]:
    """Gives a tally for the workers and shows what they tell it until the step ends.

    Args:
        label: what the step does.
        total: how many rows there will be.
        summary: takes the wall time and the workers' seconds.
        unit: what the rows are, and the name the workers count them under.
        done: how many of them earlier runs did.
    """
    # Beside the driver: a machine that goes away takes no count with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tally: Any = ProgressActor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # put there by the decorator
    over, work = threading.Event(), _Work(label, total, unit, done)
    watcher = threading.Thread(target=_watch, args=(tally, work, over), daemon=True)
    watcher.start()
    try:
        with summary.phase(label):
            yield tally
    finally:
        over.set()
        watcher.join()
    amounts, lines, _ = ray.get(tally.read.remote())
    for line in lines:
        print(f"  {printable(line)}", flush=True)
    summary.worked(amounts)


@dataclass(frozen=True)
class _Work:
    """What a step does, how many rows of what kind there are, and how many were there before."""

    label: str
    total: int
    unit: str
    done: int = 0


def _watch(tally: Any, work: _Work, over: threading.Event) -> None:
    start, terminal = time.perf_counter(), sys.stdout.isatty()
    shown, before = 0.0, 0.0
    while not over.wait(0.5):
        try:
            amounts, lines, standing = ray.get(tally.read.remote())
        except ray.exceptions.RayError:
            return  # the step's own error says more than its progress can
        for line in lines:
            print(f"{_clear(terminal)}  {printable(line)}", flush=True)
        now = time.perf_counter() - start
        rows = amounts.get(work.unit, 0)
        pause = _SECONDS if rows != before else _QUIET_SECONDS
        if work.total and (terminal or now - shown >= pause):
            shown, before = now, rows
            line = f"  {printable(_line(work, rows, standing, now))}"
            # A longer one would take two lines, of which the next clears one.
            line = cut(line, (terminal_columns() or len(line)) - 1) if terminal else line
            print(f"{_clear(terminal)}{line}", end="" if terminal else "\n", flush=True)
    if terminal:
        print(_clear(terminal), end="", flush=True)


def _line(work: _Work, rows: float, standing: str, seconds: float) -> str:
    """One line on a step after so many seconds, in which so many rows were done."""
    done = f"{work.label}: {work.done + rows:,.0f} of {work.total:,} {work.unit}"
    left = work.total - work.done - rows
    if not rows:
        parts = [f"{done} done after {_duration(seconds)}"]
    else:
        parts = [done, _rate(rows / seconds)]
        parts += [f"{_duration(left * seconds / rows)} left"] if left > 0 else []
    return ", ".join([*parts, standing] if standing else parts)


def _rate(a_second: float) -> str:
    if a_second >= 1:
        return f"{a_second:,.{0 if a_second >= 10 else 1}f} a second"
    a_minute = a_second * 60
    return f"{a_minute:.1f} a minute" if a_minute >= 1 else f"{a_minute * 60:.1f} an hour"


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _clear(terminal: bool) -> str:
    return "\r\x1b[K" if terminal else ""
