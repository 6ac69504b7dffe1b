"""Old nights are removed, and never one that is published or in progress, on either store."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest

from tests.chaos.harness import damaged_files, run_contents
from tests.publication.runs import PASSED, draft_manifest, published_run_id, write_files
from visrec.errors import ConflictError, StorageError
from visrec.publication.claims import CLAIM, claim_run, seal
from visrec.publication.completion import finish_run
from visrec.publication.manifest import RUN_MANIFEST, ShardFile, read_run_manifest
from visrec.publication.pointer import read_pointer
from visrec.publication.publish import publication_status, publish_run
from visrec.publication.retention import remove_old_runs
from visrec.publication.rollback import roll_back
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store

DATES = [f"2026-11-{day:02}" for day in (1, 2, 3, 5, 8, 13, 21)]
NO_DATES = {"whole", "20261101", "2026-W47-7", "2026-11-1", "2026-13-01", "2026-10-01T03:00", "a-b"}


@pytest.fixture
def lists(store: Store) -> Store:
    """Where recommendations are published, empty."""
    return store / "recommendations"


def unfinished(lists: Store, run_id: str) -> dict[str, ShardFile]:
    """The files of a run without a manifest."""
    return write_files(run_store(lists, run_id), run_contents(run_id, size=66))


def complete(lists: Store, run_id: str, cutoff: float | None = None) -> None:
    files = unfinished(lists, run_id)
    draft = draft_manifest(run_id=run_id, files=files, cutoff_timestamp=cutoff)
    finish_run(run_store(lists, run_id), draft, [PASSED])


def history(lists: Store) -> None:
    """Nights, the second of which was never completed, and runs of other names."""
    for second, run_id in enumerate(DATES):
        if run_id == DATES[1]:
            unfinished(lists, run_id)
        else:
            complete(lists, run_id, second)
    for run_id in NO_DATES:
        complete(lists, run_id)


def runs(lists: Store) -> set[str]:
    """Runs that have any file."""
    return {entry.name.partition("/")[0].removeprefix("run=") for entry in lists.list("run=")}


@dataclass(frozen=True)
class Recorder(Store):
    """A store that records what was deleted, and fails after a number of deletions."""

    deleted: list[str] = field(default_factory=list)
    most: int | None = None

    def failing_after(self, count: int) -> "Recorder":
        return replace(self, most=count)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self.deleted) == self.most:
                raise StorageError("the store is gone")
            super().delete([name])
            self.deleted.append(f"{self.name}/{name}")


@pytest.mark.parametrize(("keep", "gone"), [(2, 5), (4, 3), (7, 0), (99, 0)])
def test_newest_nights_stay_and_every_run_of_another_name(
    lists: Store, keep: int, gone: int
) -> None:
    history(lists)
    publish_run(lists, DATES[5])
    publish_run(lists, DATES[6])
    assert remove_old_runs(lists, keep) == DATES[:gone]
    assert runs(lists) == {*DATES[gone:], *NO_DATES}
    assert remove_old_runs(lists, keep) == []
    assert published_run_id(lists) == DATES[6]


def test_published_night_and_the_one_before_stay_however_old(lists: Store) -> None:
    history(lists)
    publish_run(lists, DATES[0])
    publish_run(lists, DATES[2])
    assert remove_old_runs(lists, 2) == [DATES[1], DATES[3], DATES[4]]
    assert runs(lists) == {DATES[0], DATES[2], *DATES[5:], *NO_DATES}
    assert roll_back(lists) == (DATES[2], DATES[0])
    assert published_run_id(lists) == DATES[0]
    # A night that was rolled back is removed like any other.
    assert remove_old_runs(lists, 2) == [DATES[2]]
    assert published_run_id(lists) == DATES[0]


@pytest.mark.parametrize("tonight", [0, 1, 6])
def test_night_in_progress_stays_however_old(lists: Store, tonight: int) -> None:
    """Complete or not: the job that fills it in still asks for its status."""
    history(lists)
    publish_run(lists, DATES[6])
    old = [night for night in DATES[:4] if night != DATES[tonight]]
    assert remove_old_runs(lists, 3, DATES[tonight]) == old
    assert runs(lists) == {*DATES, *NO_DATES} - {*old}
    if tonight == 0:
        status = publication_status(lists, DATES[0])
        assert status.summary == "no: a later night is published"


def test_incomplete_nights_count_as_nights(lists: Store) -> None:
    for run_id in DATES[:3]:
        unfinished(lists, run_id)
    assert remove_old_runs(lists, 2) == [DATES[0]]
    assert runs(lists) == set(DATES[1:3])


def test_nothing_is_removed_from_an_empty_store(lists: Store) -> None:
    assert remove_old_runs(lists, 2) == []


def test_manifest_is_removed_first_and_the_claim_last(lists: Store) -> None:
    history(lists)
    publish_run(lists, DATES[6])
    run_store(lists, DATES[0]).write("other/part-00000.parquet", b"a file of another name")
    files = {entry.name for entry in lists.list("run=")}
    recorder = Recorder(lists.root, lists.endpoint)
    assert remove_old_runs(recorder, 3) == DATES[:4]
    for run_id in DATES[:4]:
        deleted = [name for name in recorder.deleted if name.startswith(f"run={run_id}/")]
        assert (deleted[0] == f"run={run_id}/{RUN_MANIFEST}") == (run_id != DATES[1])
        assert deleted[-1] == f"run={run_id}/{CLAIM}"
        assert {name for name in files if name.startswith(f"run={run_id}/")} <= set(deleted)
    assert {name.partition("/")[0] for name in recorder.deleted} == {f"run={d}" for d in DATES[:4]}


def test_interrupted_removal_leaves_no_half_night_and_is_finished_the_next_time(
    lists: Store,
) -> None:
    """Whoever finishes the removal of another process leaves the claim for the retention after."""
    history(lists)
    publish_run(lists, DATES[6])
    failing = Recorder(lists.root, lists.endpoint).failing_after(2)
    with pytest.raises(StorageError, match="the store is gone"):
        remove_old_runs(failing, 3)
    assert len(failing.deleted) == 2
    for run_id in DATES[:4]:
        run = run_store(lists, run_id)
        manifest = read_run_manifest(run)
        assert manifest is None or not damaged_files(run, manifest)
    stopped = {entry.name for entry in lists.list(f"run={DATES[0]}/")}
    assert stopped < {f"run={DATES[0]}/{name}" for name in (*run_contents(DATES[0]), CLAIM)}
    assert remove_old_runs(lists, 3) == DATES[:4]
    assert [entry.name for entry in lists.list(f"run={DATES[0]}/")] == [f"run={DATES[0]}/{CLAIM}"]
    with pytest.raises(ConflictError, match="Retention is removing"):
        claim_run(run_store(lists, DATES[0]), "inputs")
    assert remove_old_runs(lists, 99) == []  # whatever is kept now, what was begun is finished
    assert runs(lists) == {*DATES[4:], *NO_DATES}
    assert not read_pointer(lists)[0].removing


def test_sealed_night_stays(lists: Store) -> None:
    """Its manifest may come at any moment."""
    history(lists)
    claim_run(run_store(lists, DATES[1]), "inputs")
    seal(run_store(lists, DATES[1]), "inputs")
    assert remove_old_runs(lists, 3) == []  # nothing is published either
    publish_run(lists, DATES[6])
    assert remove_old_runs(lists, 3) == [DATES[0], DATES[2], DATES[3]]
