"""Conditional writes of a store: one writer wins a race, and a lost reply is not a lost write."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from botocore.session import Session

from tests.storage.test_store import everything_below, refusal
from visrec.errors import StorageError
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """The results of `work(0) ... work(count - 1)`, all started at the same moment."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_create_writes_once(store: Store) -> None:
    assert store.create("x/y", b"first")
    assert not store.create("x/y", b"second")
    assert store.read("x/y") == b"first"
    assert everything_below(store) == {"y"}


def test_race_of_eight_creators_has_one_winner(store: Store) -> None:
    for attempt in range(5):
        won = in_threads(8, lambda n, at=attempt: store.create(f"race{at}", f"by {n}".encode()))
        assert won.count(True) == 1
        assert store.read(f"race{attempt}") == f"by {won.index(True)}".encode()


def test_replace_fails_with_an_old_version(store: Store) -> None:
    store.write("x", b"one")
    data, version = store.read_versioned("x")
    assert data == b"one"
    assert store.replace("x", b"two", version)
    assert not store.replace("x", b"three", version)
    assert store.read("x") == b"two"


def test_replace_of_a_deleted_file_fails(store: Store) -> None:
    store.write("folder/x", b"one")
    version = store.read_versioned("folder/x")[1]
    store.delete(["folder/x"])
    assert not store.replace("folder/x", b"two", version)
    store.delete_empty_folder("folder")
    assert not store.replace("folder/x", b"two", version)
    assert everything_below(store) == set()


def test_no_increment_of_racing_threads_is_lost(store: Store) -> None:
    store.write("counter", b"0")

    def increment(_: int) -> None:
        for _ in range(25):
            while True:
                data, version = store.read_versioned("counter")
                if store.replace("counter", str(int(data) + 1).encode(), version):
                    break

    in_threads(2, increment)
    assert store.read("counter") == b"50"


Put = Callable[..., Any]


@pytest.fixture
def wrap_put(monkeypatch: pytest.MonkeyPatch, s3_env: str) -> Callable[[Callable[..., Any]], Store]:
    """Returns a store whose `put_object` is `broken(real_put, **arguments)`."""
    make = Session.create_client

    def store_with(broken: Callable[..., Any]) -> Store:
        def client(session: Session, *args: Any, **options: Any) -> Any:
            made: Any = make(session, *args, **options)
            real = made.put_object
            made.put_object = lambda **arguments: broken(real, **arguments)
            return made

        monkeypatch.setattr(Session, "create_client", client)
        forget_credentials()
        return Store.at(s3_env)

    return store_with


def reply_lost(put: Put, **arguments: Any) -> None:
    put(**arguments)
    raise ConnectionClosedError(endpoint_url="http://store")


def reply_lost_and_put_again(put: Put, **arguments: Any) -> Any:
    """As botocore retries: the second attempt finds what the first one wrote."""
    put(**arguments)
    return put(**arguments)


def request_lost(_: Put, **__: Any) -> None:
    raise ConnectionClosedError(endpoint_url="http://store")


def another_writer_is_faster(put: Put, **arguments: Any) -> None:
    put(**{**arguments, "Body": b"other", "Metadata": {}})
    raise ConnectionClosedError(endpoint_url="http://store")


@pytest.mark.s3
@pytest.mark.parametrize("broken", [reply_lost, reply_lost_and_put_again])
def test_lost_reply_is_not_a_conflict(wrap_put: Callable[[Put], Store], broken: Put) -> None:
    store = wrap_put(broken)
    assert store.create("x", b"one")
    assert store.read("x") == b"one"
    assert store.replace("x", b"two", store.read_versioned("x")[1])
    assert store.read("x") == b"two"


@pytest.mark.s3
def test_lost_request_is_an_error(
    wrap_put: Callable[[Put], Store],
) -> None:
    store = wrap_put(request_lost)
    refusal(lambda: store.create("x", b"one"))
    assert not store.exists("x")


@pytest.mark.s3
def test_lost_reply_does_not_claim_another_writers_file(wrap_put: Callable[[Put], Store]) -> None:
    store = wrap_put(another_writer_is_faster)
    refusal(lambda: store.create("x", b"first"))
    assert store.read("x") == b"other"


def busy(times: int) -> Put:
    """Answers 409 a number of times, as S3 does while another put of the key runs."""
    left = iter(range(times))

    def put(real: Put, **arguments: Any) -> Any:
        if next(left, None) is not None:
            raise ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, "PutObject")
        return real(**arguments)

    return put


@pytest.mark.s3
def test_put_of_a_busy_key_is_retried(
    wrap_put: Callable[[Put], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visrec.storage.s3.BUSY_PAUSES", (0.0, 0.0, 0.0))
    store = wrap_put(busy(3))
    assert store.create("busy", b"first")
    assert not store.create("busy", b"second")
    assert store.read("busy") == b"first"


@pytest.mark.s3
def test_key_that_stays_busy_is_an_error(
    wrap_put: Callable[[Put], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visrec.storage.s3.BUSY_PAUSES", (0.0, 0.0))
    with pytest.raises(StorageError, match="ConditionalRequestConflict"):
        wrap_put(busy(9)).create("x", b"data")
