"""How many workers a job may start, by the resources that the cluster has."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.cores import usable_cores
from visrec.errors import InputError
from visrec.recommend.score import ScoreResources

if TYPE_CHECKING:
    from visrec.features.extract import ExtractResources

MAX_SCORING_WORKERS = 64  # unless --resources.workers says otherwise


def cluster_total(resource: str) -> int:
    """How much of a resource the cluster has now, free or taken, in whole units."""
    import ray

    return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


def default_cpu_workers(cpus_per_worker: int, most: int) -> int:
    """Enough workers for half of the cluster's CPUs; the tasks that feed them need the rest."""
    return max(1, min(most, cluster_total("CPU") // (2 * cpus_per_worker)))


def require_resources(needed: Mapping[str, float], config: JobConfig, key: str) -> None:
    """Refuses what this machine can never provide, instead of waiting for it indefinitely.

    A cluster may grow, so on a cluster a message is printed and the job goes on.

    Args:
        needed: CPUs and GPUs, all at once.
        config: says whether the job runs on this machine alone.
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


def count_workers(
    config: JobConfig,
    resources: "ScoreResources | ExtractResources",
    most: int,
    cpus_beside: int = 0,
) -> int:
    """How many processes a job starts on Ray.

    Args:
        config: says whether the job runs on this machine alone.
        resources: as configured; without a number, one for each GPU, or as the CPUs allow.
        most: the maximum number of workers that run on CPUs.
        cpus_beside: CPUs that they leave for other tasks.
    """
    if resources.workers:
        return resources.workers
    if resources.use_gpu:
        return max(1, cluster_total("GPU"))
    cores = cluster_total("CPU") - cpus_beside
    if config.local:  # `start_ray` may declare more CPUs than the machine has
        cores = min(cores, usable_cores())
    return max(1, min(most, cores // resources.cpus_per_worker))


def scoring_workers(config: JobConfig, resources: ScoreResources, shards: int) -> int:
    """How many processes score; they may take every CPU, since no other tasks run.

    Args:
        config: says whether the job runs on this machine alone.
        resources: as configured.
        shards: at most one worker per shard is of use.
    """
    workers = min(count_workers(config, resources, MAX_SCORING_WORKERS), shards)
    needed = {"CPU": float(workers * resources.cpus_per_worker)}
    if resources.use_gpu:
        needed["GPU"] = float(workers)
    require_resources(needed, config, "resources.workers")
    return workers
