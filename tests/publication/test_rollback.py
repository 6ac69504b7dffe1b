"""The pointer goes back when it is told to, forward by itself; old nights go, on either store."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from tests.chaos.harness import PASSED, contents_of, damage, shards_of
from visrec.errors import ConflictError, InputError, StorageError
from visrec.publication.claims import CLAIM, claim, seal
from visrec.publication.pointer import LATEST, read_pointer
from visrec.publication.retention import prune_runs
from visrec.publication.run import (
    MANIFEST,
    complete,
    find_complete,
    point_to,
    publication_status,
    read_last,
    read_published,
    roll_back,
    run_store,
)
from visrec.storage.store import Store

SHARD = "part-00001.parquet"


@pytest.fixture
def lists(store: Store) -> Store:
    """Where recommendations are published, empty."""
    return store / "recommendations"


def unfinished(lists: Store, run_id: str) -> Mapping[str, Any]:
    """A run's files without a manifest."""
    return shards_of(run_store(lists, run_id), contents_of(run_id, size=66))


def night(lists: Store, run_id: str, before: float | None = None) -> Mapping[str, Any]:
    """A complete run that knows the past before a second of Unix time, or all of it."""
    described = {**unfinished(lists, run_id), "before": before}
    return complete(run_store(lists, run_id), described, [PASSED])[0]


def publish(lists: Store, *run_ids: str) -> None:
    """One night after another, each a second on."""
    for second, run_id in enumerate(run_ids, 1):
        night(lists, run_id, second)
        assert point_to(lists, run_id)


def pointed_to(lists: Store) -> str:
    """The run that a reader finds, whole."""
    run_id = str(lists.read_json(LATEST)["run_id"])
    manifest = read_last(lists)
    assert manifest is not None
    assert not damage(run_store(lists, run_id), manifest)
    return run_id


def pointer(lists: Store) -> tuple[bytes, str] | None:
    return lists.read_versioned(LATEST) if lists.exists(LATEST) else None


def runs(lists: Store) -> set[str]:
    """Runs of which any file is there."""
    return {entry.name.partition("/")[0].removeprefix("run=") for entry in lists.list("run=")}


# -------------------------------------------------------------------------------------------- back


def test_the_pointer_goes_back_to_the_run_before(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")
    assert roll_back(lists) == ("r3", "r2")
    assert pointed_to(lists) == "r2"
    assert [publication_status(lists, run) for run in ("r1", "r2", "r3")] == [
        "no: a later night is published", "yes", "no: it was rolled back"
    ]  # fmt: skip


def test_the_pointer_goes_back_to_a_run_by_its_name(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")
    assert roll_back(lists, "r1") == ("r3", "r1")
    assert pointed_to(lists) == "r1"
    # What was passed over was not left.
    assert publication_status(lists, "r2") == "no: the pointer has not moved to it"
    assert point_to(lists, "r2")
    assert not point_to(lists, "r3")


def lose(name: str) -> Callable[[Store], None]:
    return lambda lists: run_store(lists, "r2").delete([name])


def one_byte_other(lists: Store) -> None:
    run = run_store(lists, "r2")
    data = run.read(SHARD)
    run.write(SHARD, data[:-1] + bytes([data[-1] ^ 1]))


def two_nights(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")


REFUSED: Mapping[str, tuple[list[Callable[[Store], Any]], str | None, str]] = {
    "nothing was ever published": ([], None, "no publication at all"),
    "a run is there, but none was published": (
        [lambda lists: night(lists, "r2")], "r2", "no publication at all"),
    "there is no run before": (
        [lambda lists: publish(lists, "r1")], None, "no run before r1.*--run_id"),
    "an unknown run": ([two_nights], "r9", "no complete run at .*/run=r9"),
    "a run without a manifest": (
        [two_nights, lambda lists: unfinished(lists, "half")], "half", "no complete run"),
    "the run before was removed": ([two_nights, lose(MANIFEST)], None, "no complete run"),
    "the published one": ([two_nights], "r3", "the run that is published"),
    "an id that is no name": ([two_nights], "../r2", "--run_id '../r2'"),
    "a file of the run before is lost": (
        [two_nights, lose(SHARD)], None, f"run=r2/{SHARD} is not what the manifest says"),
    "a file of a named run is lost": (
        [two_nights, lose(SHARD)], "r2", f"run=r2/{SHARD} is not what the manifest says"),
    "a file has another byte": (
        [two_nights, one_byte_other], None, f"run=r2/{SHARD} is not what the manifest says"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_run_before_is_not_gone_back_to(lists: Store, name: str) -> None:
    prepare, run_id, message = REFUSED[name]
    for step in prepare:
        step(lists)
    before = pointer(lists)
    with pytest.raises(InputError, match=message):
        roll_back(lists, run_id)
    assert pointer(lists) == before


def test_a_pointer_moved_while_the_files_were_read_stays(
    lists: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(lists, "r1", "r2")
    night(lists, "theirs", 3)
    read = Store.read_if_exists

    def and_then_theirs(store: Store, name: str) -> Any:
        if name == SHARD:
            monkeypatch.setattr(Store, "read_if_exists", read)
            assert point_to(lists, "theirs")
        return read(store, name)

    monkeypatch.setattr(Store, "read_if_exists", and_then_theirs)
    with pytest.raises(ConflictError, match="Another run moved"):
        roll_back(lists)
    assert pointed_to(lists) == "theirs"


# ---------------------------------------------------------------------------------- what was left


def test_what_was_left_is_not_published_again_and_a_newer_night_is(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")
    roll_back(lists)
    for _ in range(2):
        before = pointer(lists)
        assert not point_to(lists, "r3")
        assert pointer(lists) == before
    night(lists, "r4", 4)
    assert publication_status(lists, "r4") == "no: the pointer has not moved to it"
    assert point_to(lists, "r4")
    assert pointed_to(lists) == "r4"
    assert lists.read_json(LATEST)["previous_run_id"] == "r2"
    assert not point_to(lists, "r3")


@pytest.mark.parametrize("before", [None, 9])
def test_what_was_left_stays_out_whatever_is_published_and_left_later(
    lists: Store, before: int | None
) -> None:
    """Also where all runs know the same of the past, so that none is earlier than another."""
    for run_id in ("r1", "r2", "r3"):
        night(lists, run_id, before)
        point_to(lists, run_id)
    assert roll_back(lists) == ("r3", "r2")
    night(lists, "r4", before)
    assert point_to(lists, "r4")
    assert publication_status(lists, "r3") == "no: it was rolled back"
    assert not point_to(lists, "r3")
    assert roll_back(lists) == ("r4", "r2")
    for left in ("r3", "r4"):
        assert publication_status(lists, left) == "no: it was rolled back"
        assert not point_to(lists, left)
    assert roll_back(lists, "r1") == ("r2", "r1")
    assert [point_to(lists, left) for left in ("r2", "r3", "r4")] == [False] * 3
    assert pointed_to(lists) == "r1"


def test_who_goes_back_to_what_was_left_has_it_again(lists: Store) -> None:
    publish(lists, "r1", "r2", "r3")
    roll_back(lists)
    assert roll_back(lists, "r3") == ("r2", "r3")
    assert pointed_to(lists) == "r3"
    assert publication_status(lists, "r2") == "no: it was rolled back"
    night(lists, "r4", 4)
    point_to(lists, "r4")
    assert publication_status(lists, "r3") == "no: a later night is published"  # and not: left
    assert roll_back(lists) == ("r4", "r3")
    assert roll_back(lists, "r1") == ("r3", "r1")
    assert not point_to(lists, "r2")
    assert not point_to(lists, "r3")


# ----------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize(
    ("published", "mine", "moves"),
    [
        *((10, 9, False), (10, 10, True), (9, 10, True), (10.5, 10, False), (1, 0, False)),
        *((None, 10, True), (10, None, True), (None, None, True), (None, 0, True)),
    ],
)
def test_the_pointer_does_not_go_to_who_knows_less_of_the_past(
    lists: Store, published: float | None, mine: float | None, moves: bool
) -> None:
    night(lists, "published", published)
    point_to(lists, "published")
    night(lists, "mine", mine)
    why_not = "the pointer has not moved to it" if moves else "a later night is published"
    assert publication_status(lists, "mine") == f"no: {why_not}"
    assert point_to(lists, "mine") == moves
    assert pointed_to(lists) == ("mine" if moves else "published")
    assert publication_status(lists, pointed_to(lists)) == "yes"


def test_runs_and_pointers_of_before_there_was_a_past_are_moved_on_from(lists: Store) -> None:
    run = run_store(lists, "old")
    complete(run, unfinished(lists, "old"), [PASSED])
    assert point_to(lists, "old")
    old = {k: v for k, v in lists.read_json(LATEST).items() if k not in ("before", "rolled_back")}
    lists.write_json(LATEST, old)
    night(lists, "new", 1)
    assert point_to(lists, "new")
    assert roll_back(lists) == ("new", "old")


@pytest.mark.parametrize("seed", range(3))
def test_nights_filled_in_in_any_order_end_with_the_latest(lists: Store, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(8).tolist()
    for second, latest in zip(order, itertools.accumulate(order, max), strict=True):
        night(lists, f"r{second}", second)
        assert point_to(lists, f"r{second}") == (second == latest)
        assert pointed_to(lists) == f"r{latest}"


# -------------------------------------------------------------------------------------- old nights

DATES = [f"2026-11-{day:02}" for day in (1, 2, 3, 5, 8, 13, 21)]
NO_DATES = {"whole", "20261101", "2026-W47-7", "2026-11-1", "2026-13-01", "2026-10-01T03:00", "a-b"}


@dataclass(frozen=True)
class Recorder(Store):
    """A store that remembers what was deleted, and dies once that is as much as it may."""

    deleted: list[str] = field(default_factory=list)
    most: int | None = None

    def dies_after(self, count: int) -> "Recorder":
        return replace(self, most=count)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self.deleted) == self.most:
                raise StorageError("the store is gone")
            super().delete([name])
            self.deleted.append(f"{self.name}/{name}")


def history(lists: Store) -> None:
    """Nights, of which the second never got complete, and runs of other names."""
    for second, run_id in enumerate(DATES):
        if run_id == DATES[1]:
            unfinished(lists, run_id)
        else:
            night(lists, run_id, second)
    for run_id in NO_DATES:
        night(lists, run_id)


@pytest.mark.parametrize(("keep", "gone"), [(2, 5), (4, 3), (7, 0), (99, 0)])
def test_the_newest_nights_stay_and_every_run_of_another_name(
    lists: Store, keep: int, gone: int
) -> None:
    history(lists)
    point_to(lists, DATES[5])
    point_to(lists, DATES[6])
    assert prune_runs(lists, keep) == DATES[:gone]
    assert runs(lists) == {*DATES[gone:], *NO_DATES}
    assert prune_runs(lists, keep) == []
    assert pointed_to(lists) == DATES[6]


def test_the_published_night_and_the_one_before_stay_however_old(lists: Store) -> None:
    history(lists)
    point_to(lists, DATES[0])
    point_to(lists, DATES[2])
    assert prune_runs(lists, 2) == [DATES[1], DATES[3], DATES[4]]
    assert runs(lists) == {DATES[0], DATES[2], *DATES[5:], *NO_DATES}
    assert roll_back(lists) == (DATES[2], DATES[0])
    assert pointed_to(lists) == DATES[0]
    # Rolled back, it is one as any other.
    assert prune_runs(lists, 2) == [DATES[2]]
    assert pointed_to(lists) == DATES[0]


@pytest.mark.parametrize("tonight", [0, 1, 6])
def test_the_night_at_work_stays_however_old(lists: Store, tonight: int) -> None:
    """Complete or not: who fills it in still asks how it stands."""
    history(lists)
    point_to(lists, DATES[6])
    old = [night for night in DATES[:4] if night != DATES[tonight]]
    assert prune_runs(lists, 3, DATES[tonight]) == old
    assert runs(lists) == {*DATES, *NO_DATES} - {*old}
    if tonight == 0:
        assert publication_status(lists, DATES[0]) == "no: a later night is published"


def test_nights_that_did_not_get_complete_are_nights(lists: Store) -> None:
    for run_id in DATES[:3]:
        unfinished(lists, run_id)
    assert prune_runs(lists, 2) == [DATES[0]]
    assert runs(lists) == set(DATES[1:3])


def test_where_nothing_is_nothing_is_removed(lists: Store) -> None:
    assert prune_runs(lists, 2) == []


def test_a_night_loses_its_manifest_first_and_then_every_file(lists: Store) -> None:
    history(lists)
    point_to(lists, DATES[6])
    run_store(lists, DATES[0]).write("marks/part-00000.parquet", b"whose lists they are")
    files = {entry.name for entry in lists.list("run=")}
    recorder = Recorder(lists.root, lists.endpoint)
    assert prune_runs(recorder, 3) == DATES[:4]
    for run_id in DATES[:4]:
        mine = [name for name in recorder.deleted if name.startswith(f"run={run_id}/")]
        assert (mine[0] == f"run={run_id}/{MANIFEST}") == (run_id != DATES[1])
        assert mine[-1] == f"run={run_id}/{CLAIM}"
        assert {name for name in files if name.startswith(f"run={run_id}/")} <= set(mine)
    assert {name.partition("/")[0] for name in recorder.deleted} == {f"run={d}" for d in DATES[:4]}


def test_a_removal_that_is_cut_off_leaves_no_half_night_and_is_done_the_next_time(
    lists: Store,
) -> None:
    """Who finishes the removal of another leaves the claim for the retention after that."""
    history(lists)
    point_to(lists, DATES[6])
    dying = Recorder(lists.root, lists.endpoint).dies_after(2)
    with pytest.raises(StorageError, match="the store is gone"):
        prune_runs(dying, 3)
    assert len(dying.deleted) == 2
    for run_id in DATES[:4]:
        run = run_store(lists, run_id)
        manifest = read_published(run)
        assert manifest is None or not damage(run, manifest)
    stopped = {entry.name for entry in lists.list(f"run={DATES[0]}/")}
    assert stopped < {f"run={DATES[0]}/{name}" for name in (*contents_of(DATES[0]), CLAIM)}
    assert prune_runs(lists, 3) == DATES[:4]
    assert [entry.name for entry in lists.list(f"run={DATES[0]}/")] == [f"run={DATES[0]}/{CLAIM}"]
    with pytest.raises(ConflictError, match="Retention is removing"):
        claim(run_store(lists, DATES[0]), "inputs")
    assert prune_runs(lists, 99) == []  # whatever stays now: what was begun is finished
    assert runs(lists) == {*DATES[4:], *NO_DATES}
    assert not read_pointer(lists)[0].removing


def test_a_night_that_somebody_is_completing_stays(lists: Store) -> None:
    history(lists)
    claim(run_store(lists, DATES[1]), "inputs")
    seal(run_store(lists, DATES[1]), "inputs")
    assert prune_runs(lists, 3) == []  # nothing is published either
    point_to(lists, DATES[6])
    assert prune_runs(lists, 3) == [DATES[0], DATES[2], DATES[3]]


def test_a_pointer_a_claim_or_a_manifest_that_is_damaged_is_named(lists: Store) -> None:
    publish(lists, "r1", "r2")
    run = run_store(lists, "r2")
    for place, name, use in (
        (lists, LATEST, lambda: point_to(lists, "r1")),
        (run, MANIFEST, lambda: find_complete(run)),
        (run, CLAIM, lambda: claim(run, "inputs")),
    ):
        whole = place.read(name) if place.exists(name) else None
        for damaged in (
            b"",
            b"{",
            b"[]",
            b'{"run_id": 3}',
            b'{"files": {}}',
            b"\xff\xfe",
            b"[" * 9999,
        ):
            place.write(name, damaged)
            with pytest.raises(InputError, match=f"{name} is damaged"):
                use()
        if whole is not None:
            place.write(name, whole)
    assert find_complete(run) is not None  # no shard was taken for a stray


def test_a_run_without_a_date_does_not_make_way_for_old_nights(lists: Store) -> None:
    """Somebody publishes a run of all interactions; a night is filled in; the next night comes."""
    publish(lists, "monday", "tuesday")
    night(lists, "by-hand")
    assert point_to(lists, "by-hand")
    night(lists, "sunday", 0)
    assert not point_to(lists, "sunday")
    assert publication_status(lists, "sunday") == "no: a later night is published"
    night(lists, "wednesday", 3)
    assert point_to(lists, "wednesday")
    # Nor where somebody goes back to it: it knows what was known when it was made.
    assert roll_back(lists, "by-hand") == ("wednesday", "by-hand")
    night(lists, "saturday", -1)
    assert not point_to(lists, "saturday")
    assert not point_to(lists, "sunday")
    assert pointed_to(lists) == "by-hand"
    night(lists, "thursday", 4)
    assert point_to(lists, "thursday")
