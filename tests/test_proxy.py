"""The fault proxy: it forwards requests unchanged, and injects the faults that rules ask for."""

import random
from collections.abc import Iterator
from typing import Any

import boto3
import pyarrow.fs as pafs
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError

from tests.proxy import FaultKind, FaultProxy, FaultRule
from tests.servers import SeaweedFS, free_ports

pytestmark = [pytest.mark.s3, pytest.mark.chaos]


@pytest.fixture
def proxy(s3: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint, seed=7) as found:
        yield found


@pytest.fixture
def bucket(s3_env: str) -> str:
    return s3_env.removeprefix("s3://")


def through(proxy: FaultProxy, attempts: int = 1) -> Any:
    """A client of the proxy, with the credentials of `s3_env`, without retries by default."""
    config = Config(retries={"total_max_attempts": attempts}, connect_timeout=5, read_timeout=20)
    return boto3.Session().client("s3", endpoint_url=proxy.endpoint, config=config)


def stored(s3: SeaweedFS, bucket: str) -> dict[str, bytes]:
    """The objects on the server, read without the proxy."""
    client = s3.client()
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def test_forwarded_requests_are_unchanged(proxy: FaultProxy, s3: SeaweedFS, bucket: str) -> None:
    client = through(proxy)
    contents = {
        "empty": b"",
        "a folder/übergröße 50%+.bin": b"\x00\r\n\r\nbytes",
        "large": random.Random(0).randbytes(3_000_000),
    }
    for key, data in contents.items():
        client.put_object(Bucket=bucket, Key=key, Body=data)
        assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == len(data)
        assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == data
    assert stored(s3, bucket) == contents
    client.delete_object(Bucket=bucket, Key="empty")
    listed = client.list_objects_v2(Bucket=bucket)["Contents"]
    assert {entry["Key"] for entry in listed} == contents.keys() - {"empty"}
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="large", Body=b"", IfNoneMatch="*")
    assert not proxy.injected


def test_pyarrow_uploads_are_forwarded(proxy: FaultProxy, s3: SeaweedFS, bucket: str) -> None:
    files = pafs.S3FileSystem(
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        endpoint_override=proxy.endpoint.removeprefix("http://"),
        scheme="http",
        region=s3.region,
    )
    data = random.Random(1).randbytes(12_000_000)  # more than one part of a multipart upload
    with files.open_output_stream(f"{bucket}/streamed") as sink:
        sink.write(data)
    with files.open_input_file(f"{bucket}/streamed") as source:
        assert source.read() == data
    assert stored(s3, bucket) == {"streamed": data}


@pytest.mark.parametrize(
    ("kind", "arrives"), [("drop_before", False), ("reply_dropped", True), ("reset_in_body", False)]
)
def test_broken_connection_is_an_error_for_the_client_alone(
    proxy: FaultProxy, s3: SeaweedFS, bucket: str, kind: FaultKind, arrives: bool
) -> None:
    proxy.add(FaultRule(kind, method="PUT", key="x"))
    with pytest.raises(BotoCoreError) as caught:
        through(proxy).put_object(Bucket=bucket, Key="x", Body=b"data" * 50_000)
    assert kind == "reset_in_body" or isinstance(caught.value, ConnectionClosedError)
    assert stored(s3, bucket) == ({"x": b"data" * 50_000} if arrives else {})
    assert proxy.injected == {kind: 1}


def test_status_503_comes_from_the_proxy(proxy: FaultProxy, s3: SeaweedFS, bucket: str) -> None:
    proxy.add(FaultRule("status_503", key="x", times=2))
    client = through(proxy)
    for _ in range(2):
        with pytest.raises(ClientError, match="SlowDown"):
            client.put_object(Bucket=bucket, Key="x", Body=b"data")
    assert stored(s3, bucket) == {}
    client.put_object(Bucket=bucket, Key="x", Body=b"data")
    assert stored(s3, bucket) == {"x": b"data"}
    assert proxy.injected == {"status_503": 2}


@pytest.mark.parametrize("kind", ["drop_before", "reply_dropped", "reset_in_body", "status_503"])
def test_client_with_retries_succeeds(
    proxy: FaultProxy, s3: SeaweedFS, bucket: str, kind: FaultKind
) -> None:
    proxy.add(FaultRule(kind, times=1))
    through(proxy, attempts=3).put_object(Bucket=bucket, Key="x", Body=b"data")
    assert stored(s3, bucket) == {"x": b"data"}
    assert proxy.injected == {kind: 1}


def test_delay_changes_nothing_else(proxy: FaultProxy, s3: SeaweedFS, bucket: str) -> None:
    proxy.add(FaultRule("delay", times=None, seconds=0.05))
    through(proxy).put_object(Bucket=bucket, Key="x", Body=b"data")
    assert stored(s3, bucket) == {"x": b"data"}
    assert proxy.injected["delay"] >= 1


def test_rules_match_by_method_key_and_count(proxy: FaultProxy, bucket: str) -> None:
    proxy.add(FaultRule("status_503", method="GET", key="b c", skip=1, times=1))
    client = through(proxy)
    for key in ("a", "b c"):
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    failed = []
    for key in ("b c", "a", "b c", "b c"):
        try:
            assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
            failed.append(False)
        except ClientError:
            failed.append(True)
    assert failed == [False, False, True, False]
    proxy.add(FaultRule("status_503", times=None))
    proxy.clear()
    client.head_object(Bucket=bucket, Key="a")


def test_share_is_drawn_with_the_seed(s3: SeaweedFS, bucket: str) -> None:
    def failed_requests(seed: int) -> list[int]:
        with FaultProxy(s3.endpoint, seed) as proxy:
            proxy.add(FaultRule("status_503", times=None, share=0.3))
            client = through(proxy)
            failed = []
            for number in range(40):
                try:
                    client.list_objects_v2(Bucket=bucket, Prefix=str(number))
                except ClientError:
                    failed.append(number)
            assert proxy.injected == {"status_503": len(failed)}
            assert proxy.forwarded == 40 - len(failed)
            return failed

    first = failed_requests(1)
    assert 4 <= len(first) <= 20
    assert failed_requests(1) == first
    assert failed_requests(2) != first


def test_missing_server_is_a_closed_connection(bucket: str) -> None:
    with FaultProxy(f"http://127.0.0.1:{free_ports(1)[0]}") as proxy:
        with pytest.raises(ConnectionClosedError):
            through(proxy).list_objects_v2(Bucket=bucket)
        assert not proxy.injected
