"""The pointer moves to complete runs, forward only, and never to half a run, on either store."""

import itertools
from typing import Any

import numpy as np
import pytest

from tests.publication.runs import PASSED, draft_manifest, published_run_id, write_files
from tests.storage.test_conditional_writes import in_threads
from visrec.errors import ConflictError, InputError
from visrec.publication.completion import finish_run
from visrec.publication.manifest import RUN_MANIFEST, RunManifest
from visrec.publication.pointer import LATEST, read_published
from visrec.publication.publish import publication_status, publish_run
from visrec.publication.rollback import roll_back
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store


@pytest.fixture
def lists(store: Store) -> Store:
    """Where recommendations are published, empty."""
    return store / "recommendations"


def complete(lists: Store, run_id: str, cutoff: float | None = None) -> RunManifest:
    """A complete run with a cutoff; its files are unlike those of any other run."""
    run = run_store(lists, run_id)
    files = write_files(run, {"part-00000.parquet": run_id.encode()})
    draft = draft_manifest(run_id=run_id, files=files, cutoff_timestamp=cutoff)
    return finish_run(run, draft, [PASSED])[0]


def status(lists: Store, run_id: str) -> str:
    return publication_status(lists, run_id).summary


# ---------------------------------------------------------------------------------- any next run


def test_pointer_moves_to_a_run_and_on_to_the_next(lists: Store) -> None:
    for run_id in ("r1", "r2", "r3"):
        complete(lists, run_id)
    assert publish_run(lists, "r1")
    assert published_run_id(lists) == "r1"
    assert lists.read_json(LATEST)["previous_run_id"] is None
    assert publish_run(lists, "r2")
    assert publish_run(lists, "r3")
    assert published_run_id(lists) == "r3"
    assert lists.read_json(LATEST)["previous_run_id"] == "r2"
    # And to an earlier one, where no run has a cutoff.
    assert publish_run(lists, "r2")
    assert published_run_id(lists) == "r2"
    assert lists.read_json(LATEST)["previous_run_id"] == "r3"


def test_last_publication_is_the_run_that_the_pointer_names(lists: Store) -> None:
    assert read_published(lists, print)[1] is None
    first = complete(lists, "r1")
    assert read_published(lists, print)[1] is None
    publish_run(lists, "r1")
    complete(lists, "r2")
    assert read_published(lists, print)[1] == first


@pytest.mark.parametrize(
    ("data", "problem"),
    [(None, "is missing"), (b"{}", "is not what was published")],
    ids=["missing", "changed"],
)
def test_last_publication_without_its_manifest_counts_as_absent(
    lists: Store, data: bytes | None, problem: str
) -> None:
    complete(lists, "r1")
    publish_run(lists, "r1")
    run_store(lists, "r1").delete([RUN_MANIFEST])
    if data is not None:
        run_store(lists, "r1").write(RUN_MANIFEST, data)
    messages: list[str] = []
    assert read_published(lists, messages.append)[1] is None
    assert problem in messages[0]


def test_publishing_the_published_run_changes_nothing(lists: Store) -> None:
    complete(lists, "r1")
    publish_run(lists, "r1")
    before = lists.read_versioned(LATEST)
    assert not publish_run(lists, "r1")
    assert lists.read_versioned(LATEST) == before


def test_run_that_is_not_complete_is_not_published(lists: Store) -> None:
    complete(lists, "r1")
    publish_run(lists, "r1")
    write_files(run_store(lists, "half"), {"part-00000.parquet": b"lists"})
    assert not publish_run(lists, "half")
    assert status(lists, "half") == "no: it is not complete, or retention has removed it"
    assert published_run_id(lists) == "r1"


def test_run_with_a_damaged_manifest_is_not_published(lists: Store) -> None:
    complete(lists, "r1")
    run = run_store(lists, "r1")
    run.write(RUN_MANIFEST, run.read(RUN_MANIFEST).replace(b'"r1"', b'"r2"'))
    with pytest.raises(InputError, match="is damaged"):
        publish_run(lists, "r1")
    assert not lists.exists(LATEST)


# ------------------------------------------------------------------------------------------- races


@pytest.mark.parametrize("from_nothing", [True, False])
def test_pointer_that_moved_after_it_was_read_is_not_overwritten(
    lists: Store, monkeypatch: pytest.MonkeyPatch, from_nothing: bool
) -> None:
    for run_id in ("before", "mine", "theirs"):
        complete(lists, run_id)
    if not from_nothing:
        publish_run(lists, "before")
    # The other writer comes right after the read of the pointer by which this one decides.
    read = Store.read_if_exists

    def read_and_lose_the_race(store: Store, name: str) -> Any:
        found = read(store, name)
        if name == LATEST:
            monkeypatch.setattr(Store, "read_if_exists", read)
            assert publish_run(lists, "theirs")
        return found

    monkeypatch.setattr(Store, "read_if_exists", read_and_lose_the_race)
    with pytest.raises(ConflictError, match="Another run moved"):
        publish_run(lists, "mine")
    assert published_run_id(lists) == "theirs"


@pytest.mark.parametrize("from_nothing", [True, False])
def test_race_for_the_pointer_ends_with_an_intact_run(lists: Store, from_nothing: bool) -> None:
    runs = [f"r{n}" for n in range(8)]
    for run_id in ("before", *runs):
        complete(lists, run_id)
    if not from_nothing:
        publish_run(lists, "before")

    def move(n: int) -> bool | ConflictError:
        try:
            return publish_run(lists, runs[n])
        except ConflictError as error:
            return error

    outcome = in_threads(8, move)
    moved = {run_id for run_id, one in zip(runs, outcome, strict=True) if one is True}
    assert moved
    assert published_run_id(lists) in moved
    for lost in (one for one in outcome if one is not True):
        assert isinstance(lost, ConflictError)
        assert "run the job again with the same --run_id" in str(lost)


def test_every_writer_of_a_race_that_tries_again_moves_the_pointer(lists: Store) -> None:
    runs = [f"r{n}" for n in range(4)]
    for run_id in runs:
        complete(lists, run_id)

    def until_moved(n: int) -> str | None:
        while True:
            try:
                publish_run(lists, runs[n])
                return runs[n]
            except ConflictError:
                continue

    assert in_threads(4, until_moved) == runs
    published = published_run_id(lists)
    assert published in runs
    assert lists.read_json(LATEST)["previous_run_id"] in set(runs) - {published}


# ----------------------------------------------------------------------------------------- cutoffs


@pytest.mark.parametrize(
    ("published", "cutoff", "moves"),
    [
        *((10, 9, False), (10, 10, True), (9, 10, True), (10.5, 10, False), (1, 0, False)),
        *((None, 10, True), (10, None, True), (None, None, True), (None, 0, True)),
    ],
)
def test_pointer_does_not_move_to_a_run_with_an_earlier_cutoff(
    lists: Store, published: float | None, cutoff: float | None, moves: bool
) -> None:
    complete(lists, "published", published)
    publish_run(lists, "published")
    complete(lists, "mine", cutoff)
    why_not = "the pointer has not moved to it" if moves else "a later night is published"
    assert status(lists, "mine") == f"no: {why_not}"
    assert publish_run(lists, "mine") == moves
    assert published_run_id(lists) == ("mine" if moves else "published")
    assert status(lists, published_run_id(lists)) == "yes"


def test_pointer_without_optional_fields_is_read(lists: Store) -> None:
    complete(lists, "old")
    assert publish_run(lists, "old")
    optional = ("cutoff_timestamp", "rolled_back")
    old = {key: v for key, v in lists.read_json(LATEST).items() if key not in optional}
    lists.write_json(LATEST, old)
    complete(lists, "new", 1)
    assert publish_run(lists, "new")
    assert roll_back(lists) == ("new", "old")


@pytest.mark.parametrize("seed", range(3))
def test_nights_filled_in_in_any_order_end_with_the_latest(lists: Store, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(8).tolist()
    for second, latest in zip(order, itertools.accumulate(order, max), strict=True):
        complete(lists, f"r{second}", second)
        assert publish_run(lists, f"r{second}") == (second == latest)
        assert published_run_id(lists) == f"r{latest}"


def test_run_without_a_cutoff_does_not_let_old_nights_follow(lists: Store) -> None:
    """A run of all interactions is published by hand, then a night is backfilled."""
    for second, run_id in enumerate(("monday", "tuesday"), 1):
        complete(lists, run_id, second)
        assert publish_run(lists, run_id)
    complete(lists, "by-hand")
    assert publish_run(lists, "by-hand")
    complete(lists, "sunday", 0)
    assert not publish_run(lists, "sunday")
    assert status(lists, "sunday") == "no: a later night is published"
    complete(lists, "wednesday", 3)
    assert publish_run(lists, "wednesday")
    # Nor after a rollback to it: its cutoff is that of the publication before it.
    assert roll_back(lists, "by-hand") == ("wednesday", "by-hand")
    complete(lists, "saturday", -1)
    assert not publish_run(lists, "saturday")
    assert not publish_run(lists, "sunday")
    assert published_run_id(lists) == "by-hand"
    complete(lists, "thursday", 4)
    assert publish_run(lists, "thursday")


# ------------------------------------------------------------------------------------------ run ids


@pytest.mark.parametrize("run_id", ["2026-11-22", "2026-11-22T03:00", "a.b_C-9", "x" * 64])
def test_run_id_is_in_the_name_of_the_folder(run_id: str) -> None:
    assert run_store(Store("/lists"), run_id) == Store(f"/lists/run={run_id}")


@pytest.mark.parametrize(
    "run_id",
    ["", ".", "..", ".hidden", "a/b", "../up", "two words", "é", "a\n", "a%2F", "a\\b", "²"],
)
def test_run_id_that_cannot_be_a_folder_is_refused(run_id: str) -> None:
    with pytest.raises(InputError) as caught:
        run_store(Store("/lists"), run_id)
    assert f"Found --run_id {run_id!r}; expected letters, digits" in str(caught.value)
