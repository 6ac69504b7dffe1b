"""Files with a flipped bit are found out: in every file that a run reads (promise 20)."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.harness import amount, measured
from tests.chaos.test_publication import NIGHT, job, published, require_intact_pointer
from tests.publication.runs import PASSED, draft_manifest, require_intact_run
from tests.publication.test_forget import GONE
from tests.publication.test_forget import write_run as write_lists
from tests.recommend.changing_shop import (
    NO_RULES,
    SHARDS,
    ChangingShop,
    K,
    published_run,
    write_run,
)
from tests.stepping import Actor, MemoryStore
from visrec.errors import InputError, VisrecError
from visrec.publication.claims import CLAIM
from visrec.publication.completion import finish_run
from visrec.publication.forget import forget_in_run
from visrec.publication.manifest import RUN_MANIFEST
from visrec.publication.pointer import LATEST
from visrec.publication.run_spec import RunSpec, run_store
from visrec.recommend.readback import WrittenRun, read_back_shards
from visrec.recommend.writer import WrittenShard

pytestmark = pytest.mark.chaos


def flip_a_bit(store: MemoryStore, uri: str, dice: random.Random) -> None:
    data = bytearray(store.objects[uri])
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    store.objects[uri] = bytes(data)


def flips(store: MemoryStore, names: list[str], count: int) -> Iterator[MemoryStore]:
    """Copies of the store with one bit flipped, in each of these files in turn."""
    dice = random.Random(20)
    for number in range(count):
        damaged = MemoryStore(store.root, objects=dict(store.objects))
        flip_a_bit(damaged, names[number % len(names)], dice)
        yield damaged


def test_resumed_run_makes_a_file_with_a_flipped_bit_again() -> None:
    shop, store = ChangingShop(1, items=20, users=30), MemoryStore("s3://shop")
    write_run(shop, store / "one")
    names = [uri for uri in store.objects if not uri.endswith(CLAIM)]
    count = 0
    for damaged in flips(store, names, amount(2, 20) * len(names)):
        assert damaged.objects != store.objects
        shards = write_run(shop, damaged / "one")
        assert sum(not shard.kept for shard in shards) <= 1
        assert damaged.objects == store.objects
        count += 1
    measured(20, faults_bit_flips=count, published_with_other_content=0, unforeseen_errors=0)


def test_last_publication_with_a_flipped_bit_saves_less_work_and_changes_no_list() -> None:
    shop, store = ChangingShop(2, items=40, users=30), MemoryStore("s3://shop")
    write_run(shop, store / "one")
    intact = published_run(store / "one", "one")
    names = [uri for uri in store.objects if not uri.endswith(CLAIM)]
    shop.add_items(2)
    shop.add_user()
    undisturbed = MemoryStore("s3://shop")
    truth = tables(undisturbed, write_run(shop, undisturbed / "two"))
    count = carried = 0
    for damaged in flips(store, names, amount(2, 20) * len(names)):
        messages: list[str] = []
        last, run = replace(intact, run=damaged / "one"), damaged / "two"
        shards = write_run(shop, run, last, log=messages.append)
        assert tables(damaged, shards) == truth
        assert len(set(messages)) == 1
        carried += sum(shard.carried for shard in shards)
        # And the gates compare with what is left of it.
        spec = RunSpec(run, SHARDS, K, "nested", "user_to_item", {"visrec.inputs": "two"})
        written = WrittenRun(spec, {shard.name: shard.sha256 for shard in shards}, last)
        checks = read_back_shards(shop.data(NO_RULES), written, range(SHARDS)).lists
        assert checks.altered_files == 0
        count += 1
    assert carried
    measured(20, faults_bit_flips=count, published_with_other_content=0, unforeseen_errors=0)


def tables(store: MemoryStore, shards: list[WrittenShard]) -> list[list[dict[str, Any]]]:
    found = []
    for shard in shards:
        [uri] = [uri for uri in store.objects if uri.endswith(f"/two/{shard.name}")]
        found.append(pq.read_table(pa.BufferReader(store.objects[uri])).to_pylist())
    return found


@pytest.mark.parametrize("stopped", [False, True])
def test_flipped_bit_in_a_complete_run_is_named_or_repaired(stopped: bool) -> None:
    """In pointer, manifest, claim or files: of the last publication, or of a run that was stopped
    before the pointer moved."""
    store = MemoryStore("s3://shop")
    published(store, "2026-11-20")
    night = job(NIGHT, "a", 2, 9)
    if stopped:
        actor = Actor(store, night)
        while f"create {store.uri(f'run={NIGHT}/{RUN_MANIFEST}')}" not in actor.steps:
            actor.step()
        actor.kill()
    run = run_store(store, NIGHT if stopped else "2026-11-20")
    names = [uri for uri in store.objects if uri.startswith(run.root)]
    names += [store.uri(LATEST), run.uri(RUN_MANIFEST)]
    count = named = 0
    for damaged in flips(store, names, amount(2, 15) * len(names)):
        outcome = Actor(damaged, night).finish()  # raises what is not foreseen
        count += 1
        if isinstance(outcome, VisrecError):
            named += 1
            continue
        if outcome == "yes":
            require_intact_pointer(damaged)
    assert named
    measured(20, faults_bit_flips=count, published_with_other_content=0, unforeseen_errors=0)


def test_run_with_a_flipped_bit_is_no_intact_one_after_users_were_removed() -> None:
    store = MemoryStore("s3://shop")
    run, fields = write_lists(store, "user_to_item")
    finish_run(run, draft_manifest(**fields), [PASSED])

    def lists_without_user(lists: MemoryStore) -> dict[str, Any]:
        forget_in_run(lists, "r1", GONE)
        left = run_store(lists, "r1")
        files = (left.read(name) for name in require_intact_run(left).files)
        rows = (pq.read_table(pa.BufferReader(data)).to_pylist() for data in files)
        return {row["user_id"]: row for file in rows for row in file}

    truth = lists_without_user(MemoryStore(store.root, objects=dict(store.objects)))
    names = [uri for uri in store.objects if not uri.endswith(CLAIM)]
    count = named = 0
    for damaged in flips(store, names, amount(4, 40) * len(names)):
        count += 1
        try:
            assert lists_without_user(damaged) == truth
        except InputError:
            named += 1
    assert named
    measured(20, faults_bit_flips=count, published_with_other_content=0, unforeseen_errors=0)
