"""Publication: held back, completed once, pointed to, and never half, on either store."""

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest

from tests.storage.test_conditional_writes import in_threads
from visrec.errors import ConflictError, GateError, InputError
from visrec.publication.pointer import LATEST
from visrec.publication.run import (
    HELD_BACK,
    MANIFEST,
    Gate,
    complete,
    point_to,
    publication_status,
    read_last,
    read_published,
    run_store,
)
from visrec.storage.store import Store

ENOUGH = Gate(name="users with a list", found=10, expected="at least 9", outcome="passed")
TOO_FEW = Gate(name="items available", found=3, expected="at least 5", outcome="failed")
TOO_OLD = Gate(
    name="age of the features",
    found="9 days",
    expected="at most 2",
    outcome="failed",
    key="gates.max_age",
    note="since Monday",
)


@pytest.fixture
def lists(store: Store) -> Store:
    """Where recommendations are published, empty."""
    return store / "recommendations"


def write_shards(run: Store, *contents: bytes) -> dict[str, Any]:
    """Writes shards and describes them, as the scoring step does."""
    files = {}
    for shard, data in enumerate(contents):
        name = f"part-{shard:05}.parquet"
        run.write(name, data)
        facts = {"rows": 1, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        files[name] = facts
    return {"files": files, "model": "m1"}


def published(lists: Store, run_id: str, data: bytes = b"lists") -> Mapping[str, Any]:
    run = run_store(lists, run_id)
    return complete(run, write_shards(run, data), [ENOUGH])[0]


def names(store: Store) -> set[str]:
    return {entry.name for entry in store.list()}


def pointed_to(lists: Store) -> str:
    """The run that a reader finds, once the pointer's and all files' digests are checked."""
    pointer = lists.read_json(LATEST)
    manifest = lists.read(pointer["manifest"])
    assert hashlib.sha256(manifest).hexdigest() == pointer["manifest_sha256"]
    run = run_store(lists, pointer["run_id"])
    for name, facts in run.read_json(MANIFEST)["files"].items():
        assert hashlib.sha256(run.read(name)).hexdigest() == facts["sha256"]
    return str(pointer["run_id"])


# --------------------------------------------------------------------------------------- the gates


def test_a_gate_that_fails_holds_the_run_back(lists: Store) -> None:
    run = run_store(lists, "r1")
    described = write_shards(run, b"lists")
    before = names(lists)
    with pytest.raises(GateError) as caught:
        complete(run, described, [ENOUGH, TOO_FEW, TOO_OLD])
    message = str(caught.value)
    # What was found stays beside the files, until the run is complete.
    record = f"run=r1/{HELD_BACK}"
    found = [gate["outcome"] for gate in lists.read_json(record)["gates"]]
    assert found == ["passed", "failed", "failed"]
    assert record in message
    before = {*before, record}
    assert "items available: found 3, expected at least 5." in message
    assert (
        "age of the features: found 9 days (since Monday), expected at most 2 (--gates.max_age)."
        in message
    )
    assert "--force_publish" in message
    assert "users with a list" not in message
    assert names(lists) == before
    assert read_published(run) is None
    assert not point_to(lists, "r1")
    assert not lists.exists(LATEST)


def test_a_run_held_back_leaves_the_one_before_where_it_is(lists: Store) -> None:
    published(lists, "r1")
    point_to(lists, "r1")
    run = run_store(lists, "r2")
    with pytest.raises(GateError):
        complete(run, write_shards(run, b"bad lists"), [TOO_FEW])
    assert not point_to(lists, "r2")
    assert pointed_to(lists) == "r1"


def test_a_reason_publishes_what_the_gates_hold_back_and_is_recorded(lists: Store) -> None:
    run = run_store(lists, "r1")
    described = write_shards(run, b"lists")
    manifest, _ = complete(run, described, [ENOUGH, TOO_FEW, TOO_OLD], "the shop is half closed")
    assert manifest["forced"] == {
        "reason": "the shop is half closed",
        "gates": ["items available", "age of the features"],
    }
    assert [gate["outcome"] for gate in manifest["gates"]] == ["passed", "forced", "forced"]
    assert read_published(run) == manifest
    assert point_to(lists, "r1")
    assert pointed_to(lists) == "r1"


def test_a_reason_that_nobody_needed_overrode_nothing(lists: Store) -> None:
    run = run_store(lists, "r1")
    manifest, _ = complete(run, write_shards(run, b"lists"), [ENOUGH], "to be sure")
    assert manifest["forced"] == {"reason": "to be sure", "gates": []}


# ------------------------------------------------------------------------------------ the manifest


def test_a_manifest_tells_the_files_and_the_gates(lists: Store) -> None:
    assert read_published(run_store(lists, "r1")) is None
    manifest = published(lists, "r1")
    assert read_published(run_store(lists, "r1")) == manifest
    assert manifest["model"] == "m1"
    assert set(manifest["files"]) == {"part-00000.parquet"}
    assert manifest["gates"] == [
        {
            "name": "users with a list",
            "found": 10,
            "expected": "at least 9",
            "outcome": "passed",
            "key": "",
            "note": "",
        }
    ]
    assert manifest["forced"] is None
    assert manifest["completed_at"]


def test_who_completes_a_run_again_with_the_same_files_gets_the_first_manifest(
    lists: Store,
) -> None:
    first = published(lists, "r1")
    run = run_store(lists, "r1")
    described = {**write_shards(run, b"lists"), "model": "said later"}
    assert complete(run, described, [ENOUGH]) == (first, False)
    assert read_published(run) == first


def test_who_completes_a_run_with_other_files_is_refused(lists: Store) -> None:
    first = published(lists, "r1", b"lists")
    run = run_store(lists, "r1")
    facts = {"rows": 1, "bytes": len(b"LISTS"), "sha256": hashlib.sha256(b"LISTS").hexdigest()}
    with pytest.raises(ConflictError, match="completed by another writer with other files"):
        complete(run, {"files": {"part-00000.parquet": facts}}, [ENOUGH])
    assert read_published(run) == first
    assert run.read("part-00000.parquet") == b"lists"


def test_files_that_are_not_what_was_written_are_refused(lists: Store) -> None:
    run = run_store(lists, "r1")
    described = write_shards(run, b"one", b"two")
    run.write("part-00001.parquet", b"another writer's")
    with pytest.raises(ConflictError, match=r"part-00001\.parquet has 16 bytes, not the 3"):
        complete(run, described, [ENOUGH])
    run.delete(["part-00001.parquet"])
    with pytest.raises(ConflictError, match=r"part-00001\.parquet has 0 bytes, not the 3"):
        complete(run, described, [ENOUGH])
    assert read_published(run) is None


def test_shards_of_an_earlier_attempt_do_not_stay(lists: Store) -> None:
    run = run_store(lists, "r1")
    write_shards(run, b"cut", b"into", b"three")
    complete(run, write_shards(run, b"now two", b"shards"), [ENOUGH])
    assert names(run) == {"part-00000.parquet", "part-00001.parquet", MANIFEST}


def test_of_racing_writers_of_one_run_all_see_one_manifest(lists: Store) -> None:
    run = run_store(lists, "r1")
    described = write_shards(run, b"lists")
    seen = in_threads(8, lambda n: complete(run, {**described, "writer": n}, [ENOUGH]))
    assert [manifest for manifest, _ in seen] == [read_published(run)] * 8
    assert [first for _, first in seen].count(True) == 1


# ------------------------------------------------------------------------------------- the pointer


def test_the_pointer_goes_to_a_run_and_on_to_the_next(lists: Store) -> None:
    for run_id in ("r1", "r2", "r3"):
        published(lists, run_id, run_id.encode())
    assert point_to(lists, "r1")
    assert pointed_to(lists) == "r1"
    assert lists.read_json(LATEST)["previous_run_id"] is None
    assert point_to(lists, "r2")
    assert point_to(lists, "r3")
    assert pointed_to(lists) == "r3"
    assert lists.read_json(LATEST)["previous_run_id"] == "r2"
    # And back, as an operator does after a bad night.
    assert point_to(lists, "r2")
    assert pointed_to(lists) == "r2"
    assert lists.read_json(LATEST)["previous_run_id"] == "r3"


def test_the_last_publication_is_the_one_that_the_pointer_names(lists: Store) -> None:
    assert read_last(lists) is None
    first = published(lists, "r1")
    assert read_last(lists) is None
    point_to(lists, "r1")
    published(lists, "r2")
    assert read_last(lists) == first
    run_store(lists, "r1").delete([MANIFEST])  # as who cleans up too well
    assert read_last(lists) is None


def test_pointing_where_it_points_changes_nothing(lists: Store) -> None:
    published(lists, "r1")
    point_to(lists, "r1")
    before = lists.read_versioned(LATEST)
    assert not point_to(lists, "r1")
    assert lists.read_versioned(LATEST) == before


def test_a_run_that_is_not_complete_is_not_pointed_to(lists: Store) -> None:
    published(lists, "r1")
    point_to(lists, "r1")
    write_shards(run_store(lists, "half"), b"lists")
    assert not point_to(lists, "half")
    assert (
        publication_status(lists, "half") == "no: it is not complete, or retention has removed it"
    )
    assert pointed_to(lists) == "r1"


@pytest.mark.parametrize("from_nothing", [True, False])
def test_a_pointer_moved_after_it_was_read_is_not_overwritten(
    lists: Store, monkeypatch: pytest.MonkeyPatch, from_nothing: bool
) -> None:
    for run_id in ("before", "mine", "theirs"):
        published(lists, run_id, run_id.encode())
    if not from_nothing:
        point_to(lists, "before")
    # Theirs comes right after the look at the pointer by which mine decides what to do.
    look = Store.read_if_exists

    def and_then_theirs(store: Store, name: str) -> Any:
        found = look(store, name)
        if name == LATEST:
            monkeypatch.setattr(Store, "read_if_exists", look)
            assert point_to(lists, "theirs")
        return found

    monkeypatch.setattr(Store, "read_if_exists", and_then_theirs)
    with pytest.raises(ConflictError, match="Another run moved"):
        point_to(lists, "mine")
    assert pointed_to(lists) == "theirs"


@pytest.mark.parametrize("from_nothing", [True, False])
def test_a_race_for_the_pointer_ends_with_a_whole_run(lists: Store, from_nothing: bool) -> None:
    runs = [f"r{n}" for n in range(8)]
    for run_id in ("before", *runs):
        published(lists, run_id, run_id.encode())
    if not from_nothing:
        point_to(lists, "before")

    def move(n: int) -> bool | ConflictError:
        try:
            return point_to(lists, runs[n])
        except ConflictError as error:
            return error

    outcome = in_threads(8, move)
    moved = {run_id for run_id, one in zip(runs, outcome, strict=True) if one is True}
    assert moved
    assert pointed_to(lists) in moved
    for lost in (one for one in outcome if one is not True):
        assert isinstance(lost, ConflictError)
        assert "run the job again with the same --run_id" in str(lost)


def test_every_move_of_a_race_that_is_tried_again_is_made(lists: Store) -> None:
    runs = [f"r{n}" for n in range(4)]
    for run_id in runs:
        published(lists, run_id, run_id.encode())

    def until_moved(n: int) -> str | None:
        while True:
            try:
                point_to(lists, runs[n])
                return runs[n]
            except ConflictError:
                continue

    assert in_threads(4, until_moved) == runs
    assert pointed_to(lists) in runs
    assert lists.read_json(LATEST)["previous_run_id"] in set(runs) - {pointed_to(lists)}


# ------------------------------------------------------------------------------------------ run ids


@pytest.mark.parametrize("run_id", ["2026-11-22", "2026-11-22T03:00", "a.b_C-9", "x" * 64])
def test_a_run_id_names_the_folder(run_id: str) -> None:
    assert run_store(Store("/lists"), run_id) == Store(f"/lists/run={run_id}")


@pytest.mark.parametrize(
    "run_id",
    ["", ".", "..", ".hidden", "a/b", "../up", "two words", "é", "a\n", "a%2F", "a\\b", "²"],
)
def test_a_run_id_that_cannot_be_a_folder_is_refused(run_id: str) -> None:
    with pytest.raises(InputError) as caught:
        run_store(Store("/lists"), run_id)
    assert f"Found --run_id {run_id!r}; expected letters, digits" in str(caught.value)
