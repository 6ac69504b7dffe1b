"""Whether a run is possible here: tries the store, asks every node, says what is missing.

python jobs/doctor.py --local
python jobs/doctor.py s3://shop/visrec --train.workers 4 --train.use_gpu true

Exit code 0: fit; 2: unfit, and the findings say why. The workspace keeps the summary and no more.
"""

import importlib.metadata
import os
import platform
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from visrec.capacity import Size, room
from visrec.cli.launch import JobConfig, Summary
from visrec.config import check_fields
from visrec.errors import InputError, VisrecError
from visrec.features.extract import ExtractResources
from visrec.features.table import read_manifest
from visrec.recommend.score import ScoreResources
from visrec.storage.preflight import WRITABLE, Finding, sees, sweep, trial_of, try_store
from visrec.storage.s3_clients import translated
from visrec.storage.store import Store
from visrec.storage.tables import table_files
from visrec.training.ray_train import TrainResources

PACKAGES = ("ray", "torch", "pyarrow")
CLOCKS_APART = 60.0  # seconds; S3 refuses requests that are 15 minutes off
DISK_FULL = 0.95  # where Ray stops to write to a disk
FOOTERS = 8  # read of a table of many files
PER_USER = 20  # interactions, where only users are known: as in docs/scaling.md


# The jobs' resources, under other keys.


@dataclass(frozen=True, kw_only=True)
class ToExtract(ExtractResources):
    SECTION: ClassVar[str] = "extract"


@dataclass(frozen=True, kw_only=True)
class ToTrain(TrainResources):
    SECTION: ClassVar[str] = "train"


@dataclass(frozen=True, kw_only=True)
class ToRecommend(ScoreResources):
    SECTION: ClassVar[str] = "recommend"


@dataclass(frozen=True, kw_only=True)
class DoctorJob(JobConfig):
    """Whether a run is possible here.

    Attributes:
        users: users that the run is for; by default estimated from interactions.parquet of
            the workspace, where it is there, at 20 interactions a user.
        items: items that the run is for; by default those of the workspace's features.
        feature_dim: D of the features; by default that of the workspace's features, or 1280.
        extract: what extract_features.py will be given as resources.
        train: what train.py will be given as resources.
        recommend: what recommend.py will be given as resources.
        may_grow: the cluster adds nodes when a job asks for them: what is too large for it now is
            said and is no fault.
        answer_within_s: seconds that a node has to answer.
    """

    users: int = 0
    items: int = 0
    feature_dim: int = 0
    extract: ToExtract = field(default_factory=ToExtract)
    train: ToTrain = field(default_factory=ToTrain)
    recommend: ToRecommend = field(default_factory=ToRecommend)
    may_grow: bool = False
    answer_within_s: float = 60.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            "",
            users="[0, 1000000000000]",
            items="[0, 1000000000000]",
            feature_dim="[0, 65536]",
            answer_within_s="(0, 86400]",
        )


@dataclass(frozen=True)
class Node:
    """What a node told of itself.

    Args:
        address: of the node.
        versions: of Python and of the packages that processes exchange objects of.
        auth: its RAY_AUTH_MODE.
        clock_off: seconds that its clock is off this one, at least.
        disk_free: bytes, where Ray keeps its session.
        disk_used: share of that disk.
        store_trouble: why it cannot read the workspace; empty where it can or was not asked.
    """

    address: str
    versions: Mapping[str, str]
    auth: str
    clock_off: float
    disk_free: int
    disk_used: float
    store_trouble: str


def main(config: DoctorJob, summary: Summary) -> None:
    workspace = Store.at(config.workspace)
    trial = trial_of(workspace)
    try:
        with summary.phase("store"):
            findings = try_store(workspace, trial)
        writable = any(found.name == WRITABLE and found.fit for found in findings)
        with summary.phase("cluster"):
            findings += examine_cluster(config, workspace, trial if writable else None)
    finally:
        with summary.phase("clean up"):
            swept = sweep(trial)
    if writable:
        findings.append(swept)
    _conclude(findings, workspace if writable else None, summary)


def _conclude(findings: Sequence[Finding], workspace: Store | None, summary: Summary) -> None:
    """The table; where something is not fit, also the summary, since the job ends here.

    Raises:
        InputError: something is not fit.
    """
    unfit = [finding for finding in findings if finding.fit is False]
    summary.rows = {finding.name: str(finding) for finding in findings}
    if not unfit:
        open_ones = sum(finding.fit is None for finding in findings)
        told = f", {open_ones} could not be told" if open_ones else ""
        summary.rows["verdict"] = f"fit for a run: {len(findings)} findings, none unfit{told}"
        return
    names = ", ".join(finding.name for finding in unfit)
    summary.rows["verdict"] = f"UNFIT for a run: {names}"
    print(summary.show(), flush=True)
    if workspace is not None:
        workspace.write_json(f"summaries/{summary.job}.json", summary.as_json())
    # What to do about several findings is said once.
    advices = dict.fromkeys(finding.advice for finding in unfit)
    paragraphs = [
        "; ".join(f.complaint for f in unfit if f.advice == advice) + f". {advice}"
        for advice in advices
    ]
    raise InputError(f"Unfit for a run. {' '.join(paragraphs)}")


# The cluster.


def examine_cluster(config: DoctorJob, workspace: Store, trial: Store | None) -> list[Finding]:
    """Every node asked, and what it has held against what the jobs will ask for."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes, silent = _ask(alive, trial, config.answer_within_s)
    resources = [node["Resources"] for node in alive]
    size = size_of(config)
    return [
        _answers(nodes, silent, config),
        *(_versions(nodes), _clocks(nodes), _token(config, nodes)),
        *([_workspace_seen(nodes, config)] if trial else []),
        *schedulable(config, resources),
        *_memory(config, size, resources),
        _session_disk(nodes),
        *([] if workspace.is_s3 else [_workspace_disk(workspace, size)]),
    ]


def _ask(
    alive: Sequence[Mapping[str, Any]], trial: Store | None, seconds: float
) -> tuple[list[Node], list[str]]:
    """What the nodes tell of themselves; and those that do not in time, by their addresses."""
    sent = time.time()
    asked = {
        _look.options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(node["ObjectStoreSocketName"], trial): node
        for node in alive
    }
    waiting, deadline = list(asked), time.monotonic() + seconds
    nodes, silent = [], []
    while waiting and (left := deadline - time.monotonic()) > 0:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
        received = time.time()
        for ref in done:
            address = str(asked[ref]["NodeManagerAddress"])
            try:
                told = ray.get(ref)
            except ray.exceptions.RayError as error:
                # A node that lacks a package, or is going away.
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                silent.append(f"{address} ({type(cause).__name__})")
                continue
            clock = told.pop("clock")
            # It was read between our sending and our receiving.
            off = max(sent - clock, clock - received, 0.0)
            nodes.append(Node(address, clock_off=off, **told))
    for ref in waiting:
        silent.append(str(asked[ref]["NodeManagerAddress"]))
        ray.cancel(ref, force=True)
    return nodes, silent


@ray.remote(max_retries=0)
def _look(socket: str, trial: Store | None) -> dict[str, Any]:
    clock = time.time()
    session = Path(socket).parents[1]
    disk = shutil.disk_usage(session)
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "clock": clock,
        "versions": {"python": platform.python_version(), **packages},
        "auth": os.environ.get("RAY_AUTH_MODE", "unset"),
        "disk_free": disk.free,
        "disk_used": disk.used / (disk.used + disk.free),
        "store_trouble": sees(trial) if trial else "",
    }


def _answers(nodes: Sequence[Node], silent: Sequence[str], config: DoctorJob) -> Finding:
    count = len(nodes) + len(silent)
    return Finding(
        "nodes",
        f"{len(nodes)} of {count} answer" + (f", not {_some(silent)}" if silent else ""),
        f"all within {config.answer_within_s:g} s",
        not silent,
        "Look at these nodes' memory and logs, and at whether they have the same packages.",
    )


def _versions(nodes: Sequence[Node]) -> Finding:
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    here = {"python": platform.python_version(), **packages}
    other = [
        f"{name} {node.versions[name]} on {node.address}"
        for node in nodes
        for name in here
        if node.versions[name] != here[name]
    ]
    expected = ", ".join(f"{name} {version}" for name, version in here.items())
    return Finding(
        "versions",
        _some(other) if other else expected,
        f"{expected} everywhere",
        not other,
        "Install the same from requirements.lock on every node, or use one image for all.",
    )


def _clocks(nodes: Sequence[Node]) -> Finding:
    off = max((node.clock_off for node in nodes), default=0.0)
    late = [node.address for node in nodes if node.clock_off > CLOCKS_APART]
    found = f"{off:.0f} s off on {_some(late)}" if late else "no clock seen to be off"
    return Finding(
        "clocks",
        found,
        f"less than {CLOCKS_APART:.0f} s between nodes",
        not late,
        "Let NTP or chrony set the clocks: S3 refuses requests of another time.",
    )


def _token(config: DoctorJob, nodes: Sequence[Node]) -> Finding:
    """Whether strangers are kept out: each node's mode, and the Jobs API asked without a token."""
    expected = "RAY_AUTH_MODE=token on every node, and no entry without it"
    advice = (
        "Whoever reaches the cluster can run code on it. Make a token with `ray get-auth-token "
        "--generate`, copy it to every node, and start Ray there with RAY_AUTH_MODE=token."
    )
    if config.local:
        return Finding("token auth", "not needed by a session of this process", expected, True)
    without = [f"{node.auth} on {node.address}" for node in nodes if node.auth != "token"]
    reply = _jobs_api_without_token()
    shut = reply in (None, 401, 403)
    found = f"RAY_AUTH_MODE {_some(without)}" if without else "token on every node"
    if reply is not None:
        found += f", the Jobs API without it: {'refused' if shut else f'let in ({reply})'}"
    return Finding("token auth", found, expected, not without and shut, advice)


def _jobs_api_without_token() -> int | None:
    """Its HTTP status; None where there is no dashboard, or no answer from it."""
    url = ray._private.worker.get_dashboard_url()  # type: ignore[no-untyped-call]
    if not url:
        return None
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{url}/api/jobs/", timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


def _workspace_seen(nodes: Sequence[Node], config: DoctorJob) -> Finding:
    blind = [f"{n.store_trouble} on {n.address}" for n in nodes if n.store_trouble]
    found = _some(blind) if blind else f"{len(nodes)} of {len(nodes)} nodes read it"
    advice = (
        "Give each node the keys or the role, and AWS_ENDPOINT_URL, AWS_CA_BUNDLE and the proxy "
        "that this machine has."
        if "://" in config.workspace
        else "A local --workspace must be a disk that every node shares; or use s3://."
    )
    return Finding("workspace from nodes", found, "every node to read it", not blind, advice)


# What the jobs ask for.


def schedulable(config: DoctorJob, nodes: Sequence[Mapping[str, float]]) -> list[Finding]:
    """Whether each job's processes have a place at once.

    Args:
        config: what the jobs will be given.
        nodes: resources of each node.
    """
    extract, train, score = config.extract, config.train, config.recommend
    asks = (
        # Beside the actors, a task that reads and one that writes want a CPU each.
        ("extract", "actors", extract.actors, extract.cpus_per_actor, extract.gpus_per_actor, 2),
        ("train", "workers", train.workers, train.cpus_per_worker, int(train.use_gpu), 0),
        ("recommend", "actors", score.actors, score.cpus_per_actor, int(score.use_gpu), 0),
    )
    return [_placed(config, nodes, *ask) for ask in asks]


def _placed(
    config: DoctorJob,
    nodes: Sequence[Mapping[str, float]],
    job: str,
    key: str,
    given: int | None,
    cpus: int,
    gpus: int,
    beside: int,
) -> Finding:
    count = given or 1  # the jobs that choose by themselves do with one
    each = {"CPU": float(cpus), "GPU": float(gpus)}
    places = room(nodes, each)
    has = {name: sum(node.get(name, 0) for node in nodes) for name in each}
    enough = places >= count and has["CPU"] >= count * cpus + beside
    asked = f"{count} x {cpus} CPU" + (f" and {gpus} GPU" if gpus else "")
    asked += f" and {beside} CPU to feed them" if beside else ""
    total = f"{has['CPU']:g} CPU" + (f" and {has['GPU']:g} GPU" if gpus or has["GPU"] else "")
    found = f"{total} in all" + ("" if places >= count else f", room for {places} of {count}")
    if not enough and config.may_grow:
        return Finding(f"room to {job}", f"{found} until it grows", f"{asked} at once", None)
    return Finding(
        f"room to {job}",
        f"room for {asked}" if enough else found,
        f"{asked} at once, as --{job} asks for",
        enough,
        "The job would wait indefinitely. Ask for less with "
        f"--{job}.{key} and --{job}.cpus_per_{key[:-1]} (in the job itself --resources.{key}), "
        "add nodes, or pass --may_grow true where the cluster adds them by itself.",
    )


# Memory and disk.


def size_of(config: DoctorJob) -> Size | None:
    """How much data the run is for: as given, else as the workspace has it; None if unknown."""
    items, dim, interactions = config.items, config.feature_dim, config.users * PER_USER
    if not items or not dim:
        there = Store.at(config.resolve(None, "features"))
        try:
            manifest = read_manifest(there)
            items, dim = items or manifest.rows, dim or manifest.identity.dim
        except VisrecError:
            dim = dim or 1280
    if not interactions:
        interactions = _rows(config.resolve(None, "interactions.parquet"))
    if not items or not interactions:
        return None
    return Size(config.users or -(-interactions // PER_USER), items, interactions, dim)


def _rows(uri: str) -> int:
    """Rows of a Parquet table, estimated from a few of its files; 0 if unknown."""
    try:
        store, names = table_files(uri, "interactions.path")
        some = [name for name in names if name.endswith(".parquet")][:FOOTERS]
        rows = 0
        for name in some:
            with (
                translated("read", store.uri(name)),
                store.filesystem().open_input_file(f"{store.path}/{name}") as file,
            ):
                rows += pq.ParquetFile(file).metadata.num_rows
    except (VisrecError, ValueError):  # pyarrow's errors of a file that is none
        return 0
    return rows * len(names) // len(some) if some else 0


def _memory(
    config: DoctorJob, size: Size | None, nodes: Sequence[Mapping[str, float]]
) -> Iterator[Finding]:
    if size is None:
        expected = "users and items of the workspace, or --users and --items"
        yield Finding("memory", "no size to estimate it from", expected, None)
        return
    working = [node for node in nodes if node.get("CPU", 0) >= 1]
    stores = [node.get("object_store_memory", 0.0) for node in working]
    heaps = [node.get("memory", 0.0) for node in working]
    of = f"for {size.users:,} users, {size.items:,} items, D = {size.feature_dim}"
    yield _enough(
        "object store",
        min(stores, default=0.0),
        size.object_store,
        f"on the smallest node, {of}",
        "Start Ray with a larger --object-store-memory, and give containers as much --shm-size.",
    )
    yield _enough(
        "memory to prepare",
        max(heaps, default=0.0),
        size.preparing,
        f"on the largest node, {of}",
        "One task puts the data together: add one node with more memory.",
    )
    cpus = max(1, config.recommend.cpus_per_actor)
    most = config.recommend.actors or 64
    # By node: memory there, and scoring processes that will run there.
    loads = [(n.get("memory", 0.0), max(1, min(most, int(n["CPU"] // cpus)))) for n in working]
    heap, processes = min(loads, key=lambda load: load[0] / load[1], default=(0.0, 1))
    yield _enough(
        "memory to recommend",
        heap,
        processes * size.scoring,
        f"for {processes} processes on one node, {of}",
        "Fewer processes of more threads share it: raise --recommend.cpus_per_actor.",
    )


def _enough(name: str, found: float, needed: float, what: str, advice: str) -> Finding:
    fit = found >= needed
    has = _bytes(found) + (f", {_bytes(needed)} needed" if fit else "")
    return Finding(name, has, f"{_bytes(needed)} {what}", fit, advice)


def _session_disk(nodes: Sequence[Node]) -> Finding:
    full = [f"{n.disk_used:.0%} on {n.address}" for n in nodes if n.disk_used > DISK_FULL]
    least = min((node.disk_free for node in nodes), default=0)
    return Finding(
        "disk of Ray's session",
        f"full to {_some(full)}" if full else f"{_bytes(least)} free on the fullest node",
        f"less than {DISK_FULL:.0%} used, where Ray stops writing",
        not full,
        "Free some, or start Ray with --temp-dir on another disk.",
    )


def _workspace_disk(workspace: Store, size: Size | None) -> Finding:
    resolve = Path(workspace.root)
    while not resolve.exists():
        resolve = resolve.parent
    free = shutil.disk_usage(resolve).free
    needed = size.written if size else 1_000_000_000
    return Finding(
        "disk of the workspace",
        f"{_bytes(free)} free, {_bytes(needed)} needed",
        "as much for features and lists",
        free >= needed,
        "Free some, or point --workspace at another disk.",
    )


def _bytes(amount: float) -> str:
    return f"{amount / 1e9:,.1f} GB" if amount >= 1e8 else f"{amount / 1e6:,.1f} MB"


def _some(parts: Sequence[str]) -> str:
    more = len(parts) - 3
    return ", ".join(parts[:3]) + (f" and {more} more" if more > 0 else "")
