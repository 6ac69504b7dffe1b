"""The test servers that the other tests rely on."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from tests import servers
from tests.cluster import TokenCluster
from tests.servers import SeaweedFS, ServerError

CHECKOUT = Path(__file__).parents[1]


def test_missing_program_is_named() -> None:
    with pytest.raises(ServerError, match="'no-such-program' is neither in"):
        servers.program("no-such-program")


def test_free_ports_have_free_partners() -> None:
    ports = servers.free_ports(20)
    assert len(set(ports)) == 20
    assert all(servers.is_free(port) and servers.is_free(port + 10_000) for port in ports)


def test_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    process = servers.spawn(["sh", "-c", "echo no such disk; exit 1"], tmp_path, os.environ)
    with pytest.raises(ServerError, match=r"ended(.|\n)*no such disk"):
        servers.wait_until(lambda: False, process, tmp_path / "log", seconds=10)


def test_spawned_server_dies_with_its_parent(tmp_path: Path) -> None:
    process = servers.spawn(["sleep", "600"], tmp_path, os.environ)
    assert process.stdin is not None
    process.stdin.close()  # as happens when this process dies
    assert process.wait(timeout=10) == -9


@pytest.mark.s3
def test_s3_env_is_a_fresh_writable_bucket(s3_env: str) -> None:
    client = boto3.Session().client("s3")  # from the environment alone
    bucket = s3_env.removeprefix("s3://")
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    client.put_object(Bucket=bucket, Key="a", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="a", Body=b"2", IfNoneMatch="*")


@pytest.mark.s3
def test_readonly_identity_reads_and_does_not_write(
    s3: SeaweedFS, s3_env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_env.removeprefix("s3://")
    s3.client().put_object(Bucket=bucket, Key="a", Body=b"1")
    for name, value in s3.readonly_env().items():
        monkeypatch.setenv(name, value)
    reader = boto3.Session().client("s3")
    assert reader.get_object(Bucket=bucket, Key="a")["Body"].read() == b"1"
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put_object(Bucket=bucket, Key="b", Body=b"2")


@pytest.mark.s3
def test_wrong_key_is_refused(s3: SeaweedFS, s3_env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" + s3.secret_key)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        boto3.Session().client("s3").list_objects_v2(Bucket=s3_env.removeprefix("s3://"))


@pytest.mark.s3
@pytest.mark.chaos
def test_objects_survive_a_kill() -> None:
    with SeaweedFS() as server:
        client = server.client()
        client.create_bucket(Bucket="kept")
        client.put_object(Bucket="kept", Key="a", Body=b"1")
        server.kill9()
        assert servers.is_free(server.port)
        server.restart()
        assert client.get_object(Bucket="kept", Key="a")["Body"].read() == b"1"
        directory = server.directory
    assert not directory.exists()
    assert servers.is_free(server.port)


@pytest.fixture
def served_by_hand() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.servers", "--bucket", "by-hand"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.s3
def test_server_by_hand_prints_its_environment(served_by_hand: subprocess.Popen[str]) -> None:
    assert served_by_hand.stdout is not None
    lines = [served_by_hand.stdout.readline() for _ in range(5)]
    env = dict(shlex.split(line)[1].split("=", 1) for line in lines[:4])
    client = boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name=env["AWS_DEFAULT_REGION"],
    )
    assert "s3://by-hand" in lines[4]
    assert client.list_objects_v2(Bucket="by-hand")["KeyCount"] == 0
    served_by_hand.send_signal(signal.SIGINT)
    assert served_by_hand.wait(timeout=10) == 0


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("ray_cluster")
def test_ray_workers_see_the_s3_server_and_the_project(s3_env: str) -> None:
    import ray

    @ray.remote
    def keys(bucket: str) -> list[str]:
        import jobs  # noqa: F401
        import tests.servers
        import visrec  # noqa: F401

        client = boto3.Session().client("s3")
        client.put_object(Bucket=bucket, Key="from-a-worker", Body=tests.servers.REGION.encode())
        return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]]

    assert ray.get(keys.remote(s3_env.removeprefix("s3://"))) == ["from-a-worker"]


@pytest.fixture(scope="module")
def token_cluster() -> Iterator[TokenCluster]:
    with TokenCluster(env={"FOR_JOBS": "seen"}) as cluster:
        yield cluster


def submit(env: Mapping[str, str], code: str) -> subprocess.CompletedProcess[str]:
    command = [servers.program("ray"), "job", "submit", "--", "python", "-c", code]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.mark.ray
def test_job_with_the_token_runs(token_cluster: TokenCluster, tmp_path: Path) -> None:
    result = tmp_path / "result"
    code = f"import os; open({str(result)!r}, 'w').write(os.environ['FOR_JOBS'])"
    done = submit(token_cluster.env(), code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert result.read_text() == "seen"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64}, "Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
    ],
    ids=["wrong token", "no token"],
)
def test_job_without_the_right_token_is_refused(
    token_cluster: TokenCluster, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    result = tmp_path / "result"
    done = submit({**token_cluster.env(), **change}, f"open({str(result)!r}, 'w')")
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert not result.exists()


@pytest.mark.ray
@pytest.mark.chaos
def test_cluster_stops_completely_and_no_other_with_it(token_cluster: TokenCluster) -> None:
    with TokenCluster(num_cpus=1) as other:
        command = [servers.program("ray"), "job", "submit", "--no-wait", "--", "sleep", "600"]
        subprocess.run(command, env={**os.environ, **other.env()}, check=True, capture_output=True)
        assert len(other._processes()) > 5
    assert other._processes() == []
    assert not other.directory.exists()
    assert token_cluster._answers()
