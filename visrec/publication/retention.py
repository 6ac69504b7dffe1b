"""Old nights are removed, and never one that is published or that somebody is completing.

A complete night is first written into the pointer's file, from which nobody takes it back: no
publication and no rollback goes to it from then on. Then its claim is replaced, so that no writer
goes on; then it loses its manifest and its files; then it leaves the pointer's file; at last it
loses its claim, and can be made again. A night without a manifest cannot be pointed to, so to
replace its claim is enough.

A removal that was stopped at any point is finished by the next one. A store has no conditional
delete, and nobody can tell a process that was killed from one that is only slow: it may have one
more delete under way, of a name that the night would have again when it is made again. So who
finishes the removal of another leaves the claim, and the night cannot be made again until a later
retention finds nothing but the claim.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date

from visrec.errors import InputError
from visrec.publication.claims import CLAIM, REMOVED, SEALED, read_claim, removal
from visrec.publication.pointer import read_pointer, replace_pointer
from visrec.publication.run import MANIFEST, read_last, remove_strays, run_store
from visrec.storage.store import Store


def prune_runs(recommendations: Store, keep: int, tonight: str | None = None) -> list[str]:
    """Removes the oldest nights beyond some, with all their files, and says which.

    A night is a run whose id is a date. The published run and the one before it stay, and so does a
    night that somebody is completing. Files that the published run's manifest does not name go.

    Args:
        recommendations: where the runs are.
        keep: how many nights stay, complete or not.
        tonight: a night that stays, however old it is, unless its removal has begun.
    """
    pointer, _ = read_pointer(recommendations)
    if published := read_last(recommendations, say=lambda _: None):
        remove_strays(run_store(recommendations, str(pointer.run_id)), published)
    files = {entry.name for entry in recommendations.list("run=")}
    runs = {name.partition("/")[0].removeprefix("run=") for name in files}
    nights = sorted(filter(_is_date, runs), reverse=True)
    complete = {night for night in nights if f"run={night}/{MANIFEST}" in files}
    spared = {*nights[:keep], tonight, pointer.run_id, pointer.previous_run_id}
    incomplete = {
        night
        for night in set(nights) - complete
        if night not in spared or _state(run_store(recommendations, night))[0] == REMOVED
    }
    doomed = _doom(recommendations, complete - spared)
    removed, finished = [], {}
    for run_id in sorted({*incomplete, *doomed}):
        had_files, claim = _empty(recommendations, run_id)
        if had_files:
            removed.append(run_id)
        if claim is not None:
            finished[run_id] = claim
    _forget(recommendations, doomed, finished)
    for run_id, claim in finished.items():
        run = run_store(recommendations, run_id)
        if _is(run, claim):
            run.delete([CLAIM])
            recommendations.delete_empty_folder(f"run={run_id}")
    return removed


def _doom(recommendations: Store, complete: Collection[str]) -> Mapping[str, int]:
    """Writes complete runs into the pointer's file as those to be removed, but for those that the
    pointer names; returns all that stand there, with the numbers of their removals.

    Where nothing is published none is removed: there is no file to meet a first publication in.
    """
    while True:
        pointer, version = read_pointer(recommendations)
        named = {pointer.run_id, pointer.previous_run_id, *pointer.removing}
        new = sorted(set(complete) - named)
        if version is None or not new:
            return pointer.removing
        number = pointer.removals + 1
        doomed = {**pointer.removing, **dict.fromkeys(new, number)}
        changed = replace(pointer, removing=doomed, removals=number)
        if replace_pointer(recommendations, changed, version):
            return doomed


def _forget(recommendations: Store, doomed: Mapping[str, int], finished: Collection[str]) -> None:
    """Takes runs out of the pointer's file whose removal is finished.

    Under another number a run was made again meanwhile, and its removal is not this one.
    """
    done = {(run_id, number) for run_id, number in doomed.items() if run_id in finished}
    while True:
        pointer, version = read_pointer(recommendations)
        left = dict(pointer.removing.items() - done)
        if version is None or left == pointer.removing:
            return
        if replace_pointer(recommendations, replace(pointer, removing=left), version):
            return


def _empty(recommendations: Store, run_id: str) -> tuple[bool, bytes | None]:
    """Removes a run's files, its manifest first; returns whether it had any, and the claim that is
    to go now, None where it is to stay."""
    run = run_store(recommendations, run_id)
    mine, was_begun = _fence(recommendations, run_id)
    if mine is None:
        return False, None
    had_files = False
    while names := [entry.name for entry in run.list() if entry.name != CLAIM]:
        for name in sorted(names, key=lambda name: (name != MANIFEST, name)):
            if not _is(run, mine):  # another retention has taken the removal over
                return had_files, None
            run.delete([name])
            had_files = True
    return had_files, None if was_begun and had_files else mine


def _is(run: Store, claim: bytes) -> bool:
    """Whether the run's claim is still this one."""
    found = run.read_if_exists(CLAIM)
    return found is not None and found[0] == claim


def _fence(recommendations: Store, run_id: str) -> tuple[bytes | None, bool]:
    """Replaces a run's claim, so that neither its writers nor another retention go on.

    A run without a manifest is left alone where it is sealed, since its manifest may come at any
    moment, or where its claim changes meanwhile, since somebody is at work there.

    Returns:
        The claim that was written, None where the run is left alone; and whether the removal had
        been begun before.
    """
    run, mine = run_store(recommendations, run_id), removal()
    while True:
        # The version first: a claim that has changed since is not replaced.
        state, version = _state(run)
        complete = run.exists(MANIFEST)
        if state != REMOVED and complete:
            if run_id not in read_pointer(recommendations)[0].removing:
                return None, False
        elif state == SEALED:
            return None, False
        if run.exchange(CLAIM, mine, version):
            return mine, state == REMOVED
        if not complete:
            return None, False


def _state(run: Store) -> tuple[str | None, str | None]:
    """What the claim says, None where there is none, and its version.

    A damaged claim may be anything, and so counts as sealed.
    """
    try:
        found, version = read_claim(run)
    except InputError:
        return SEALED, (run.read_if_exists(CLAIM) or (b"", None))[1]
    return (None if found is None else found["state"]), version


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
