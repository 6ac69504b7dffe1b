"""Real servers that a shop reads lists from, each with its own port, data and password.

PostgreSQL and Redis come from the system (apt-get install postgresql redis-server), dynalite, an
implementation of DynamoDB, from npm (npm install --prefix .cache dynalite). `.ci/run` installs all.
Where one is absent, `ServerError` says so.
"""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import psycopg
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.servers import REGION, ServerError, free_ports, spawn, wait_until

CHECKOUT = Path(__file__).parents[1]
_DYNALITE = CHECKOUT / ".cache" / "node_modules" / "dynalite" / "cli.js"
_USER = "visrec"
_SECONDS = 20  # in which a server must answer; each takes about one


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        url: where it is, as `--to` takes it, without the password.
        private_url: the same with the password, where it has one.
        password: the password of the user in the URL.
        env: variables with which its clients find it; without the password.
    """

    url: str
    private_url: str
    password: str
    env: Mapping[str, str]


@contextmanager
def postgres() -> Iterator[Server]:
    """PostgreSQL with one user, who must give the password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        raise ServerError("PostgreSQL is not installed: apt-get install postgresql.")
    with _directory("postgres") as directory:
        password, port = secrets.token_hex(16), free_ports(1)[0]
        (directory / "password").write_text(password)
        data, as_postgres = directory / "data", _as_postgres(directory)
        initdb = [str(programs[-1] / "initdb"), f"--pgdata={data}", f"--username={_USER}"]
        initdb += [f"--pwfile={directory / 'password'}", "--auth=scram-sha-256", "--no-sync"]
        initdb += ["--encoding=UTF8", "--no-locale"]
        subprocess.run([*as_postgres, *initdb], check=True, capture_output=True, cwd=directory)
        command = [str(programs[-1] / "postgres"), "-D", str(data), "-p", str(port)]
        for setting in ("listen_addresses=127.0.0.1", f"unix_socket_directories={directory}"):
            command += ["-c", setting]
        command += ["-c", "fsync=off", "-c", "shared_buffers=32MB"]
        url = f"postgresql://{_USER}@127.0.0.1:{port}/postgres"

        def answers() -> bool:
            try:
                psycopg.connect(url, password=password, connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        with _running([*as_postgres, *command], directory, answers):
            try:
                yield Server(url, url.replace("@", f":{password}@"), password, {})
            finally:  # if it is killed, its shared memory stays
                pid = int((data / "postmaster.pid").read_text().split()[0])
                os.kill(pid, signal.SIGINT)
                while (data / "postmaster.pid").exists():
                    time.sleep(0.01)


@contextmanager
def redis_server(*, cluster: bool = False) -> Iterator[Server]:
    """Redis with a password; as a cluster of one node, all of whose slots it has."""
    program = shutil.which("redis-server")
    if program is None:
        raise ServerError("Redis is not installed: apt-get install redis-server.")
    with _directory("redis") as directory:
        password, port = secrets.token_hex(16), free_ports(1)[0]
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--requirepass", password, "--dir", str(directory)]
        command += ["--cluster-enabled", "yes"] if cluster else []
        client = redis.Redis(port=port, password=password)

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        with _running(command, directory, answers):
            if cluster:
                client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
                while client.cluster("info")["cluster_state"] != "ok":
                    pass
            at = f"127.0.0.1:{port}/0"
            yield Server(f"redis://{at}", f"redis://:{password}@{at}", password, {})


@contextmanager
def dynalite() -> Iterator[Server]:
    """dynalite, which accepts any keys."""
    node = shutil.which("node")
    if node is None or not _DYNALITE.exists():
        raise ServerError("dynalite is not installed: npm install --prefix .cache dynalite.")
    with _directory("dynalite") as directory:
        port = free_ports(1)[0]
        command = [node, str(_DYNALITE), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--createTableMs", "0", "--deleteTableMs", "0"]
        env = {
            "AWS_ENDPOINT_URL_DYNAMODB": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "visrec",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": REGION,
        }
        client = dynamodb_client(env)

        def answers() -> bool:
            try:
                client.list_tables()
            except (BotoCoreError, ClientError):
                return False
            return True

        with _running(command, directory, answers):
            url = "dynamodb://visrec"
            yield Server(url, url, env["AWS_SECRET_ACCESS_KEY"], env)


def dynamodb_client(env: Mapping[str, str]) -> "boto3.client":
    """A client that ignores the environment.

    It tries three times: a server closes connections that were idle for some seconds.
    """
    return boto3.client(
        "dynamodb",
        endpoint_url=env["AWS_ENDPOINT_URL_DYNAMODB"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name=REGION,
        config=Config(retries={"total_max_attempts": 3}, connect_timeout=2, read_timeout=10),
    )


@contextmanager
def _directory(name: str) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix=f"visrec-{name}-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _running(
    command: Sequence[str], directory: Path, answers: Callable[[], bool]
) -> Iterator[None]:
    """A process that dies with this one."""
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory)}
    process = spawn(list(command), directory, env)
    try:
        wait_until(answers, process, directory / "log", _SECONDS)
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _as_postgres(directory: Path) -> list[str]:
    """What runs a command as another user, as whom the directory is: PostgreSQL refuses root."""
    if os.getuid() != 0:
        return []
    shutil.chown(directory, "postgres")
    shutil.chown(directory / "password", "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
