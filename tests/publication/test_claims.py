"""Of two writers of one run with other inputs one completes it, and nobody writes over it then."""

import pytest

from tests.chaos.test_publication import job
from tests.publication.runs import PASSED, draft_manifest, write_files
from tests.stepping import Actor, MemoryStore
from visrec.errors import ConflictError, InputError
from visrec.publication.claims import (
    CLAIM,
    claim_run,
    holds_claim,
    is_claimed_by_others,
    read_claim,
    removal_claim,
    seal,
)
from visrec.publication.completion import finish_run
from visrec.publication.manifest import RUN_MANIFEST, RunManifest
from visrec.storage.store import Store, to_json


def written(run: Store) -> RunManifest:
    return draft_manifest(files=write_files(run, {"part-0": b"a"}))


def test_claim_passes_to_other_inputs_and_never_back(store: Store) -> None:
    claim_run(store, "a")
    claim_run(store, "a")
    assert holds_claim(store, "a")
    claim_run(store, "b")
    assert holds_claim(store, "b")
    assert not holds_claim(store, "a")
    with pytest.raises(InputError, match="Choose another --run_id"):
        claim_run(store, "a")
    claim_run(store, "c")
    assert holds_claim(store, "c")


def test_writer_that_lost_its_claim_cannot_complete_the_run(store: Store) -> None:
    claim_run(store, "a")
    draft = written(store)
    claim_run(store, "b")
    with pytest.raises(ConflictError, match="for lists of other inputs"):
        finish_run(store, draft, [PASSED], inputs_digest="a")
    assert not store.exists(RUN_MANIFEST)


def test_claim_is_refused_after_seal_except_for_the_same_inputs(store: Store) -> None:
    """As if the job died between the seal and the manifest: the same inputs may go on."""
    claim_run(store, "a")
    draft = written(store)
    finish_run(store, draft, [PASSED], inputs_digest="a")
    store.delete([RUN_MANIFEST])
    assert store.read_json(CLAIM)["state"] == "sealed"
    with pytest.raises(InputError, match="belongs to other inputs"):
        claim_run(store, "b")
    claim_run(store, "a")
    finish_run(store, draft, [PASSED], inputs_digest="a")
    assert store.exists(RUN_MANIFEST)


def test_swap_writes_only_if_nothing_has_changed_since_the_read(store: Store) -> None:
    assert store.compare_and_swap("part", b"1", None)
    assert not store.compare_and_swap("part", b"2", None)
    version = store.read_versioned("part")[1]
    assert store.compare_and_swap("part", b"3", version)
    assert not store.compare_and_swap("part", b"4", version)
    assert store.read("part") == b"3"


def test_run_that_is_being_removed_cannot_be_claimed_or_sealed(store: Store) -> None:
    claim_run(store, "a")
    _, version = read_claim(store)
    assert store.compare_and_swap(CLAIM, removal_claim(), version)
    assert not holds_claim(store, "a")
    assert is_claimed_by_others(store, "a")
    with pytest.raises(ConflictError, match="Retention is removing"):
        claim_run(store, "a")
    with pytest.raises(ConflictError, match="retention has removed it"):
        seal(store, "a")


def test_run_that_users_are_removed_from_cannot_be_claimed_or_sealed(store: Store) -> None:
    claim_run(store, "a")
    claim, version = read_claim(store)
    assert claim is not None
    forgetting = to_json(claim.renewed("forgetting").to_dict())
    assert store.compare_and_swap(CLAIM, forgetting, version)
    assert not holds_claim(store, "a")
    assert is_claimed_by_others(store, "a")
    with pytest.raises(ConflictError, match="`visrec forget` is removing users from"):
        claim_run(store, "a")
    with pytest.raises(ConflictError, match="or `visrec forget` is removing files of it"):
        seal(store, "a")


def test_removed_run_can_be_claimed_again(store: Store) -> None:
    claim_run(store, "a")
    store.delete([CLAIM])
    assert not holds_claim(store, "a")
    # The same inputs may claim the run again, and keep the shards that they find.
    assert not is_claimed_by_others(store, "a")
    claim_run(store, "a")
    assert holds_claim(store, "a")


def test_claim_that_was_made_again_is_a_different_one(store: Store) -> None:
    claim_run(store, "a")
    version = store.read_versioned(CLAIM)[1]
    store.delete([CLAIM])
    claim_run(store, "a")
    assert not store.compare_and_swap(CLAIM, removal_claim(), version)


def test_writer_that_finds_its_run_lost_writes_nothing_more() -> None:
    """A writer is stopped before each of its operations, and another one completes the run from
    other inputs meanwhile. When the first goes on, it may finish the write that it had begun, and
    then removes that file; it begins no other write."""
    i, done, late = 0, False, 0
    while not done:
        store = MemoryStore("s3://shop")
        slow = Actor(store, job("night", "a", 2))
        slow.step(i)
        claim, _ = read_claim(store / "run=night")
        done = claim is not None and claim.state == "sealed"
        if claim is not None and not done:
            assert job("night", "b", 1)(store) == "yes"
            before = dict(store.objects)
            assert isinstance(slow.finish(), ConflictError | InputError)
            writes = [step for step in slow.steps[i + 1 :] if step.startswith(("create", "repl"))]
            assert not [step for step in writes if "a" * 12 in step], (i, writes)
            late += slow.steps[i].startswith("create") and "a" * 12 in slow.steps[i]
            assert store.objects == before
        i += 1
    assert late == 5  # items' fingerprints, and each shard with its own
