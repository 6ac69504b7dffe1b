"""Of two writers of one run with other inputs one completes it, and nobody writes over it then."""

import pytest

from tests.chaos.test_publication import job
from tests.stepping import Actor, MemoryStore
from visrec.errors import ConflictError, InputError
from visrec.publication.claims import CLAIM, claim, is_claimed, is_lost, read_claim, removal, seal
from visrec.publication.run import MANIFEST, Gate, complete
from visrec.storage.store import Store

PASSED = Gate("users with a list", 1, "at least 1", "passed")


def described(run: Store, shards: int) -> dict[str, object]:
    files: dict[str, object] = {}
    for shard in range(shards):
        data = run.read(f"part-{shard}")
        files[f"part-{shard}"] = {"bytes": len(data), "rows": 1, "sha256": data.decode()}
    return {"files": files}


def test_a_run_is_claimed_again_by_the_same_inputs_and_taken_by_others(store: Store) -> None:
    claim(store, "a")
    claim(store, "a")
    assert is_claimed(store, "a")
    claim(store, "b")
    assert is_claimed(store, "b")
    assert not is_claimed(store, "a")
    with pytest.raises(InputError, match="choose another --run_id"):
        claim(store, "a")  # nobody gets it back
    claim(store, "c")
    assert is_claimed(store, "c")


def test_who_has_lost_the_run_cannot_complete_it(store: Store) -> None:
    claim(store, "a")
    store.write("part-0", b"a")
    claim(store, "b")
    with pytest.raises(ConflictError, match="for lists of other inputs"):
        complete(store, described(store, 1), [PASSED], inputs="a")
    assert not store.exists(MANIFEST)


def test_what_is_being_completed_cannot_be_taken(store: Store) -> None:
    """As where the job died between the seal and the manifest: the same inputs may go on."""
    claim(store, "a")
    store.write("part-0", b"a")
    complete(store, described(store, 1), [PASSED], inputs="a")
    store.delete([MANIFEST])
    assert store.read_json(CLAIM)["state"] == "sealed"
    with pytest.raises(InputError, match="was made from other inputs"):
        claim(store, "b")
    claim(store, "a")
    complete(store, described(store, 1), [PASSED], inputs="a")
    assert store.exists(MANIFEST)


def test_a_file_goes_where_nothing_has_changed_since(store: Store) -> None:
    assert store.exchange("part", b"1", None)
    assert not store.exchange("part", b"2", None)
    version = store.read_versioned("part")[1]
    assert store.exchange("part", b"3", version)
    assert not store.exchange("part", b"4", version)
    assert store.read("part") == b"3"


def test_a_run_that_is_being_removed_is_nobodys(store: Store) -> None:
    claim(store, "a")
    _, version = read_claim(store)
    assert store.exchange(CLAIM, removal(), version)
    assert not is_claimed(store, "a")
    assert is_lost(store, "a")
    with pytest.raises(ConflictError, match="Retention is removing"):
        claim(store, "a")
    with pytest.raises(ConflictError, match="retention has removed it"):
        seal(store, "a")
    store.delete([CLAIM])
    assert not is_claimed(store, "a")
    assert not is_lost(store, "a")  # the same inputs may claim it anew, and take up what is there
    claim(store, "a")


def test_a_claim_that_was_made_again_is_another_one(store: Store) -> None:
    claim(store, "a")
    version = store.read_versioned(CLAIM)[1]
    store.delete([CLAIM])
    claim(store, "a")
    assert not store.exchange(CLAIM, removal(), version)


def test_a_writer_that_finds_its_run_lost_writes_nothing_more() -> None:
    """Wherever it was stopped, the run is complete from other inputs when it goes on: only the
    operation that was under way may still be a write, and what it wrote is removed."""
    i, done, late = 0, False, 0
    while not done:
        store = MemoryStore("s3://shop")
        slow = Actor(store, job("night", "a", 2))
        slow.step(i)
        claimed, _ = read_claim(store / "run=night")
        done = claimed is not None and claimed["state"] == "sealed"
        if claimed is not None and not done:
            assert job("night", "b", 1)(store) == "yes"
            before = dict(store.objects)
            assert isinstance(slow.finish(), ConflictError | InputError)
            writes = [step for step in slow.steps[i + 1 :] if step.startswith(("create", "repl"))]
            assert not [step for step in writes if "a" * 12 in step], (i, writes)
            late += slow.steps[i].startswith("create") and "a" * 12 in slow.steps[i]
            assert store.objects == before
        i += 1
    assert late == 5  # items' fingerprints, and each shard with its own
