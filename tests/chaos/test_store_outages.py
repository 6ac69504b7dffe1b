"""The store dies and comes back, is slow and busy: what was acknowledged is there (promise 8)."""

import random
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.harness import amount, damaged_files, make_complete_run, measured
from tests.conftest import NO_AWS_CONFIG
from tests.proxy import FaultProxy, FaultRule
from tests.publication.runs import published_run_id
from tests.servers import SeaweedFS
from visrec.errors import StorageError
from visrec.publication.manifest import RunManifest, read_run_manifest
from visrec.publication.publish import publish_run
from visrec.publication.run_spec import run_store
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

pytestmark = [pytest.mark.s3, pytest.mark.chaos]


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedFS]:
    """A server that may be killed: the session's own stays."""
    with SeaweedFS() as server:
        for name, value in {**NO_AWS_CONFIG, **server.env()}.items():
            monkeypatch.setenv(name, value)
        server.client().create_bucket(Bucket="shop")
        yield server


class Publisher:
    """Publishes one run after another, whatever happens, and notes what it was told."""

    def __init__(self, lists: Store) -> None:
        self._lists = lists
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.manifests: dict[str, RunManifest] = {}  # whose completion was acknowledged
        self.pointed: list[str] = []  # whose move of the pointer was acknowledged
        self.tried: list[str] = []
        self.refused: list[str] = []
        self.unclean: list[BaseException] = []

    def __enter__(self) -> "Publisher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            run_id = f"run-{len(self.tried):04}"
            self.tried.append(run_id)
            try:
                self.manifests[run_id] = make_complete_run(self._lists, run_id)
                assert publish_run(self._lists, run_id)
                self.pointed.append(run_id)
            except StorageError as error:
                self.refused.append(str(error))
                forget_credentials()  # the next one is a job of its own
            except BaseException as error:
                self.unclean.append(error)
                return


def missing(lists: Store, publisher: Publisher) -> list[str]:
    """Acknowledged runs that are no longer what they were, the pointer's order included."""
    pointer = published_run_id(lists)  # fails where it does not lead to a whole run
    last = publisher.pointed[-1] if publisher.pointed else ""
    lost = [] if pointer >= last else [last]  # a move that ended in an error may have been made
    for run_id, manifest in list(publisher.manifests.items()):
        run = run_store(lists, run_id)
        if read_run_manifest(run) != manifest or damaged_files(run, manifest):
            lost.append(run_id)
    return lost


def wait_for_more(publisher: Publisher, count: int) -> None:
    enough = len(publisher.pointed) + count
    while len(publisher.pointed) < enough and not publisher.unclean:
        time.sleep(0.02)


def test_a_store_that_is_killed_slow_and_busy_keeps_what_it_acknowledged(
    own_server: SeaweedFS,
) -> None:
    kills, rng = amount(1, 10), random.Random(8)
    with FaultProxy(own_server.endpoint, seed=8) as proxy:
        proxy.add(
            FaultRule("status_503", times=None, share=0.05),
            FaultRule("delay", times=None, share=0.2, seconds=0.03),
        )
        direct = Store("s3://shop/recommendations", own_server.endpoint)
        with Publisher(Store(direct.root, proxy.endpoint)) as publisher:
            for _ in range(kills):
                wait_for_more(publisher, amount(1, 3))
                time.sleep(rng.uniform(0, 0.5))
                own_server.kill9()
                time.sleep(rng.uniform(0, 1))
                own_server.restart()
                published_run_id(direct)  # the last good publication is readable
            wait_for_more(publisher, amount(1, 3))
        assert not publisher.unclean
        assert missing(direct, publisher) == []
        for message in publisher.refused:
            assert "\n" not in message
            assert message.endswith(".")
            assert own_server.secret_key not in message
        assert proxy.injected["status_503"]
        assert proxy.injected["delay"]
    measured(8, faults_store_sigkill=kills, faults_delay=proxy.injected["delay"])
    measured(8, faults_status_503=proxy.injected["status_503"])
    measured(8, publications=len(publisher.pointed), clean_failures=len(publisher.refused))
    measured(8, commits_acknowledged=len(publisher.manifests) + len(publisher.pointed))
    measured(8, commits_lost=0)
