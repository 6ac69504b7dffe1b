"""Removes old runs, but never the published one, the one before it, or a sealed run without a
manifest.

A complete run is removed in these steps. The process may be killed at any point between them:

1. The run's id is written into `removing` of the pointer's file. From then on no publication and no
   rollback moves the pointer to the run.
2. The run's claim is replaced, so that its writers stop.
3. The run's manifest is removed, then its other files.
4. The run's id is taken out of `removing`, which nothing else does.
5. The run's claim is removed. From then on the run can be made again.

A run without a manifest cannot be published, so it needs only steps 2, 3 and 5. Its job, if it is
at work, finds at its next file that it has lost the claim.

The next retention finishes a removal that was interrupted. It cannot know whether the first process
was killed or is only slow. A slow one may still delete one more file, because a store has no
conditional delete, and a run that was made again by then would lose a file of that name. So
whoever finishes another's removal leaves the claim, which blocks the run. A later retention, which
finds only the claim, removes it.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date

from visrec.errors import InputError
from visrec.publication.claims import CLAIM, State, read_claim, removal_claim
from visrec.publication.manifest import RUN_MANIFEST, remove_stray_files
from visrec.publication.pointer import read_pointer, read_published, replace_pointer
from visrec.publication.run_spec import run_store
from visrec.publication.tables import read_settled_pointer
from visrec.storage.store import Store


def remove_old_runs(recommendations: Store, keep: int, tonight: str | None = None) -> list[str]:
    """Removes all nights but the newest, and returns the ids of the removed ones.

    A night is a run whose id is a date. The published run, the run before it and sealed runs
    without a manifest are never removed. Files of the published run that its manifest does not name
    are removed, too.

    Args:
        recommendations: where the runs are.
        keep: how many nights to keep, complete or not.
        tonight: a night to keep, however old it is, unless its removal has begun. A backfilled
            night is not removed by its own start; another night's retention removes it if `keep`
            nights are newer.
    """
    pointer, manifest = read_published(recommendations)
    if manifest is not None:
        remove_stray_files(run_store(recommendations, str(pointer.run_id)))
    files = {entry.name for entry in recommendations.list("run=")}
    runs = {name.partition("/")[0].removeprefix("run=") for name in files}
    nights = sorted(filter(_is_date, runs), reverse=True)
    complete = {night for night in nights if f"run={night}/{RUN_MANIFEST}" in files}
    spared = {*nights[:keep], tonight, pointer.run_id, pointer.previous_run_id}
    incomplete = {
        night
        for night in set(nights) - complete
        if night not in spared or _read_state(run_store(recommendations, night))[0] == "removed"
    }
    removing = _mark_as_removing(recommendations, complete - spared)
    removed = []
    finished = {}
    for run_id in sorted({*incomplete, *removing}):
        had_files, claim = _remove_files(recommendations, run_id)
        if had_files:
            removed.append(run_id)
        if claim is not None:
            finished[run_id] = claim
    _unmark(recommendations, removing, finished)
    for run_id, claim in finished.items():
        run = run_store(recommendations, run_id)
        if _has_claim(run, claim):
            run.delete([CLAIM])
            recommendations.delete_empty_folder(f"run={run_id}")
    return removed


def _mark_as_removing(recommendations: Store, run_ids: Collection[str]) -> Mapping[str, int]:
    """Writes complete runs into `removing` of the pointer's file, except those that it points to.

    If nothing is published, there is no pointer's file, and no complete run is removed: nothing
    would keep another process from publishing it. `read_settled_pointer` brings tables up to date
    first, so no table names a removed run.

    Returns:
        All of `removing`: runs, each with the number of its removal.
    """
    while True:
        pointer, version = read_settled_pointer(recommendations)
        named = {pointer.run_id, pointer.previous_run_id, *pointer.removing}
        new = sorted(set(run_ids) - named)
        if version is None or not new:
            return pointer.removing
        number = pointer.removals + 1
        removing = {**pointer.removing, **dict.fromkeys(new, number)}
        rewriting = {run: sha for run, sha in pointer.rewriting.items() if run not in new}
        changed = replace(pointer, removing=removing, rewriting=rewriting, removals=number)
        if replace_pointer(recommendations, changed, version):
            return removing


def _unmark(recommendations: Store, removing: Mapping[str, int], finished: Collection[str]) -> None:
    """Takes the runs whose removal is finished out of `removing` of the pointer's file.

    A run with another number there stays: it has been made again, and its next removal has begun.
    """
    done = {(run_id, number) for run_id, number in removing.items() if run_id in finished}
    while True:
        pointer, version = read_pointer(recommendations)
        remaining = dict(pointer.removing.items() - done)
        if version is None or remaining == pointer.removing:
            return
        if replace_pointer(recommendations, replace(pointer, removing=remaining), version):
            return


def _remove_files(recommendations: Store, run_id: str) -> tuple[bool, bytes | None]:
    """Removes the files of a run, its manifest first, but not its claim.

    Returns:
        Whether there were files; and the claim if it may be removed now, otherwise None.
    """
    run = run_store(recommendations, run_id)
    claim, begun_by_another = _take_claim(recommendations, run_id)
    if claim is None:
        return False, None
    had_files = False
    while names := [entry.name for entry in run.list() if entry.name != CLAIM]:
        for name in sorted(names, key=lambda name: (name != RUN_MANIFEST, name)):
            if not _has_claim(run, claim):  # another retention now does this removal
                return had_files, None
            run.delete([name])
            had_files = True
    return had_files, None if begun_by_another and had_files else claim


def _has_claim(run: Store, claim: bytes) -> bool:
    """Whether the claim of the run is still this one."""
    found = run.read_if_exists(CLAIM)
    return found is not None and found[0] == claim


def _take_claim(recommendations: Store, run_id: str) -> tuple[bytes | None, bool]:
    """Replaces the claim of a run, so that its writers and every other retention stop.

    A run without a manifest is left alone if it is sealed, because its manifest may be written at
    any moment, or if its claim changes meanwhile, because somebody is writing it.

    Returns:
        The claim that was written, None if the run is left alone; and whether another process, a
        retention or `forget.py`, had begun to remove files.
    """
    run = run_store(recommendations, run_id)
    claim = removal_claim()
    while True:
        # The version is read before anything else, so that a claim that changes is not replaced.
        state, version = _read_state(run)
        is_complete = run.exists(RUN_MANIFEST)
        if state != "removed" and is_complete:
            if run_id not in read_pointer(recommendations)[0].removing:
                return None, False
        elif state == "sealed":
            return None, False
        if run.compare_and_swap(CLAIM, claim, version):
            return claim, state in ("removed", "forgetting")
        if not is_complete:
            return None, False


def _read_state(run: Store) -> tuple[State | None, str | None]:
    """The state of a claim, None where there is no claim, and the version of its file.

    A damaged claim may have any state, so it counts as sealed.
    """
    try:
        claim, version = read_claim(run)
    except InputError:
        return "sealed", (run.read_if_exists(CLAIM) or (b"", None))[1]
    return (None if claim is None else claim.state), version


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
