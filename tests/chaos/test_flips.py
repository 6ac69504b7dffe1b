"""What was hashed is what was made: single bits flip in all that a run finds (promise 20)."""

import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.harness import amount, measured
from tests.chaos.test_publication import NIGHT, job, published, require_whole_pointer
from tests.recommend.test_incremental import SHARDS, K, Shop, write_night
from tests.recommend.test_incremental import published as last_of
from tests.stepping import Actor, MemoryStore
from visrec.errors import VisrecError
from visrec.publication.claims import CLAIM
from visrec.publication.pointer import LATEST
from visrec.publication.run import MANIFEST, run_store
from visrec.publication.run_spec import RunSpec
from visrec.recommend.readback import LastPublication, check_files

pytestmark = pytest.mark.chaos
PLAIN = (None, False)


def flip(store: MemoryStore, uri: str, dice: random.Random) -> None:
    data = bytearray(store.objects[uri])
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    store.objects[uri] = bytes(data)


def flips(
    store: MemoryStore, names: list[str], count: int
) -> Iterator[tuple[MemoryStore, random.Random]]:
    """The store with one bit of these files flipped, in each of them in turn."""
    dice = random.Random(20)
    for number in range(count):
        mine = MemoryStore(store.root, objects=dict(store.objects))
        flip(mine, names[number % len(names)], dice)
        yield mine, dice


def test_a_resumed_run_makes_again_what_has_a_flipped_bit() -> None:
    shop, store = Shop(1, items=20, users=30), MemoryStore("s3://shop")
    write_night(shop, store / "one", "nested", PLAIN, None)
    names = [uri for uri in store.objects if not uri.endswith(CLAIM)]
    count = 0
    for damaged, _ in flips(store, names, amount(2, 20) * len(names)):
        assert damaged.objects != store.objects
        facts = write_night(shop, damaged / "one", "nested", PLAIN, None)
        assert sum(not shard["kept"] for shard in facts) <= 1
        assert damaged.objects == store.objects
        count += 1
    measured(20, faults_bit_flips=count, published_with_other_content=0, unforeseen_errors=0)


def test_a_last_publication_with_a_flipped_bit_only_saves_less() -> None:
    shop, store = Shop(2, items=40, users=30), MemoryStore("s3://shop")
    write_night(shop, store / "one", "nested", PLAIN, None)
    last = last_of(store / "one", "one")
    names = [uri for uri in store.objects if not uri.endswith(CLAIM)]
    shop.add_items(2)
    shop.add_user()
    whole = MemoryStore("s3://shop")
    truth = tables(whole, write_night(shop, whole / "two", "nested", PLAIN, None))
    target = RunSpec(store / "two", SHARDS, K, "nested", "user_to_item", {"visrec.inputs": "two"})
    parts = {name: sha for name, sha in last.sha256.items() if name.startswith("part-")}
    count = carried = 0
    for damaged, _ in flips(store, names, amount(2, 20) * len(names)):
        said: list[str] = []
        old, new = damaged / "one", damaged / "two"
        mine = last_of(old, "one")
        mine = type(mine)(old, "one", last.sha256)
        facts = write_night(shop, new, "nested", PLAIN, mine, said.append)
        assert tables(damaged, facts) == truth
        assert len(set(said)) == 1
        carried += sum(shard["carried"] for shard in facts)
        # And the gates compare with what is left of it.
        sha256 = {shard["name"]: shard["sha256"] for shard in facts}
        there = RunSpec(new, SHARDS, K, "nested", "user_to_item", target.marks)
        checked = check_files(
            shop.data(PLAIN), there, sha256, LastPublication(old, parts), range(SHARDS)
        )
        assert checked.other_files == 0
        count += 1
    assert carried
    measured(20, faults_bit_flips=count, published_with_other_content=0, unforeseen_errors=0)


def tables(store: MemoryStore, facts: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    found = []
    for shard in facts:
        [uri] = [uri for uri in store.objects if uri.endswith(f"/two/{shard['name']}")]
        found.append(pq.read_table(pa.BufferReader(store.objects[uri])).to_pylist())
    return found


@pytest.mark.parametrize("stopped", [False, True])
def test_a_flipped_bit_of_what_is_complete_is_named_or_made_good(stopped: bool) -> None:
    """In pointer, manifest, claim or files: of the last publication, or of a run that was stopped
    before the pointer moved."""
    store = MemoryStore("s3://shop")
    published(store, "2026-11-20")
    night = job(NIGHT, "a", 2, 9)
    if stopped:
        actor = Actor(store, night)
        while f"create {store.uri(f'run={NIGHT}/{MANIFEST}')}" not in actor.steps:
            actor.step()
        actor.kill()
    run = run_store(store, NIGHT if stopped else "2026-11-20")
    names = [uri for uri in store.objects if uri.startswith(run.root)]
    names += [store.uri(LATEST), run.uri(MANIFEST)]
    count = named = 0
    for damaged, _ in flips(store, names, amount(2, 15) * len(names)):
        outcome = Actor(damaged, night).finish()  # raises what is not foreseen
        count += 1
        if isinstance(outcome, VisrecError):
            named += 1
            continue
        if outcome == "yes":
            require_whole_pointer(damaged)
    assert named
    measured(20, faults_bit_flips=count, published_with_other_content=0, unforeseen_errors=0)
