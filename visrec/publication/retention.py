"""Old runs are removed, but never one that is published or that somebody is completing.

The steps for a complete run, in an order that a kill at any point leaves safe:

1. Its id is written into the pointer's file, where nobody takes it back. From then on no
   publication and no rollback goes to it.
2. Its claim is replaced, so that no writer goes on.
3. Its manifest is removed, then its files.
4. Its id is taken out of the pointer's file.
5. Its claim is removed. The run can be made again.

A run without a manifest cannot be published, so replacing its claim is enough.

The next retention finishes a removal that was interrupted. A store has no conditional delete, and
nobody can distinguish a process that was killed from one that is slow: that process may have one
more delete under way, of a name that the run would use when it is made again. So whoever finishes
the removal of another process leaves the claim, and the run cannot be made again until a later
retention finds nothing but the claim.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date

from visrec.errors import InputError
from visrec.publication.claims import CLAIM, State, read_claim, removal_claim
from visrec.publication.manifest import MANIFEST, remove_stray_files
from visrec.publication.pointer import read_pointer, read_published_manifest, replace_pointer
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store


def remove_old_runs(recommendations: Store, keep: int, tonight: str | None = None) -> list[str]:
    """Removes all but the newest nights, with all their files, and returns the ids of those.

    A night is a run whose id is a date. The published run and the one before it stay, and so does a
    run that somebody is completing. Files of the published run that its manifest does not name are
    removed, too.

    Args:
        recommendations: where the runs are.
        keep: how many nights stay, complete or not.
        tonight: a night that stays, however old it is, unless its removal has begun.
    """
    pointer, _ = read_pointer(recommendations)
    if published := read_published_manifest(recommendations, say=lambda _: None):
        remove_stray_files(run_store(recommendations, str(pointer.run_id)), published)
    files = {entry.name for entry in recommendations.list("run=")}
    runs = {name.partition("/")[0].removeprefix("run=") for name in files}
    nights = sorted(filter(_is_date, runs), reverse=True)
    complete = {night for night in nights if f"run={night}/{MANIFEST}" in files}
    spared = {*nights[:keep], tonight, pointer.run_id, pointer.previous_run_id}
    incomplete = {
        night
        for night in set(nights) - complete
        if night not in spared or _read_state(run_store(recommendations, night))[0] == "removed"
    }
    removing = _mark_as_removing(recommendations, complete - spared)
    removed, finished = [], {}
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
    """Writes complete runs into the pointer's file as runs to remove, except those that it names.

    Where nothing is published no run is removed: without the file nothing would stop a first
    publication of such a run.

    Returns:
        All runs that the file has as runs to remove, with the numbers of their removals.
    """
    while True:
        pointer, version = read_pointer(recommendations)
        named = {pointer.run_id, pointer.previous_run_id, *pointer.removing}
        new = sorted(set(run_ids) - named)
        if version is None or not new:
            return pointer.removing
        number = pointer.removals + 1
        removing = {**pointer.removing, **dict.fromkeys(new, number)}
        changed = replace(pointer, removing=removing, removals=number)
        if replace_pointer(recommendations, changed, version):
            return removing


def _unmark(recommendations: Store, removing: Mapping[str, int], finished: Collection[str]) -> None:
    """Takes runs out of the pointer's file whose removal is finished.

    Under another number a run was made again meanwhile, and its present removal is another one.
    """
    done = {(run_id, number) for run_id, number in removing.items() if run_id in finished}
    while True:
        pointer, version = read_pointer(recommendations)
        left = dict(pointer.removing.items() - done)
        if version is None or left == pointer.removing:
            return
        if replace_pointer(recommendations, replace(pointer, removing=left), version):
            return


def _remove_files(recommendations: Store, run_id: str) -> tuple[bool, bytes | None]:
    """Removes the files of a run, its manifest first, but not its claim.

    Returns:
        Whether there were files; and the claim if it is to be removed now, None if it stays.
    """
    run = run_store(recommendations, run_id)
    claim, was_begun = _take_claim(recommendations, run_id)
    if claim is None:
        return False, None
    had_files = False
    while names := [entry.name for entry in run.list() if entry.name != CLAIM]:
        for name in sorted(names, key=lambda name: (name != MANIFEST, name)):
            if not _has_claim(run, claim):  # another retention has taken the removal over
                return had_files, None
            run.delete([name])
            had_files = True
    return had_files, None if was_begun and had_files else claim


def _has_claim(run: Store, claim: bytes) -> bool:
    """Whether the claim of the run is still this one."""
    found = run.read_if_exists(CLAIM)
    return found is not None and found[0] == claim


def _take_claim(recommendations: Store, run_id: str) -> tuple[bytes | None, bool]:
    """Replaces the claim of a run, so that neither its writers nor another retention go on.

    A run without a manifest is left alone if it is sealed, since its manifest may come at any
    moment, or if its claim changes meanwhile, since somebody is writing it.

    Returns:
        The claim that was written, None if the run is left alone; and whether the removal had been
        begun before.
    """
    run, claim = run_store(recommendations, run_id), removal_claim()
    while True:
        # The version is read first: a claim that has changed since is not replaced.
        state, version = _read_state(run)
        is_complete = run.exists(MANIFEST)
        if state != "removed" and is_complete:
            if run_id not in read_pointer(recommendations)[0].removing:
                return None, False
        elif state == "sealed":
            return None, False
        if run.compare_and_swap(CLAIM, claim, version):
            return claim, state == "removed"
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
