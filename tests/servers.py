"""A real S3 server for tests, with its own loopback ports and data, and helpers to run servers.

`SeaweedFS` is a context manager. It touches nothing outside its temporary directory, kills only
processes that it started, and dies with the process that started it.

To try the S3 commands of the README by hand:

    python -m tests.servers --bucket gallery
"""

import argparse
import json
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

REGION = "us-east-1"
# Runs a command and kills its process group when the command ends or when standard input closes,
# which also happens when the process at the other end is killed.
GUARD = '{ "$@" </dev/null; kill -9 0; } & read -r _; kill -9 0'


class ServerError(RuntimeError):
    """A test server is not installed or did not start."""


def program(name: str) -> str:
    """The path of a program that is installed beside this Python or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServerError(
            f"The program '{name}' is neither in {beside.parent} nor on PATH. "
            "Install the test dependencies: pip install -e '.[dev]'."
        )
    return found


def is_free(port: int) -> bool:
    """Whether a TCP port of the loopback interface can be bound."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Free ports whose partner, 10,000 higher, is free too; SeaweedFS uses it for gRPC.

    Both are below 32,768, where Linux's ports for outgoing connections start. They are drawn at
    random, since several test sessions may choose at the same time.
    """
    chosen: list[int] = []
    for port in random.SystemRandom().sample(range(11_000, 22_700), 2_000):
        if is_free(port) and is_free(port + 10_000):
            chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise ServerError(f"No {count} free ports between 11,000 and 22,700.")


def spawn(command: list[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command in a session of its own that dies with this process; logs to `cwd`/log."""
    with (cwd / "log").open("ab") as log:
        return subprocess.Popen(
            ["sh", "-c", GUARD, "guard", *command],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float
) -> None:
    """Waits until `ready()`.

    Raises:
        ServerError: the process ended or time ran out; shows the end of the log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            state = "ended" if ended else f"was not ready after {seconds:.0f} s"
            tail = log.read_text(errors="replace")[-2000:]
            raise ServerError(f"The server {state}. End of its log:\n{tail}")
        time.sleep(0.1)


class SeaweedFS:
    """An S3 server on loopback: `with SeaweedFS() as server: server.client().list_buckets()`.

    Args:
        port: the port of the S3 endpoint; a free one by default.
    """

    region = REGION

    def __init__(self, port: int | None = None) -> None:
        self._weed = program("weed")
        self._wanted_port = port
        self._process: subprocess.Popen[bytes] | None = None
        self.access_key, self.secret_key = "visrec", secrets.token_hex(16)
        self.readonly_access_key, self.readonly_secret_key = "reader", secrets.token_hex(16)

    @property
    def endpoint(self) -> str:
        """The URL of the S3 service."""
        return f"http://127.0.0.1:{self.port}"

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
        """Starts with an empty store and waits until an object can be written."""
        self.directory = Path(tempfile.mkdtemp(prefix="visrec-s3-"))
        (self.directory / "data").mkdir()
        (self.directory / "s3.json").write_text(json.dumps(self._identities()))
        # Another process may take a port between its choice and its use: then choose again.
        for attempts_left in (2, 1, 0):
            self._ports = free_ports(4)
            self.port = self._wanted_port or self._ports[3]
            try:
                self.restart()
                return
            except ServerError:
                if not attempts_left:
                    self.stop()
                    raise

    def restart(self) -> None:
        """Starts again with the same ports and data, and waits until an object can be written."""
        self.kill9()
        # By default the first write to a bucket creates seven volumes: with 60 buckets a restart
        # took 18 s. The server does not inherit this process's environment with keys and proxies.
        env = {"HOME": str(self.directory), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        env["PATH"] = os.environ.get("PATH", os.defpath)
        self._process = spawn(self._command(), self.directory, env)
        wait_until(self._writable, self._process, self.directory / "log", seconds=30)

    def kill9(self) -> None:
        """Kills the server like a crash; keeps data and ports for `restart`."""
        if self._process is None:
            return
        # The process group is the server and its guard. SIGTERM would take 15 s.
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        # The process that ended is the guard; the server is gone when its ports are free.
        deadline = time.monotonic() + 5
        while not all(map(is_free, self._all_ports())) and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        """Kills the server and deletes its data."""
        self.kill9()
        shutil.rmtree(self.directory, ignore_errors=True)
        for port in self._all_ports():  # sockets whose path is not configurable
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                socket_file.unlink(missing_ok=True)

    def env(self) -> dict[str, str]:
        """The environment of a client with all permissions."""
        return self._env(self.access_key, self.secret_key)

    def readonly_env(self) -> dict[str, str]:
        """The environment of a client that may only read and list."""
        return self._env(self.readonly_access_key, self.readonly_secret_key)

    def client(self) -> Any:
        """A boto3 client with all permissions, which ignores the environment."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )

    def _all_ports(self) -> list[int]:
        http = (*self._ports[:3], self.port)
        return [port + above for port in http for above in (0, 10_000)]

    def _env(self, access_key: str, secret_key: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    def _identities(self) -> dict[str, Any]:
        def identity(name: str, access: str, secret: str, actions: list[str]) -> dict[str, Any]:
            keys = [{"accessKey": access, "secretKey": secret}]
            return {"name": name, "credentials": keys, "actions": actions}

        every = ["Admin", "Read", "Write", "List", "Tagging"]
        return {
            "identities": [
                identity("admin", self.access_key, self.secret_key, every),
                identity(
                    "reader", self.readonly_access_key, self.readonly_secret_key, ["Read", "List"]
                ),
            ]
        }

    def _command(self) -> list[str]:
        master, volume, filer, _ = self._ports
        directory = self.directory
        return [
            *(self._weed, "-logtostderr=true", "server", f"-dir={directory / 'data'}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
            # The automatic limit, free disk over volume size, would limit the number of buckets,
            # although their volumes are small files.
            *("-master.volumeSizeLimitMB=256", "-volume.max=10000", "-volume.minFreeSpace=1GiB"),
            *("-master.telemetry=false", "-volume.preStopSeconds=0"),
            # The defaults are meant for real networks: a restart would take over 10 s.
            *("-master.electionTimeout=1s", "-master.heartbeatInterval=200ms"),
            *("-filer", f"-filer.localSocket={directory / 'filer.sock'}"),
            *("-s3", f"-s3.port={self.port}", f"-s3.config={directory / 's3.json'}"),
            *(f"-s3.localSocket={directory / 's3.sock'}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        ]

    def _writable(self) -> bool:
        """Whether a bucket can be created and an object written to it."""
        client = self.client()
        try:
            existing = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
            if "visrec-ready" not in existing:
                client.create_bucket(Bucket="visrec-ready")
            client.put_object(Bucket="visrec-ready", Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError):
            return False
        return True


def main() -> None:
    """Serves S3 until Ctrl-C and prints how to reach the server."""
    parser = argparse.ArgumentParser(
        description="A local S3 server for trying visrec with s3:// paths."
    )
    parser.add_argument("--port", type=int, help="port of the S3 endpoint; a free one by default")
    parser.add_argument(
        "--bucket", default="visrec", help="bucket to create (default: %(default)s)"
    )
    arguments = parser.parse_args()
    # SIGINT too: a process in the background of a script ignores it by default.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    with SeaweedFS(port=arguments.port) as server:
        server.client().create_bucket(Bucket=arguments.bucket)
        for name, value in server.env().items():
            print(f"export {name}={shlex.quote(value)}")  # noqa: T201
        print(  # noqa: T201
            f"# s3://{arguments.bucket} is empty and lives until Ctrl-C. "
            "Paste the lines above into another terminal.",
            flush=True,
        )
        signal.pause()


if __name__ == "__main__":
    main()
