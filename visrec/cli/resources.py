"""How many workers a job may start, by the resources that the cluster has."""

import os
from collections.abc import Mapping

from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.errors import InputError
from visrec.recommend.score import ScoreResources
from visrec.tasks import on_ray

MAX_SCORING_WORKERS = 64  # unless --resources.workers says otherwise
# More queries are scored faster by processes, which take 9 s to start on two cores. A query costs
# 0.14 ms of a core beside the search, and that part does not run on several threads.
_HERE_QUERIES = 65_536


def cluster_total(resource: str) -> int:
    """How much of a resource the cluster has now, free or taken, in whole units."""
    import ray

    return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


def default_cpu_workers(cpus_per_worker: int, most: int) -> int:
    """Workers for half of the cluster's CPUs: the tasks that feed them need the rest."""
    return max(1, min(most, cluster_total("CPU") // (2 * cpus_per_worker)))


def require_resources(needed: Mapping[str, float], config: JobConfig, key: str) -> None:
    """Refuses what this machine can never provide, instead of waiting for it indefinitely.

    A cluster may grow, so on a cluster a message is printed and the job goes on.

    Args:
        needed: CPUs and GPUs, all at once.
        config: tells whether the job runs on this machine alone.
        key: the configuration key that decides how many are needed.

    Raises:
        InputError: the local machine has less.
    """
    missing = {name: n for name, n in needed.items() if n > cluster_total(name)}
    if not missing:
        return
    expected = ", ".join(f"{n:g} {name}" for name, n in missing.items())
    found = ", ".join(f"{cluster_total(name)} {name}" for name in missing)
    text = f"--{key} needs {expected} at once; found {found}"
    if config.local:
        raise InputError(f"{text} on this machine. Use fewer, or run on a cluster.")
    say(f"{text} in the cluster now. Waiting for the cluster to grow.")


def scores_here(config: JobConfig, queries: int, resources: ScoreResources) -> bool:
    """Whether this process makes the lists by itself, with a search on all cores."""
    is_asked_for = resources.workers is not None or resources.use_gpu
    return config.local and not is_asked_for and queries <= _HERE_QUERIES and not on_ray()


def scoring_workers(config: JobConfig, resources: ScoreResources, shards: int) -> int:
    """How many processes score; they may take every CPU, since no tasks run beside them.

    Args:
        config: tells whether the job runs on this machine alone.
        resources: as configured.
        shards: at most one worker per shard is of use.
    """
    if resources.workers:
        workers = resources.workers
    elif resources.use_gpu:
        workers = max(1, cluster_total("GPU"))
    else:
        cores = cluster_total("CPU")
        if config.local:  # `start_ray` may declare more CPUs than the machine has
            cores = min(cores, os.cpu_count() or 1)
        workers = max(1, min(MAX_SCORING_WORKERS, cores // resources.cpus_per_worker))
    workers = min(workers, shards)
    needed = {"CPU": float(workers * resources.cpus_per_worker)}
    if resources.use_gpu:
        needed["GPU"] = float(workers)
    require_resources(needed, config, "resources.workers")
    return workers
