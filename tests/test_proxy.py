"""The fault proxy: what it passes on is whole, what it breaks is broken as it was asked to."""

import random
from collections.abc import Iterator
from typing import Any

import boto3
import pyarrow.fs as pafs
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError

from tests.proxy import FaultProxy, Kind, Rule
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
    """A client of the proxy, with the keys of `s3_env`, which does not try again by itself."""
    config = Config(retries={"total_max_attempts": attempts}, connect_timeout=5, read_timeout=20)
    return boto3.Session().client("s3", endpoint_url=proxy.endpoint, config=config)


def stored(s3: SeaweedFS, bucket: str) -> dict[str, bytes]:
    """What the server has, seen without the proxy."""
    client = s3.client()
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def test_what_is_passed_on_is_whole(proxy: FaultProxy, s3: SeaweedFS, bucket: str) -> None:
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


def test_pyarrow_streams_through_it(proxy: FaultProxy, s3: SeaweedFS, bucket: str) -> None:
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
def test_a_broken_connection_is_an_error_and_the_server_knows_what_was_asked(
    proxy: FaultProxy, s3: SeaweedFS, bucket: str, kind: Kind, arrives: bool
) -> None:
    proxy.add(Rule(kind, method="PUT", key="x"))
    with pytest.raises(BotoCoreError) as caught:
        through(proxy).put_object(Bucket=bucket, Key="x", Body=b"data" * 50_000)
    assert kind == "reset_in_body" or isinstance(caught.value, ConnectionClosedError)
    assert stored(s3, bucket) == ({"x": b"data" * 50_000} if arrives else {})
    assert proxy.injected == {kind: 1}


def test_a_busy_answer_reaches_the_client_and_not_the_server(
    proxy: FaultProxy, s3: SeaweedFS, bucket: str
) -> None:
    proxy.add(Rule("status_503", key="x", times=2))
    client = through(proxy)
    for _ in range(2):
        with pytest.raises(ClientError, match="SlowDown"):
            client.put_object(Bucket=bucket, Key="x", Body=b"data")
    assert stored(s3, bucket) == {}
    client.put_object(Bucket=bucket, Key="x", Body=b"data")
    assert stored(s3, bucket) == {"x": b"data"}
    assert proxy.injected == {"status_503": 2}


@pytest.mark.parametrize("kind", ["drop_before", "reply_dropped", "reset_in_body", "status_503"])
def test_a_client_that_tries_again_gets_through(
    proxy: FaultProxy, s3: SeaweedFS, bucket: str, kind: Kind
) -> None:
    proxy.add(Rule(kind, times=1))
    through(proxy, attempts=3).put_object(Bucket=bucket, Key="x", Body=b"data")
    assert stored(s3, bucket) == {"x": b"data"}
    assert proxy.injected == {kind: 1}


def test_a_delay_changes_nothing_else(proxy: FaultProxy, s3: SeaweedFS, bucket: str) -> None:
    proxy.add(Rule("delay", times=None, seconds=0.05))
    through(proxy).put_object(Bucket=bucket, Key="x", Body=b"data")
    assert stored(s3, bucket) == {"x": b"data"}
    assert proxy.injected["delay"] >= 1


def test_rules_choose_by_method_key_and_count(proxy: FaultProxy, bucket: str) -> None:
    proxy.add(Rule("status_503", method="GET", key="b c", skip=1, times=1))
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
    proxy.add(Rule("status_503", times=None))
    proxy.clear()
    client.head_object(Bucket=bucket, Key="a")


def test_a_share_is_drawn_by_the_seed(s3: SeaweedFS, bucket: str) -> None:
    def drawn(seed: int) -> list[int]:
        with FaultProxy(s3.endpoint, seed) as proxy:
            proxy.add(Rule("status_503", times=None, share=0.3))
            client = through(proxy)
            hit = []
            for number in range(40):
                try:
                    client.list_objects_v2(Bucket=bucket, Prefix=str(number))
                except ClientError:
                    hit.append(number)
            assert proxy.injected == {"status_503": len(hit)}
            assert proxy.passed == 40 - len(hit)
            return hit

    first = drawn(1)
    assert 4 <= len(first) <= 20
    assert drawn(1) == first
    assert drawn(2) != first


def test_a_server_that_is_gone_is_a_closed_connection(bucket: str) -> None:
    with FaultProxy(f"http://127.0.0.1:{free_ports(1)[0]}") as proxy:
        with pytest.raises(ConnectionClosedError):
            through(proxy).list_objects_v2(Bucket=bucket)
        assert not proxy.injected
