"""Progress of a long step on the terminal: rows done, rate, time left."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.launch import Summary
from visrec.progress import Tally

# Between lines where the output is no terminal: of news, and of none, as in a log of cron.
_SECONDS, _QUIET_SECONDS = 5.0, 60.0


@contextmanager
def follow(label: str, total: int, summary: Summary, unit: str = "rows") -> Iterator[Any]:
    """Gives a tally for the workers and shows what they tell it until the step ends.

    Args:
        label: what the step does.
        total: how many rows there will be.
        summary: takes the wall time and the workers' seconds.
        unit: what the rows are, and the name the workers count them under.
    """
    # Beside the driver: a machine that goes away takes no count with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tally: Any = Tally.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # put there by the decorator
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(tally, label, total, unit, done), daemon=True)
    watcher.start()
    try:
        with summary.phase(label):
            yield tally
    finally:
        done.set()
        watcher.join()
    amounts, lines = ray.get(tally.read.remote())
    for line in lines:
        print(f"  {line}", flush=True)
    summary.worked(amounts)


def _watch(tally: Any, label: str, total: int, unit: str, done: threading.Event) -> None:
    start, terminal = time.perf_counter(), sys.stdout.isatty()
    shown, before = 0.0, 0.0
    while not done.wait(0.5):
        try:
            amounts, lines = ray.get(tally.read.remote())
        except ray.exceptions.RayError:
            return  # the step's own error says more than its progress can
        for line in lines:
            print(f"{_clear(terminal)}  {line}", flush=True)
        now = time.perf_counter() - start
        rows = amounts.get(unit, 0)
        pause = _SECONDS if rows != before else _QUIET_SECONDS
        if total and (terminal or now - shown >= pause):
            shown, before = now, rows
            line = _line(label, rows, total, unit, now)
            print(f"{_clear(terminal)}  {line}", end="" if terminal else "\n", flush=True)
    if terminal:
        print(_clear(terminal), end="", flush=True)


def _line(label: str, rows: float, total: int, unit: str, seconds: float) -> str:
    if not rows:
        return f"{label}: 0 of {total:,} {unit} done after {seconds:.0f} s"
    rate = rows / seconds
    return (
        f"{label}: {rows:,.0f} of {total:,} {unit}, {rate:,.{0 if rate >= 10 else 1}f} a second, "
        f"{max(total - rows, 0) / rate:,.0f} s left"
    )


def _clear(terminal: bool) -> str:
    return "\r\x1b[K" if terminal else ""
