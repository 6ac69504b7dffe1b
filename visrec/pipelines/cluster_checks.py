"""Checks of a Ray cluster's nodes: answers, versions, clocks, token, access to the workspace."""

import importlib.metadata
import os
import platform
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from visrec.pipelines.capacity_checks import format_bytes
from visrec.storage.preflight import Finding, probe_error
from visrec.storage.store import Store

PACKAGES = ("ray", "torch", "pyarrow")  # processes exchange objects of these
MAX_CLOCK_SKEW_S = 60.0  # S3 refuses requests whose time is 15 minutes off
MAX_DISK_USE = 0.95  # above this Ray stops writing to a disk


class NodeAnswer(NamedTuple):
    """What a task on a node found there.

    Attributes:
        clock: its time, in Unix seconds.
        versions: the versions of Python and of the `PACKAGES`.
        auth_mode: its RAY_AUTH_MODE.
        disk_free: free bytes where Ray keeps its session.
        disk_use: used share of that disk.
        workspace_error: why it cannot read the workspace; empty if it can, or did not try.
    """

    clock: float
    versions: Mapping[str, str]
    auth_mode: str
    disk_free: int
    disk_use: float
    workspace_error: str


@dataclass(frozen=True)
class Node:
    """A node that answered.

    Attributes:
        address: its IP address.
        answer: what the task on it found.
        clock_skew: seconds by which its clock is off this machine's, at least.
    """

    address: str
    answer: NodeAnswer
    clock_skew: float


def ask_nodes(
    alive: Sequence[Mapping[str, Any]], scratch: Store | None, timeout_s: float
) -> tuple[list[Node], list[str]]:
    """Runs a task on every node.

    Args:
        alive: the entries of the living nodes in `ray.nodes()`.
        scratch: the folder whose probe file the nodes should read; None skips that check.
        timeout_s: seconds in which all nodes must answer.

    Returns:
        The nodes that answered, and the addresses of those that did not.
    """
    sent = time.time()
    tasks = {
        _examine_node.options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(node["ObjectStoreSocketName"], scratch): node
        for node in alive
    }
    waiting = list(tasks)
    deadline = time.monotonic() + timeout_s
    nodes, silent = [], []
    while waiting and (seconds_left := deadline - time.monotonic()) > 0:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=seconds_left)
        received = time.time()
        for ref in done:
            address = str(tasks[ref]["NodeManagerAddress"])
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayError as error:
                # The node lacks a package, or is going away.
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                silent.append(f"{address} ({type(cause).__name__})")
                continue
            # The node read its clock between our sending and our receiving.
            skew = max(sent - answer.clock, answer.clock - received, 0.0)
            nodes.append(Node(address, answer, skew))
    for ref in waiting:
        silent.append(str(tasks[ref]["NodeManagerAddress"]))
        ray.cancel(ref, force=True)
    return nodes, silent


@ray.remote(max_retries=0)
def _examine_node(socket: str, scratch: Store | None) -> NodeAnswer:
    clock = time.time()
    session = Path(socket).parents[1]
    disk = shutil.disk_usage(session)
    return NodeAnswer(
        clock=clock,
        versions=installed_versions(),
        auth_mode=os.environ.get("RAY_AUTH_MODE", "unset"),
        disk_free=disk.free,
        disk_use=disk.used / (disk.used + disk.free),
        workspace_error=probe_error(scratch) if scratch else "",
    )


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the `PACKAGES` in this process."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def check_answers(nodes: Sequence[Node], silent: Sequence[str], timeout_s: float) -> Finding:
    count = len(nodes) + len(silent)
    return Finding(
        "nodes",
        f"{len(nodes)} of {count} answer" + (f", not {_first_few(silent)}" if silent else ""),
        f"all within {timeout_s:g} s",
        not silent,
        "Look at these nodes' memory and logs, and at whether they have the same packages.",
    )


def check_versions(nodes: Sequence[Node]) -> Finding:
    here = installed_versions()
    different = [
        f"{name} {node.answer.versions[name]} on {node.address}"
        for node in nodes
        for name in here
        if node.answer.versions[name] != here[name]
    ]
    expected = ", ".join(f"{name} {version}" for name, version in here.items())
    return Finding(
        "versions",
        _first_few(different) if different else expected,
        f"{expected} everywhere",
        not different,
        "Install the same from requirements.lock on every node, or use one image for all.",
    )


def check_clocks(nodes: Sequence[Node]) -> Finding:
    skew = max((node.clock_skew for node in nodes), default=0.0)
    skewed = [node.address for node in nodes if node.clock_skew > MAX_CLOCK_SKEW_S]
    return Finding(
        "clocks",
        f"{skew:.0f} s off on {_first_few(skewed)}" if skewed else "no skew found",
        f"less than {MAX_CLOCK_SKEW_S:.0f} s between nodes",
        not skewed,
        "Set the clocks with NTP or chrony: S3 refuses requests with a wrong time.",
    )


def check_token(nodes: Sequence[Node], *, is_local: bool) -> Finding:
    """Whether the cluster requires a token: by each node's mode, and by asking without one."""
    expected = "RAY_AUTH_MODE=token on every node, and no access without it"
    advice = (
        "Whoever reaches the cluster can run code on it. Make a token with `ray get-auth-token "
        "--generate`, copy it to every node, and start Ray there with RAY_AUTH_MODE=token."
    )
    if is_local:
        return Finding("token auth", "not needed by a session of this process", expected, True)
    without = [
        f"{node.answer.auth_mode} on {node.address}"
        for node in nodes
        if node.answer.auth_mode != "token"
    ]
    status = _jobs_api_status_without_token()
    is_refused = status in (None, 401, 403)
    found = f"RAY_AUTH_MODE {_first_few(without)}" if without else "token on every node"
    if status is not None:
        outcome = "refused" if is_refused else f"let in ({status})"
        found += f", the Jobs API without it: {outcome}"
    return Finding("token auth", found, expected, not without and is_refused, advice)


def _jobs_api_status_without_token() -> int | None:
    """The HTTP status; None if there is no dashboard, or if it does not answer."""
    url = ray._private.worker.get_dashboard_url()  # type: ignore[no-untyped-call]
    if not url:
        return None
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{url}/api/jobs/", timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


def check_workspace_access(nodes: Sequence[Node], *, on_s3: bool) -> Finding:
    """Whether every node can read the workspace."""
    failing = [
        f"{node.answer.workspace_error} on {node.address}"
        for node in nodes
        if node.answer.workspace_error
    ]
    found = _first_few(failing) if failing else f"{len(nodes)} of {len(nodes)} nodes read it"
    advice = (
        "Give each node the keys or the role, and AWS_ENDPOINT_URL, AWS_CA_BUNDLE and the proxy "
        "that this machine has."
        if on_s3
        else "A local --workspace must be a disk that every node shares; or use s3://."
    )
    return Finding("workspace from nodes", found, "every node to read it", not failing, advice)


def check_session_disk(nodes: Sequence[Node]) -> Finding:
    full = [
        f"{node.answer.disk_use:.0%} on {node.address}"
        for node in nodes
        if node.answer.disk_use > MAX_DISK_USE
    ]
    least = min((node.answer.disk_free for node in nodes), default=0)
    free = f"{format_bytes(least)} free on the fullest node"
    return Finding(
        "disk of Ray's session",
        f"full to {_first_few(full)}" if full else free,
        f"less than {MAX_DISK_USE:.0%} used, where Ray stops writing",
        not full,
        "Free some space, or start Ray with --temp-dir on another disk.",
    )


def _first_few(parts: Sequence[str]) -> str:
    """The first three parts, and how many more there are."""
    more = len(parts) - 3
    return ", ".join(parts[:3]) + (f" and {more} more" if more > 0 else "")
