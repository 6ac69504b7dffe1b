"""Checks of capacity: room for the processes of each job, memory and disk for the data."""

import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from visrec.capacity import WorkloadSize, processes_that_fit
from visrec.cli.resources import MAX_SCORING_WORKERS
from visrec.errors import VisrecError
from visrec.features.table import read_manifest
from visrec.pipelines.job_tables import find_interactions
from visrec.pipelines.recommend_job import RecommendJob
from visrec.recommend.score import ScoreResources
from visrec.storage.preflight import Finding
from visrec.storage.store import Store
from visrec.storage.table_files import codec_of, find_table_files

_FILES = 8  # files read to estimate the rows of a table of many files
_START_BYTES = 1 << 20  # of a text file
_INTERACTIONS_PER_USER = 20  # where only one of the two numbers is known, as in docs/scaling.md
_DEFAULT_DIM = 1280  # of the features of EfficientNet-Lite0
_MIN_FREE_BYTES = 1_000_000_000  # on the disk of a workspace of unknown size

NodeResources = Mapping[str, float]  # amounts by Ray's names: CPU, GPU, memory in bytes, ...


@dataclass(frozen=True)
class ProcessRequest:
    """The processes that a job starts, all of which must run at the same time.

    Attributes:
        job: the step of the night, as in the key --<job>_config.
        workers: number of processes.
        per_worker: resources of each.
        feeder_cpus: CPUs of the tasks that feed them.
    """

    job: str
    workers: int
    per_worker: NodeResources
    feeder_cpus: int = 0


def check_room(
    request: ProcessRequest, nodes: Sequence[NodeResources], *, may_grow: bool
) -> Finding:
    """Whether all processes of a job can run at the same time."""
    name = f"room to {request.job}"
    workers = request.workers
    cpus, gpus = request.per_worker["CPU"], request.per_worker.get("GPU", 0)
    fitting = processes_that_fit(nodes, request.per_worker)
    total_cpus, total_gpus = (sum(node.get(key, 0) for node in nodes) for key in ("CPU", "GPU"))
    fits = fitting >= workers and total_cpus >= workers * cpus + request.feeder_cpus
    needed = f"{workers} x {cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    needed += f" and {request.feeder_cpus} CPU to feed them" if request.feeder_cpus else ""
    found = f"{total_cpus:g} CPU" + (f" and {total_gpus:g} GPU" if gpus or total_gpus else "")
    found += " in all" + ("" if fitting >= workers else f", room for {fitting} of {workers}")
    if fits:
        return Finding(name, f"room for {needed}", f"{needed} at once", True)
    if may_grow:
        return Finding(name, f"{found} until it grows", f"{needed} at once", None)
    return Finding(
        name,
        found,
        f"{needed} at once, which that job requests",
        False,
        "The job would wait indefinitely. Lower --resources.workers or --resources.cpus_per_worker "
        f"of that job (in the YAML file of --{request.job}_config), add nodes, or pass "
        "--may_grow true if the cluster adds them itself.",
    )


def estimate_workload(
    job: RecommendJob, users: int, items: int, feature_dim: int
) -> WorkloadSize | None:
    """How much data a run has; None if that is unknown.

    Args:
        job: where numbers that are not given are read or estimated from.
        users: number of users, or 0.
        items: number of items, or 0.
        feature_dim: D of the features, or 0.
    """
    if not items or not feature_dim:
        try:
            manifest = read_manifest(Store.at(job.resolve(job.features, "features")))
            items, feature_dim = items or manifest.rows, feature_dim or manifest.identity.dim
        except VisrecError:
            feature_dim = feature_dim or _DEFAULT_DIM
    interactions = users * _INTERACTIONS_PER_USER
    interactions = interactions or _estimate_rows(job)
    if not items or not interactions:
        return None
    users = users or -(-interactions // _INTERACTIONS_PER_USER)
    return WorkloadSize(users, items, interactions, feature_dim)


def _estimate_rows(job: RecommendJob) -> int:
    """Rows of the interactions, estimated from a few of their files; 0 if unknown."""
    try:
        uri = find_interactions(job, job.interactions)
        if uri is None:
            return 0
        store, names = find_table_files(uri, "interactions.path")
        sample = names[:_FILES]
        rows = sum(_rows_of_file(store, name) for name in sample)
    except (VisrecError, ValueError):  # ValueError: pyarrow's error for a file that is not Parquet
        return 0
    return rows * len(names) // len(sample) if sample else 0


def _rows_of_file(store: Store, name: str) -> int:
    """Rows of a table file: from the footer of Parquet, of text from the lines of its start."""
    if name.lower().endswith(".parquet"):
        with store.open_input(name) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)
    if codec_of(name) not in (None, "gzip"):
        return 0
    start = store.read_start(name, _START_BYTES)
    lines = zlib.decompressobj(31).decompress(start) if codec_of(name) else start  # 31: of gzip
    size = next(info.size for info in store.list(name, follow_links=True) if info.name == name)
    return lines.count(b"\n") * size // max(len(start), 1)


def check_memory(
    workload: WorkloadSize | None, nodes: Sequence[NodeResources], scoring: ScoreResources
) -> Iterator[Finding]:
    """Whether the memory of the nodes is enough for each stage.

    Args:
        workload: how much data the run has; None if that is unknown.
        nodes: resources of each node.
        scoring: the resources that the scoring workers request.
    """
    if workload is None:
        expected = "users and items of the workspace, or --users and --items"
        yield Finding("memory", "no size to estimate it from", expected, None)
        return
    with_cpus = [node for node in nodes if node.get("CPU", 0) >= 1]
    size = f"for {workload.users:,} users, {workload.items:,} items, D = {workload.feature_dim}"
    yield _check_bytes(
        "object store",
        min((node.get("object_store_memory", 0.0) for node in with_cpus), default=0.0),
        workload.object_store_bytes,
        f"on the smallest node, {size}",
        "Start Ray with a larger --object-store-memory, and give containers as much --shm-size.",
    )
    yield _check_bytes(
        "memory to prepare",
        max((node.get("memory", 0.0) for node in with_cpus), default=0.0),
        workload.prepare_bytes,
        f"on the largest node, {size}",
        "The largest task that prepares data needs it: add one node with more memory.",
    )
    yield check_scratch_disk(workload)
    # Per node, its memory and the scoring processes that will run there.
    limit = scoring.workers or MAX_SCORING_WORKERS
    cpus = scoring.cpus_per_worker
    loads = [
        (node.get("memory", 0.0), max(1, min(limit, int(node["CPU"] // cpus))))
        for node in with_cpus
    ]
    memory, processes = min(loads, key=lambda load: load[0] / load[1], default=(0.0, 1))
    yield _check_bytes(
        "memory to recommend",
        memory,
        processes * workload.scoring_process_bytes,
        f"for {processes} processes on one node, {size}",
        "Fewer processes with more threads share it: raise --resources.cpus_per_worker of the job.",
    )


def check_workspace_disk(workspace: Store, workload: WorkloadSize | None) -> Finding:
    """Whether the disk of a local workspace has space for features and lists."""
    folder = Path(workspace.root)
    while not folder.exists():
        folder = folder.parent
    return _check_disk(
        "disk of the workspace",
        folder,
        workload.output_bytes if workload else _MIN_FREE_BYTES,
        "enough for features and lists",
        "Free some space, or point --workspace at another disk.",
    )


def check_scratch_disk(workload: WorkloadSize) -> Finding:
    """Whether this machine has space for the arrays that are too large for memory."""
    return _check_disk(
        "disk for scratch files",
        Path(tempfile.gettempdir()),
        workload.scratch_bytes,
        "enough for the arrays that are too large for memory, on every node",
        "Set TMPDIR to a directory on a disk with more room.",
    )


def _check_disk(name: str, folder: Path, needed: int, expected: str, advice: str) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{format_bytes(free)} free in {folder}, {format_bytes(needed)} needed"
    return Finding(name, found, expected, free >= needed, advice)


def _check_bytes(name: str, found: float, needed: float, what: str, advice: str) -> Finding:
    passed = found >= needed
    text = format_bytes(found) + (f", {format_bytes(needed)} needed" if passed else "")
    return Finding(name, text, f"{format_bytes(needed)} {what}", passed, advice)


def format_bytes(amount: float) -> str:
    return f"{amount / 1e9:,.1f} GB" if amount >= 1e8 else f"{amount / 1e6:,.1f} MB"
