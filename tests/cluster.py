"""A real Ray cluster for tests, with token authentication, of one node or more on this machine.

Like the S3 server of `tests.servers` it touches nothing outside its temporary directory, ends only
processes that it started, and ends by itself when the process that holds it dies.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.servers import ServerError, free_ports, program, spawn, wait_until

_NO_WORK = (b"ray::IDLE", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")  # as Ray calls them


class TokenCluster:
    """A Ray cluster of one node on loopback that wants a token, as in production.

    Clients get its address and token from `env()`:
    `subprocess.run([program("ray"), "job", "submit", ...], env={**os.environ, **cluster.env()})`.

    Args:
        num_cpus: CPUs that the node offers.
        env: Variables for the node and so for every job on it, such as `SeaweedFS.env()`.
    """

    def __init__(self, num_cpus: int = 4, env: Mapping[str, str] | None = None) -> None:
        self._ray = program("ray")
        self._num_cpus = num_cpus
        self._extra_env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the head node and wait until its Jobs API answers."""
        # Ray makes Unix sockets below it, whose paths may have 107 characters: keep it short.
        self.directory = Path(tempfile.mkdtemp(prefix="vr-", dir="/tmp"))
        self.token_path = self.directory / "token"
        self.token_path.write_text(secrets.token_hex(32))
        self.token_path.chmod(0o600)
        for attempts_left in (2, 1, 0):
            try:
                self._start_once()
                return
            except ServerError:
                self._kill()
                if not attempts_left:
                    self.stop()
                    raise

    def stop(self) -> None:
        """Kill every process of this cluster, and no other, and delete its files.

        Not by `ray stop`, which ends every Ray process of the machine.
        """
        self._kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def add_node(self) -> str:
        """Start another node of as many CPUs on this machine; returns its mark for `kill_node`."""
        for attempts_left in (2, 1, 0):  # Ray gives a node 30 s, which a busy machine may miss
            mark = uuid.uuid4().hex
            try:
                self._add_node_once(mark)
                break
            except ServerError:
                self.kill_node(mark)
                if not attempts_left:
                    raise
        return mark

    def _add_node_once(self, mark: str) -> None:
        command = [
            *(self._ray, "start", f"--address=127.0.0.1:{self._port}", "--block"),
            *(f"--num-cpus={self._num_cpus}", "--node-ip-address=127.0.0.1"),
            *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
            # A folder of its own, as a machine has: a node that leaves takes its code away.
            *(f"--temp-dir={self.directory / mark[:4]}", f"--object-store-memory={256 * 2**20}"),
        ]
        env = {**self._server_env(free_ports(2)), "VISREC_TEST_NODE": mark}
        before = self._alive()  # with those that were killed and are not missed yet
        self._others.append(spawn(command, self.directory, env))
        wait_until(
            lambda: bool(self._alive() - before), self._others[-1], self.directory / "log", 60
        )

    def workers_of(self, mark: str) -> int:
        """How many processes of a node are at work on something."""
        mine = self._processes(f"VISREC_TEST_NODE={mark}")
        names = [Path(f"/proc/{pid}/cmdline") for pid in mine]
        working = 0
        for name in names:
            with contextlib.suppress(OSError):
                said = name.read_bytes()
                working += said.startswith(b"ray::") and not said.startswith(_NO_WORK)
        return working

    def kill_node(self, mark: str) -> None:
        """Kill every process of a node at once, as when its machine is taken away."""
        deadline = time.monotonic() + 30
        while (alive := self._processes(f"VISREC_TEST_NODE={mark}")) and (
            time.monotonic() < deadline
        ):
            _kill_all(alive)

    def _alive(self) -> set[str]:
        """Nodes that the cluster counts as its own."""
        reply = self._ask("/api/v0/nodes")
        nodes = reply["data"]["result"]["result"] if reply else []
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}

    def env(self) -> dict[str, str]:
        """The variables by which `ray job submit` finds this cluster and is let in."""
        return {
            "RAY_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            # An inherited one would go before the file; an empty one counts as absent.
            "RAY_AUTH_TOKEN": "",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
        }

    def _start_once(self) -> None:
        port, dashboard, client, agent, *metrics = free_ports(6)
        self._port = port
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        command = [
            *(self._ray, "start", "--head", "--block", "--disable-usage-stats"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
            # These have fixed defaults, on which clusters of one machine would collide; 0 is any.
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *("--min-worker-port=0", "--max-worker-port=0"),
            *(f"--num-cpus={self._num_cpus}", "--node-ip-address=127.0.0.1"),
            *(f"--temp-dir={self.directory}", f"--object-store-memory={256 * 2**20}"),
        ]
        self._process = spawn(command, self.directory, self._server_env(metrics))
        wait_until(self._answers, self._process, self.directory / "log", seconds=90)

    def _server_env(self, metrics: list[int]) -> dict[str, str]:
        # A cluster this process may be part of must not reach the new one.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return {
            **inherited,
            **self._extra_env,
            "HOME": str(self.directory),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "AUTOSCALER_METRIC_PORT": str(metrics[0]),
            "DASHBOARD_METRIC_PORT": str(metrics[1]),
            # By this mark `_processes` knows its own, whatever sessions they open.
            "VISREC_TEST_CLUSTER": str(self.directory),
        }

    def _answers(self) -> bool:
        """Whether it takes a job: its agent comes up some time after the Jobs API."""
        return self._ask("/api/jobs/", {"entrypoint": "true"}) is not None

    def _ask(self, path: str, posted: Mapping[str, Any] | None = None) -> Any:
        """What the dashboard replies, None where it does not or refuses."""
        data = None if posted is None else json.dumps(posted).encode()
        request = urllib.request.Request(f"{self.dashboard}{path}", data=data)
        request.add_header("Authorization", f"Bearer {self.token_path.read_text()}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return json.load(reply)
        except OSError:  # URLError is one
            return None

    def _processes(self, given: str | None = None) -> list[int]:
        """Processes in the session started by `spawn` or carrying the cluster's mark, or those
        with another mark."""
        mark = f"{given or f'VISREC_TEST_CLUSTER={self.directory}'}\0".encode()
        leader = self._process.pid if self._process and given is None else -1
        mine = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _belongs(entry, leader, mark):
                mine.append(int(entry.name))
        return mine

    def _kill(self) -> None:
        # Again until none is left: one that is being killed may just have started another.
        deadline = time.monotonic() + 30
        while (alive := self._processes()) and time.monotonic() < deadline:
            _kill_all(alive)
            for process in (self._process, *self._others):
                if process is not None:
                    process.poll()  # reaps the guard
        for process in (self._process, *self._others):
            if process is not None and process.stdin is not None:
                process.stdin.close()
        self._process, self._others = None, []


def _kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.05)


def _belongs(entry: Path, session: int, mark: bytes) -> bool:
    """Whether a living process is of this session or has this mark in its environment."""
    try:
        # The name, in parentheses, may contain anything: state and numbers follow the last one.
        state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        marked = mark in (entry / "environ").read_bytes()
    except (OSError, ValueError):
        return False
    return state not in "ZX" and (int(its_session) == session or marked)
