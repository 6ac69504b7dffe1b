"""Reserves the resources of long-lived workers, all at once and never down to the last CPU.

Tasks that feed the workers need a CPU from time to time. If two jobs started at the same moment,
each could get half of the workers that it wants, with nothing left for tasks, and both would wait
for each other indefinitely. So only one job reserves at a time, and only if one CPU more is free
than its workers need. That CPU is released at once, for the tasks of all jobs.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

from visrec.cli.output import say

FIRST_MESSAGE_S, NEXT_MESSAGE_S = 5.0, 60.0  # between messages about the wait
_POLL_S = 1  # Ray takes whole seconds; with less it answers "not yet" before it has looked


@contextmanager
def reserve_workers(count: int, per_worker: Mapping[str, float]) -> Iterator["PlacementGroup"]:
    """Waits until the workers' resources are free, with messages, and holds them until the end.

    Args:
        count: number of workers.
        per_worker: resources of each, such as {"CPU": 1.0}.

    Yields:
        A placement group with one bundle per worker.
    """
    from ray.util.placement_group import remove_placement_group

    bundles = [dict(per_worker)] * count
    waiting = _WaitReporter(count, per_worker)
    with _lock(waiting):
        remove_placement_group(_wait_for_group([*bundles, {"CPU": 1.0}], waiting))
        # Only tasks can take what was free a moment ago, and tasks end.
        group = _wait_for_group(bundles, waiting)
    try:
        yield group
    finally:
        remove_placement_group(group)


class _WaitReporter:
    """Prints what the job waits for, first after a few seconds and then once a minute."""

    def __init__(self, count: int, per_worker: Mapping[str, float]) -> None:
        needed = " and ".join(f"{count * n:g} {name}" for name, n in per_worker.items())
        self._line = f"waiting for {needed} at once, and 1 CPU for the tasks that feed them"
        self._next = time.monotonic() + FIRST_MESSAGE_S

    def report(self) -> None:
        import ray

        if time.monotonic() >= self._next:
            self._next += NEXT_MESSAGE_S
            free, total = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
            cpus = f"{free.get('CPU', 0):g} of {total.get('CPU', 0):g} CPUs of the cluster"
            say(f"  {self._line}: {cpus} are free now")


class _Lock:
    """An actor whose name one job holds at a time; Ray frees the name however the job ends."""


@contextmanager
def _lock(waiting: _WaitReporter) -> Iterator[None]:
    import ray

    actor: Any = ray.remote(num_cpus=0)(_Lock)  # Ray's types do not know its options
    while True:
        try:
            lock = actor.options(name="visrec-reserve", namespace="visrec").remote()
            break
        except ValueError:  # another job holds the name
            time.sleep(_POLL_S)
            waiting.report()
    try:
        yield
    finally:
        ray.kill(lock)


def _wait_for_group(bundles: list[dict[str, float]], waiting: _WaitReporter) -> "PlacementGroup":
    """Waits for a placement group that has all of its bundles; a pending one holds none."""
    from ray.util.placement_group import placement_group, remove_placement_group

    group: PlacementGroup = placement_group(bundles, strategy="SPREAD")
    try:
        while not group.wait(_POLL_S):
            waiting.report()
    except BaseException:
        remove_placement_group(group)
        raise
    return group
