"""The state machine of an export: killed anywhere, taken over, resumed, and what it writes."""

import dataclasses
from pathlib import Path

import pytest

from tests.chaos.harness import amount
from tests.exports.lists import Lists, made_lists, publish, seen
from tests.exports.memory_store import Killed, MemoryStore
from visrec.errors import ConflictError, InputError
from visrec.exports.generations import ExportReport, export_to_store
from visrec.exports.run_lists import RunKey, open_published_run
from visrec.exports.state import ExportState, Staging, parse_state
from visrec.publication.rollback import roll_back
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store

# Twelve users; three quarters of the lists never change.
RUNS: dict[str, Lists] = {f"r{n}": made_lists(12, n, changed=0.25) for n in range(1, 4)}


@pytest.fixture
def lists(tmp_path: Path) -> Store:
    """Where two runs are published, one after the other."""
    found = Store.at(str(tmp_path / "recommendations"))
    publish(found, "r1", RUNS["r1"])
    publish(found, "r2", RUNS["r2"])
    return found


def export(lists: Store, store: MemoryStore, *, only_changed: bool = True) -> ExportReport:
    """Exports what is published."""
    run = open_published_run(lists)
    return export_to_store(
        store, "memory", run, lists, only_changed=only_changed, before_shard=lambda *_: None
    )


def export_first(lists: Store) -> MemoryStore:
    """A store that has the first run; published is the second."""
    store = MemoryStore()
    roll_back(lists, "r1")
    export(lists, store)
    roll_back(lists, "r2")
    return store


def holds(store: MemoryStore, run_id: str) -> bool:
    """Whether the store has this run and nothing else."""
    return store.read_all() == seen(RUNS[run_id]) and len(store.entries) == len(RUNS[run_id])


# ------------------------------------------------------------------------------- what it writes


def test_first_export_writes_all_lists_and_a_second_one_nothing(lists: Store) -> None:
    store = MemoryStore()
    assert export(lists, store) == ExportReport(run_id="r2", written=12)
    assert holds(store, "r2")
    assert export(lists, store) == ExportReport(run_id="r2")
    assert store.written == 12


def test_only_changed_writes_what_differs_and_removes_what_is_gone(lists: Store) -> None:
    store = export_first(lists)
    before = dict(store.entries)
    report = export(lists, store)
    # Two users changed, one is new, and one is gone.
    expected = ExportReport(run_id="r2", written=3, unchanged=9, removed=1, old_entries=4)
    assert report == expected
    assert holds(store, "r2")
    assert len(before.items() & store.entries.items()) == 9


def test_whole_export_writes_everything_again_whatever_is_there(lists: Store) -> None:
    store = export_first(lists)
    assert export(lists, store, only_changed=False).written == 12
    del store.entries[next(iter(store.entries))]  # somebody tidied up
    assert export(lists, store, only_changed=False) == ExportReport(
        run_id="r2", written=12, old_entries=11
    )
    assert holds(store, "r2")


def test_whole_export_after_a_kill_between_switch_and_cleanup_repairs_the_store(
    lists: Store,
) -> None:
    store, kills = export_first(lists), 0
    state = parse_state(store.record, "memory")
    while state.run is None or state.run.run_id == "r1":  # until the kill comes after the switch
        kills += 1
        killed = dataclasses.replace(store, entries=dict(store.entries), lives=kills)
        with pytest.raises(Killed):
            export(lists, killed, only_changed=False)
        state = parse_state(killed.record, "memory")
    assert not state.is_swept
    killed.lives = -1
    del killed.entries["user 5", state.generation]  # somebody tidied up
    assert export(lists, killed, only_changed=False).written == 12
    assert holds(killed, "r2")


def test_rollback_and_export_bring_the_store_back(lists: Store) -> None:
    store = export_first(lists)
    export(lists, store)
    roll_back(lists, "r1")
    assert export(lists, store).written == 3
    assert holds(store, "r1")


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ("gone", "the run r1, which the store held, is not in the workspace any more"),
        ("shards", "the run r1, which the store held, has another number of shards"),
        ("damaged", "the run r1, which the store held, can no longer be read"),
    ],
)
def test_all_lists_are_written_where_changes_are_unknown(
    tmp_path: Path, change: str, note: str
) -> None:
    lists, store = Store.at(str(tmp_path / "recommendations")), MemoryStore()
    publish(lists, "r1", RUNS["r1"], shards=2 if change == "shards" else 3)
    export(lists, store)
    publish(lists, "r2", RUNS["r2"])
    run = run_store(lists, "r1")
    if change == "gone":
        run.delete_all()
    if change == "damaged":  # the last file: the first shards were compared by then
        name = sorted(entry.name for entry in run.list("part-"))[-1]
        run.write(name, run.read(name)[:-1])
    report = export(lists, store)
    assert (report.written, report.unchanged) == (12, None)
    assert report.note is not None
    assert report.note.startswith(note)
    assert holds(store, "r2")


# --------------------------------------------------------------------------------- killed, resumed


@pytest.mark.parametrize("only_changed", [True, False])
def test_export_killed_at_any_moment_and_followed_by_any_other_leaves_one_run(
    lists: Store, only_changed: bool
) -> None:
    start, kills = export_first(lists), 0
    publish(lists, "r3", RUNS["r3"])
    roll_back(lists, "r2")
    while True:
        killed = dataclasses.replace(start, entries=dict(start.entries), lives=kills)
        try:
            export(lists, killed, only_changed=only_changed)
            break
        except Killed:
            kills += amount(3, 1)
        assert killed.read_all() in (seen(RUNS["r1"]), seen(RUNS["r2"]))
        for next_run in ("r1", "r2", "r3"):
            if next_run != "r2":
                roll_back(lists, next_run)
            for mode in (True, False):
                store = dataclasses.replace(killed, entries=dict(killed.entries), lives=-1)
                export(lists, store, only_changed=mode)
                assert holds(store, next_run), (kills, next_run, mode)
                state = parse_state(store.record, "memory")
                assert state.is_swept
                assert state.staging is None
            if next_run != "r2":
                roll_back(lists, "r2")
    assert kills > 10


def test_resumed_export_writes_only_the_shards_that_are_missing(lists: Store) -> None:
    # The records of the cleanup and of the start; the lists; two shards.
    store = MemoryStore(lives=2 + 12 + 2)
    with pytest.raises(Killed):
        export(lists, store, only_changed=False)
    assert store.read_all() == {}
    state = parse_state(store.record, "memory")
    assert state.staging is not None
    done = state.staging.shards_done
    assert done > 0
    store.lives, before = -1, store.written
    assert export(lists, store, only_changed=False).written == 12
    assert 0 < store.written - before < 12
    assert holds(store, "r2")


def test_export_that_was_taken_over_can_neither_switch_nor_show_what_it_writes(
    lists: Store,
) -> None:
    store = export_first(lists)

    class Suspended(MemoryStore):
        """The same store, to a process that is suspended before the record of its first shard."""

        def read_state(self) -> bytes | None:
            return store.read_state()

        def swap_state(self, before: bytes | None, after: ExportState) -> bool:
            if after.staging is not None and after.staging.shards_done == 1:
                publish(lists, "r3", RUNS["r3"])
                export(lists, store)
            return store.swap_state(before, after)

    with pytest.raises(ConflictError, match="Another process exports to memory"):
        export(lists, Suspended(entries=store.entries))
    assert holds(store, "r3")
    # Something of it arrives late: it is seen neither now nor after the next exports.
    for id in RUNS["r1"]:
        store.entries[id, 2] = "[]"
    assert store.read_all() == seen(RUNS["r3"])
    roll_back(lists, "r1")
    export(lists, store)
    assert holds(store, "r1")


def test_run_with_a_damaged_file_is_not_exported_and_readers_keep_theirs(lists: Store) -> None:
    store = export_first(lists)
    run = run_store(lists, "r2")
    name = sorted(entry.name for entry in run.list("part-"))[-1]
    run.write(name, bytes([*run.read(name)[:-1], 0]))
    with pytest.raises(InputError, match="is not the file that the manifest names"):
        export(lists, store)
    assert store.read_all() == seen(RUNS["r1"])


# ------------------------------------------------------------------------------------- the record


def test_state_is_read_as_it_was_written() -> None:
    staging = Staging(run=RunKey("r2", "ab"), only_changed=True, shards_done=3, written=5)
    run = RunKey("r1", "cd")
    state = ExportState(run=run, generation=7, since=3, issued=8, staging=staging)
    assert parse_state(state.to_json(), "memory") == state


@pytest.mark.parametrize("record", [b"{}", b"[]", b"not JSON", b'{"version": 1}'])
def test_record_of_another_program_is_refused(record: bytes) -> None:
    with pytest.raises(InputError, match="memory is damaged"):
        parse_state(record, "memory")
