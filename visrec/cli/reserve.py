"""What actors keep for as long as they live, taken all at once and never to the last CPU.

Tasks that feed actors need a CPU now and then. Two jobs that start at the same moment could each
take half of what they want for their actors and leave none for tasks: both would wait for each
other indefinitely. So jobs take theirs in turn, and only where one CPU more is free. It is given
back at once, is there for the tasks of all jobs, and is never an actor's.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from visrec.cli.launch import JobConfig, cluster_has, require_resources
from visrec.recommend.score import ScoreResources

FIRST_WORD, NEXT_WORD = 5.0, 60.0  # seconds of waiting after which it is said
_PAUSE = 0.5  # seconds between looks at what is free


@contextmanager
def reserved(actors: int, each: dict[str, float]) -> Iterator[PlacementGroup]:
    """Holds resources for actors until the end; waits for them before, and says so.

    Args:
        actors: how many.
        each: what one of them takes, as {"CPU": 1.0}.

    Yields:
        A placement group with one bundle an actor.
    """
    wanted, patience = [each] * actors, _Patience(actors, each)
    with _turn(patience):
        remove_placement_group(_granted([*wanted, {"CPU": 1.0}], patience))
        # What was free is taken by nobody but tasks, which end.
        group = _granted(wanted, patience)
    try:
        yield group
    finally:
        remove_placement_group(group)


class _Patience:
    """Says what is waited for, soon and then now and again."""

    def __init__(self, actors: int, each: dict[str, float]) -> None:
        what = " and ".join(f"{actors * n:g} {name}" for name, n in each.items())
        self._line = f"waiting for {what} at once, and 1 CPU for the tasks that feed them"
        self._next = time.monotonic() + FIRST_WORD

    def wait(self) -> None:
        if time.monotonic() >= self._next:
            self._next += NEXT_WORD
            free, every = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
            cpus = f"{free.get('CPU', 0):g} of {every.get('CPU', 0):g} CPUs"
            print(f"  {self._line}: {cpus} of the cluster are free, others work", flush=True)
        time.sleep(_PAUSE)


@ray.remote(num_cpus=0)
class _Turn:
    """A name that one job has at a time; it is gone when the job is, however it ends."""


@contextmanager
def _turn(patience: _Patience) -> Iterator[None]:
    while True:
        try:
            turn = _Turn.options(name="visrec-reserve", namespace="visrec").remote()  # type: ignore[attr-defined]
            break
        except ValueError:  # the name is another job's
            patience.wait()
    try:
        yield
    finally:
        ray.kill(turn)


def _granted(bundles: list[dict[str, float]], patience: _Patience) -> PlacementGroup:
    """A group that has all of its bundles; while it waits it has none."""
    group: PlacementGroup = placement_group(bundles, strategy="SPREAD")
    try:
        while not group.wait(0):
            patience.wait()
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def scoring_actors(config: JobConfig, resources: ScoreResources, shards: int) -> int:
    """How many processes score: nothing else wants a CPU meanwhile."""
    if resources.actors:
        actors = resources.actors
    elif resources.use_gpu:
        actors = max(1, cluster_has("GPU"))
    else:
        cores = cluster_has("CPU")
        if config.local:  # where Ray counts more CPUs than there may be
            cores = min(cores, os.cpu_count() or 1)
        actors = max(1, min(64, cores // resources.cpus_per_actor))
    actors = min(actors, shards)
    wanted = {"CPU": float(actors * resources.cpus_per_actor)}
    if resources.use_gpu:
        wanted["GPU"] = float(actors)
    require_resources(wanted, config, "resources.actors")
    return actors
