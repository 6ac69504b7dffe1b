"""Users leave runs that are kept while others read, publish, roll back and prune (promise 30)."""

import hashlib
from dataclasses import replace
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.harness import amount, measured
from tests.chaos.test_publication import Work, again, job, prune, shop
from tests.publication.runs import require_intact_run
from tests.stepping import Actor, MemoryStore, meetings
from visrec.publication.forget import UsersToForget, forget_in_run, run_ids
from visrec.publication.manifest import (
    REWRITING,
    RUN_MANIFEST,
    RunManifest,
    parse_manifest,
    read_run_manifest,
)
from visrec.publication.pointer import read_pointer
from visrec.publication.rollback import roll_back
from visrec.publication.run_spec import run_store
from visrec.recommend.queries import read_all_queries
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos
NIGHTS = ["2026-11-12", "2026-11-13"]
GONE, *STAY = read_all_queries(shop(2).queries).query_ids.to_pylist()
DRAFT_QUERIES = 10  # what the manifests of these tests say, whatever the run has
FORGOTTEN = UsersToForget(user_ids=pa.array([GONE]))


def forget(lists: Store) -> int:
    return sum(forget_in_run(lists, run_id, FORGOTTEN) for run_id in run_ids(lists))


def rolled_back(lists: Store) -> Any:
    return roll_back(lists, NIGHTS[0])


@cache
def manifest_in(data: bytes) -> RunManifest:
    return parse_manifest(data, "")


@cache
def users_in(file: bytes) -> list[str]:
    columns: dict[str, list[str]] = pq.read_table(pa.BufferReader(file)).to_pydict()
    return columns.get("user_id", [])


def require_whole(store: MemoryStore) -> None:
    """What a reader finds who follows the pointer, and compares every hash."""
    pointer, _ = read_pointer(store)
    data = store.objects[store.uri(str(pointer.manifest))]
    assert hashlib.sha256(data).hexdigest() == pointer.manifest_sha256
    manifest, users = manifest_in(data), []
    for name, sha256 in manifest.sha256_by_file.items():
        file = store.objects[store.uri(f"run={pointer.run_id}/{name}")]
        assert hashlib.sha256(file).hexdigest() == sha256
        users += users_in(file)
    assert sorted(users) in (sorted(STAY), sorted([GONE, *STAY]))
    assert manifest.queries == DRAFT_QUERIES - len([GONE, *STAY]) + len(users)


def files_with(store: MemoryStore, user_id: str) -> list[str]:
    found = []
    for uri, data in store.objects.items():
        if data.startswith(b"PAR1"):
            found += [uri] if user_id in users_in(data) else []
        elif user_id.encode() in data:
            found.append(uri)
    return found


def require_forgotten(store: MemoryStore) -> None:
    assert files_with(store, GONE) == []
    assert not [uri for uri in store.objects if REWRITING in uri or "_manifest-" in uri]
    pointer, _ = read_pointer(store)
    assert pointer.manifest == f"run={pointer.run_id}/{RUN_MANIFEST}"
    for run_id in run_ids(store):
        if read_run_manifest(run_store(store, run_id)) is None:
            continue
        manifest = require_intact_run(run_store(store, run_id))
        prefix = f"{store.root}/run={run_id}/"
        names = {uri.removeprefix(prefix) for uri in store.objects if uri.startswith(prefix)}
        assert {*manifest.files, *manifest.fingerprints} == {
            name for name in names if name.startswith(("part-", "_fingerprints/"))
        }
    require_whole(store)


@cache
def kept_nights() -> MemoryStore:
    start = MemoryStore("s3://shop")
    for second, night in enumerate(NIGHTS, 1):
        assert job(night, "a", 2, second)(start) == "yes"
    return start


def test_forgetting_that_is_killed_at_any_moment_ends_right_when_it_is_started_again() -> None:
    start, kills, reads = kept_nights(), 0, 0
    every, point = amount(9, 1), 0
    while True:
        store = replace(start, objects=dict(start.objects))
        actor = Actor(store, forget)
        for _ in range(point):
            actor.step()
            require_whole(store)
            reads += 1
        if actor.done:
            assert actor.outcome == len(NIGHTS)
            require_forgotten(store)
            break
        actor.kill()
        require_whole(store)
        assert job(NIGHTS[-1], "a", 2, 3)(store) == "yes", "its night was started in between"
        require_whole(store)
        Actor(store, forget).finish(lambda store=store: require_whole(store))
        require_forgotten(store)
        point, kills = point + every, kills + 1
    measured(30, kills=kills, polls=reads, partial_reads=0)


@pytest.mark.parametrize(
    "other",
    [
        job(NIGHTS[-1], "a", 2, 3),
        job("2026-11-14", "b", 2, 4),
        again(prune),
        again(rolled_back, job(NIGHTS[-1], "a", 2, 3)),
    ],
    ids=["a second start of the night", "the next night", "retention", "a rollback"],
)
def test_forgetting_beside_another_job_loses_nothing(other: Work) -> None:
    start, count = kept_nights(), 0

    def ends(one: Actor, two: Actor, check: Any) -> None:
        one.finish(check)
        two.finish(check)

    for first_ends in (True, False):
        for store, one, two in meetings(start, forget, other, amount(37, 3)):
            require_whole(store)
            order = (one, two) if first_ends else (two, one)
            ends(*order, lambda store=store: require_whole(store))
            again(other)(store)  # it may have been stopped
            require_whole(store)
            Actor(store, forget).finish(lambda store=store: require_whole(store))
            require_forgotten(store)
            count += 1
    measured(30, schedules=count, partial_reads=0)
