"""The pointer goes back when it is told to, and what was left is not published again."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.chaos.harness import run_contents
from tests.publication.runs import PASSED, draft_manifest, published_run_id, write_files
from visrec.errors import ConflictError, InputError
from visrec.publication.claims import CLAIM, claim_run
from visrec.publication.completion import finish_run, read_complete_run
from visrec.publication.manifest import RUN_MANIFEST
from visrec.publication.pointer import LATEST
from visrec.publication.publish import publication_status, publish_run
from visrec.publication.rollback import roll_back
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store

SHARD = "part-00001.parquet"


@pytest.fixture
def lists(store: Store) -> Store:
    """Where recommendations are published, empty."""
    return store / "recommendations"


def complete(lists: Store, run_id: str, cutoff: float | None = None) -> None:
    """A complete run with a cutoff."""
    run = run_store(lists, run_id)
    files = write_files(run, run_contents(run_id, size=66))
    draft = draft_manifest(run_id=run_id, files=files, cutoff_timestamp=cutoff)
    finish_run(run, draft, [PASSED])


def publish(lists: Store, *run_ids: str) -> None:
    """Runs one after another, the cutoff of each a second later."""
    for second, run_id in enumerate(run_ids, 1):
        complete(lists, run_id, second)
        assert publish_run(lists, run_id)


def status(lists: Store, run_id: str) -> str:
    return publication_status(lists, run_id).summary


def pointer(lists: Store) -> tuple[bytes, str] | None:
    return lists.read_if_exists(LATEST)


def rolled_back(run_id: str) -> str:
    """The status of a run that was rolled back."""
    again = f"`visrec rollback --run_id {run_id}` publishes it again"
    return f"no: {run_id} was rolled back ({again})"


# -------------------------------------------------------------------------------------------- back


def test_pointer_goes_back_to_the_run_before(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")
    assert roll_back(lists) == ("r3", "r2")
    assert published_run_id(lists) == "r2"
    assert [status(lists, run) for run in ("r1", "r2", "r3")] == [
        "no: a later night is published", "yes", rolled_back("r3")
    ]  # fmt: skip


def test_pointer_goes_back_to_a_run_by_its_name(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")
    assert roll_back(lists, "r1") == ("r3", "r1")
    assert published_run_id(lists) == "r1"
    # The run that was passed over was not rolled back.
    assert status(lists, "r2") == "no: the pointer has not moved to it"
    assert publish_run(lists, "r2")
    assert not publish_run(lists, "r3")


def lose(name: str) -> Callable[[Store], None]:
    return lambda lists: run_store(lists, "r2").delete([name])


def change_a_byte(lists: Store) -> None:
    run = run_store(lists, "r2")
    data = run.read(SHARD)
    run.write(SHARD, data[:-1] + bytes([data[-1] ^ 1]))


def three_nights(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")


def half_a_run(lists: Store) -> None:
    write_files(run_store(lists, "half"), run_contents("half", size=66))


REFUSED: Mapping[str, tuple[list[Callable[[Store], Any]], str | None, str]] = {
    "nothing was ever published": ([], None, "no publication at all"),
    "a run is there, but none was published": (
        [lambda lists: complete(lists, "r2")], "r2", "no publication at all"),
    "there is no run before": (
        [lambda lists: publish(lists, "r1")], None,
        "no publication before r1 in .*; expected .*--run_id.* the published one: none."),
    "a second rollback in a row": (
        [three_nights, roll_back], None,
        "no publication before r2 in .*: after a rollback, .*none;.*--run_id.* one: r3, r1."),
    "an unknown run": (
        [three_nights], "r9", "no complete run at .*/run=r9.*besides the published one: r2, r1."),
    "a misspelt run": ([lambda lists: publish(lists, "2026-11-21", "2026-11-22")], "2026-11-2",
                       r"did you mean 2026-11-21\?"),
    "a run without a manifest": ([three_nights, half_a_run], "half", "no complete run"),
    "the run before was removed": ([three_nights, lose(RUN_MANIFEST)], None, "no complete run"),
    "the published one": ([three_nights], "r3", "the run that is published"),
    "an id that is no name": ([three_nights], "../r2", "--run_id '../r2'"),
    "a file of the run before is lost": (
        [three_nights, lose(SHARD)], None, f"run=r2/{SHARD} is not the file that the manifest"),
    "a file of a named run is lost": (
        [three_nights, lose(SHARD)], "r2", f"run=r2/{SHARD} is not the file that the manifest"),
    "a file has another byte": (
        [three_nights, change_a_byte], None, f"run=r2/{SHARD} is not the file that the manifest"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_rollback_to_anything_but_an_intact_earlier_run_is_refused(lists: Store, name: str) -> None:
    prepare, run_id, message = REFUSED[name]
    for step in prepare:
        step(lists)
    before = pointer(lists)
    with pytest.raises(InputError, match=message):
        roll_back(lists, run_id)
    assert pointer(lists) == before


def test_rollback_is_refused_if_the_pointer_moved_while_the_files_were_read(
    lists: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(lists, "r1", "r2")
    complete(lists, "theirs", 3)
    read = Store.read_if_exists

    def read_and_lose_the_race(store: Store, name: str) -> Any:
        if name == SHARD:
            monkeypatch.setattr(Store, "read_if_exists", read)
            assert publish_run(lists, "theirs")
        return read(store, name)

    monkeypatch.setattr(Store, "read_if_exists", read_and_lose_the_race)
    with pytest.raises(ConflictError, match="Another run moved"):
        roll_back(lists)
    assert published_run_id(lists) == "theirs"


# ---------------------------------------------------------------------------------- what was left


def test_rolled_back_run_is_not_published_again_and_a_newer_one_is(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")
    roll_back(lists)
    for _ in range(2):
        before = pointer(lists)
        assert not publish_run(lists, "r3")
        assert pointer(lists) == before
    complete(lists, "r4", 4)
    assert status(lists, "r4") == "no: the pointer has not moved to it"
    assert publish_run(lists, "r4")
    assert published_run_id(lists) == "r4"
    assert lists.read_json(LATEST)["previous_run_id"] == "r2"
    assert not publish_run(lists, "r3")


@pytest.mark.parametrize("cutoff", [None, 9])
def test_rolled_back_run_stays_out_whatever_is_published_and_rolled_back_later(
    lists: Store, cutoff: int | None
) -> None:
    """Also if all runs have the same cutoff, so that none is earlier than another."""
    for run_id in ("r1", "r2", "r3"):
        complete(lists, run_id, cutoff)
        publish_run(lists, run_id)
    assert roll_back(lists) == ("r3", "r2")
    complete(lists, "r4", cutoff)
    assert publish_run(lists, "r4")
    assert status(lists, "r3") == rolled_back("r3")
    assert not publish_run(lists, "r3")
    assert roll_back(lists) == ("r4", "r2")
    for left in ("r3", "r4"):
        assert status(lists, left) == rolled_back(left)
        assert not publish_run(lists, left)
    assert roll_back(lists, "r1") == ("r2", "r1")
    assert [publish_run(lists, left) for left in ("r2", "r3", "r4")] == [False] * 3
    assert published_run_id(lists) == "r1"


def test_rollback_to_a_rolled_back_run_publishes_it_again(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")
    roll_back(lists)
    assert roll_back(lists, "r3") == ("r2", "r3")
    assert published_run_id(lists) == "r3"
    assert status(lists, "r2") == rolled_back("r2")
    complete(lists, "r4", 4)
    publish_run(lists, "r4")
    assert status(lists, "r3") == "no: a later night is published"  # it is not rolled back any more
    assert roll_back(lists) == ("r4", "r3")
    assert roll_back(lists, "r1") == ("r3", "r1")
    assert not publish_run(lists, "r2")
    assert not publish_run(lists, "r3")


# ------------------------------------------------------------------------------------------ damage

DAMAGED = (b"", b"{", b"[]", b'{"run_id": 3}', b'{"files": {}}', b"\xff\xfe", b"[" * 9999)


@pytest.mark.parametrize("name", [LATEST, RUN_MANIFEST, CLAIM])
def test_damaged_record_is_named(lists: Store, name: str) -> None:
    publish(lists, "r1", "r2")
    run = run_store(lists, "r2")
    store = lists if name == LATEST else run
    read: Callable[[], object] = {
        LATEST: lambda: publish_run(lists, "r1"),
        RUN_MANIFEST: lambda: read_complete_run(run),
        CLAIM: lambda: claim_run(run, "inputs"),
    }[name]
    intact = store.read_if_exists(name)
    for data in DAMAGED:
        store.write(name, data)
        with pytest.raises(InputError, match=f"{name} is damaged"):
            read()
    if intact is not None:
        store.write(name, intact[0])
    assert read_complete_run(run) is not None  # no shard was removed as a stray file
