"""Publication: a run is its shards, then its manifest, then the pointer. Never half.

Shards lie under the run's own prefix. The manifest is created where there is none, the pointer
`_latest.json` replaced only if it is still the one that was read. Whoever follows the pointer sees
a whole run, or the one before.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from visrec.errors import ConflictError, GateError, InputError
from visrec.paths import require_folder_name
from visrec.publication.claims import FINGERPRINTS, PARTS, REMOVED, read_claim, seal, taken
from visrec.publication.pointer import LATEST, Pointer, read_pointer, replace_pointer
from visrec.storage.store import Store, parse_json, to_json

MANIFEST = "_manifest.json"
HELD_BACK = "_held_back.json"  # the gates of a run that is not published, until it is


@dataclass(frozen=True)
class Gate:
    """One check before publication.

    Args:
        name: what is checked.
        found: what was found; None where the gate was skipped.
        expected: what was expected.
        outcome: `failed` holds the publication back, unless it is forced. `skipped`: there was
            nothing to judge by, so nothing is known.
        key: the configuration key of the threshold, without dashes.
        note: the numbers behind what was found, or why the gate was skipped.
    """

    name: str
    found: Any
    expected: Any
    outcome: Literal["passed", "skipped", "failed", "forced"]
    key: str = ""
    note: str = ""

    @property
    def sentence(self) -> str:
        """What was found, what was expected, which key to change."""
        note = f" ({self.note})" if self.note else ""
        key = f" (--{self.key})" if self.key else ""
        return f"{self.name}: found {self.found}{note}, expected {self.expected}{key}."


def run_store(recommendations: Store, run_id: str) -> Store:
    """Where a run's files lie.

    Raises:
        InputError: the id cannot be a folder's name.
    """
    require_folder_name(run_id, "run_id")
    return recommendations / f"run={run_id}"


def read_published(run: Store) -> Mapping[str, Any] | None:
    """A run's manifest, None where there is none.

    Raises:
        InputError: the manifest is not the one that was written.
    """
    found = run.read_if_exists(MANIFEST)
    if found is None:
        return None
    manifest: dict[str, Any] = parse_json(found[0], run.uri(MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("digest") != _digest(manifest):
        raise _damaged(run.uri(MANIFEST))
    return manifest


def _damaged(where: str) -> InputError:
    return InputError(
        f"{where} is damaged: it is not the manifest that visrec wrote. Remove the file and run "
        "the job again with the same --run_id: whole shards are kept."
    )


def find_complete(run: Store) -> Mapping[str, Any] | None:
    """A complete run's manifest, once files that it does not name are removed.

    None where there is no manifest, or a file that it names is not there: such a run is made again.
    Files that it does not name are of a writer that was late, or that was killed before it could
    remove them.

    Raises:
        InputError: the manifest is not the one that was written.
    """
    manifest = read_published(run)
    if manifest is None:
        return None
    sizes = remove_strays(run, manifest)
    whole = all(sizes.get(name) == facts["bytes"] for name, facts in manifest["files"].items())
    return manifest if whole else None


def remove_strays(run: Store, manifest: Mapping[str, Any]) -> Mapping[str, int]:
    """Removes what a complete run's manifest does not name; returns the sizes of the run's files.

    Only what visrec writes into a run is removed.
    """
    sizes = {entry.name: entry.size for entry in run.list()}
    named = {*manifest["files"], *manifest.get("fingerprints", {})}
    run.delete(
        name
        for name in sizes
        if name.startswith((PARTS, FINGERPRINTS, HELD_BACK)) and name not in named
    )
    return sizes


def read_last(
    recommendations: Store, say: Callable[[str], None] = print
) -> Mapping[str, Any] | None:
    """The manifest of the published run; None where there is none that can be used.

    The last publication only saves work and tells the gates what a night is like. So where its
    manifest is gone or is not what was published, it counts as absent, and `say` is told so.

    Raises:
        InputError: the pointer is damaged.
    """
    pointer, version = read_pointer(recommendations)
    if version is None or pointer.run_id is None:
        return None
    found = run_store(recommendations, pointer.run_id).read_if_exists(MANIFEST)
    if found is None or hashlib.sha256(found[0]).hexdigest() != pointer.manifest_sha256:
        what = "is not there" if found is None else "is not what was published"
        say(
            f"The manifest of the last publication, {recommendations.uri(str(pointer.manifest))}, "
            f"{what}: this run goes on as if nothing had been published before it."
        )
        return None
    manifest: Mapping[str, Any] = parse_json(found[0], recommendations.uri(str(pointer.manifest)))
    return manifest


def complete(
    run: Store,
    described: Mapping[str, Any],
    gates: Sequence[Gate],
    force: str | None = None,
    inputs: str | None = None,
) -> tuple[Mapping[str, Any], bool]:
    """Writes a run's manifest, once all its gates have passed and its files are in place.

    Args:
        run: the run's directory.
        described: files with rows, bytes and sha256, and all else the manifest tells.
        gates: the checks.
        force: why the run is published even where a check did not pass; the manifest records it,
            and the checks that it overrode.
        inputs: for which the run was claimed, if it was.

    Returns:
        The manifest, and whether this call wrote it: False where another writer of the same files
        was first.

    Raises:
        GateError: a check did not pass, and nothing was forced; nothing was published.
        ConflictError: another writer completed the run with other files, or took it, or retention
            removed it.
    """
    failed = [gate for gate in gates if gate.outcome == "failed"]
    if failed and force is None:
        run.write_json(HELD_BACK, {"gates": [gate.__dict__ for gate in gates], "at": _now()})
        raise GateError(
            "Publication was held back; the pointer has not moved. "
            + " ".join(gate.sentence for gate in failed)
            + " The files stay: fix the cause and run again; or run again with other thresholds, "
            "or with --force_publish 'the reason', which the manifest will record. All checks are "
            f"in {run.uri(HELD_BACK)}."
        )
    if inputs is not None:
        seal(run, inputs)
    sizes = {entry.name: entry.size for entry in run.list(PARTS)}
    for name, facts in described["files"].items():
        if sizes.get(name) != facts["bytes"]:
            raise ConflictError(
                f"{run.uri(name)} has {sizes.get(name, 0)} bytes, not the {facts['bytes']} that "
                "were written: another writer is at work on this run. Choose another --run_id."
            )
    now, _ = read_pointer(_recommendations_of(run))
    manifest: Mapping[str, Any] = {
        **described,
        "gates": [
            gate.__dict__ | ({"outcome": "forced"} if gate in failed else {}) for gate in gates
        ],
        "forced": force and {"reason": force, "gates": [gate.name for gate in failed]},
        "pointer_sequence": now.sequence,
        # What was published knew this much: without a date of its own, the run knows no less.
        "pointer_before": now.before,
        "completed_at": _now(),
    }
    manifest = {**manifest, "digest": _digest(manifest)}
    first = run.create(MANIFEST, to_json(manifest))
    if not first:
        manifest = _theirs(run, described)
    if inputs is not None:
        _require_kept(run)
    remove_strays(run, manifest)
    return manifest, first


def _theirs(run: Store, described: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest that another writer of the same files has written.

    Raises:
        ConflictError: it names other files, or retention has removed it.
    """
    theirs = read_published(run)
    if theirs is None:
        raise taken(run)
    if theirs["files"] != described["files"]:
        raise ConflictError(
            f"The run at {run.root} was completed by another writer with other files. "
            "Choose another --run_id."
        )
    return theirs


def _require_kept(run: Store) -> None:
    """Takes the manifest back where retention removed the run just before it was written.

    That can be where two writers complete a run at once: the manifest of the first is removed with
    the run, and the second writes it again.

    Raises:
        ConflictError: retention has removed the run.
    """
    found, _ = read_claim(run)
    if found is None or found["state"] == REMOVED:
        if found is not None:  # else somebody may claim the run anew: the next retention removes it
            run.delete([MANIFEST])
        raise taken(run)


def _digest(manifest: Mapping[str, Any]) -> str:
    """Over all of a manifest but the digest itself."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(to_json(rest)).hexdigest()


def _recommendations_of(run: Store) -> Store:
    return replace(run, root=run.root.rpartition("/")[0])


# The pointer.


def point_to(recommendations: Store, run_id: str, *, rerun: bool = False) -> bool:
    """Switches the pointer to a complete run; False where it stays as it is.

    It does not go back: not to a run that knew less of the past than the one it names (a night that
    was filled in later), nor to one that somebody has rolled back from. A rerun of a complete run
    takes the pointer from nobody: it moves it only where the first start was stopped between
    manifest and pointer, and the pointer has not moved since.

    Args:
        recommendations: where the runs are.
        run_id: the run.
        rerun: whether the run was found complete.

    Raises:
        ConflictError: another writer moved the pointer first.
        InputError: a rerun would publish files that are not what the manifest says.
    """
    sequence = None
    while True:
        now, version = read_pointer(recommendations)
        if sequence not in (None, now.sequence):
            raise _moved_by_another(recommendations)
        sequence = now.sequence
        moved, why_not = _next(recommendations, run_id, now, version, rerun)
        if moved is None or why_not is not None:
            return False
        if rerun:  # nobody has read the files since they were checked
            _require_whole(run_store(recommendations, run_id))
        if replace_pointer(recommendations, moved, version):
            return True


def publication_status(recommendations: Store, run_id: str, *, rerun: bool = False) -> str:
    """Whether a complete run is the published one, and if not, why the pointer does not move."""
    now, version = read_pointer(recommendations)
    return (
        _next(recommendations, run_id, now, version, rerun)[1]
        or "no: the pointer has not moved to it"
    )


def why_not_published(recommendations: Store, run_id: str, *, rerun: bool = False) -> str | None:
    """One sentence on which run stays published instead of a complete one, and why; None where the
    complete one is the published run."""
    reason = publication_status(recommendations, run_id, rerun=rerun)
    if reason == "yes":
        return None
    now, _ = read_pointer(recommendations)
    text = (
        f"The run {run_id} is complete and is not published: {now.run_id} stays published, "
        f"because {reason.removeprefix('no: ')}."
    )
    if (now.before or 0) > datetime.now(UTC).timestamp():
        text += (
            f" The cutoff of {now.run_id} lies in the future, so it would stay published until "
            "then: go back to an earlier run with jobs/rollback.py --run_id."
        )
    return text


def _next(
    recommendations: Store, run_id: str, now: Pointer, version: str | None, rerun: bool
) -> tuple[Pointer | None, str | None]:
    """The pointer to a run, None where it has no manifest; and why the pointer does not move there.

    The manifest is read after the pointer: a run that retention removes after that is in a later
    pointer.
    """
    found = run_store(recommendations, run_id).read_if_exists(MANIFEST)
    if found is None:
        return None, "no: it is not complete, or retention has removed it"
    where = recommendations.uri(f"run={run_id}/{MANIFEST}")
    manifest = parse_json(found[0], where)
    if not isinstance(manifest, dict):
        raise _damaged(where)
    moved = _pointer(run_id, found[0], manifest, now)
    if now.manifest_sha256 == moved.manifest_sha256:
        return moved, "yes"
    if run_id in now.removing:
        return moved, "no: retention is removing it"
    if run_id in now.rolled_back:
        return moved, "no: it was rolled back"
    known = manifest.get("before")
    if known is not None and now.before is not None and known < now.before:
        return moved, "no: a later night is published"
    if rerun and version is not None and manifest.get("pointer_sequence") != now.sequence:
        return moved, "no: another run was published or rolled back to since it was complete"
    return moved, None


def _pointer(run_id: str, data: bytes, manifest: Mapping[str, Any], now: Pointer) -> Pointer:
    """The pointer to a run, after the one that is there now."""
    before, previous = manifest.get("before"), now.run_id
    if before is None:  # else a night of long ago could follow a run without a date
        before = now.before
    if previous == run_id:  # it was made again
        previous = now.previous_run_id
    return replace(
        now,
        run_id=run_id,
        manifest=f"run={run_id}/{MANIFEST}",
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        before=before,
        previous_run_id=previous,
        published_at=_now(),
        # Where the file was lost, the count goes on from what the run remembers.
        sequence=max(now.sequence, manifest.get("pointer_sequence") or 0) + 1,
    )


def roll_back(recommendations: Store, run_id: str | None = None) -> tuple[str, str]:
    """Points to an earlier run again, after its files have been read whole.

    Args:
        recommendations: where the runs are.
        run_id: to which one; by default the one before the one that is published.

    Returns:
        The run that was published, and the one that is now. The first is not published again by a
        job that finds it complete.

    Raises:
        InputError: there is no such run, or no run before; or a file of it is not what it was, or
            retention is removing it.
        ConflictError: another writer moved the pointer first.
    """
    now, version = read_pointer(recommendations)
    run_id = run_id or now.previous_run_id
    if run_id is None or version is None or now.run_id is None:
        found = f"no run before {now.run_id}" if version else "no publication at all"
        raise InputError(
            f"Found {found} in {recommendations.root}; expected one to go back to. Name it with "
            "--run_id, or the place with --recommendations."
        )
    run = run_store(recommendations, run_id)
    manifest = run.read_if_exists(MANIFEST)
    if manifest is None or run_id == now.run_id or run_id in now.removing:
        what = "the run that is published"
        if run_id != now.run_id:
            what = "no complete run" if manifest is None else "a run that retention is removing"
        raise InputError(f"Found {what} at {run.root}; expected a complete one before (--run_id).")
    whole = _require_whole(run)
    pointer = replace(
        _pointer(run_id, manifest[0], whole, replace(now, before=whole.get("pointer_before"))),
        previous_run_id=None,
        rolled_back=tuple(
            name for name in dict.fromkeys([*now.rolled_back, now.run_id]) if name != run_id
        ),
    )
    if not replace_pointer(recommendations, pointer, version):
        raise _moved_by_another(recommendations)
    return now.run_id, run_id


def _require_whole(run: Store) -> Mapping[str, Any]:
    """The manifest of a run whose files have all been read and are what it says.

    Raises:
        InputError: one of them is not.
    """
    manifest = read_published(run)
    for name, facts in sorted(manifest["files"].items()) if manifest else ():
        found = run.read_if_exists(name)
        if found is None or hashlib.sha256(found[0]).hexdigest() != facts["sha256"]:
            raise InputError(
                f"{run.uri(name)} is not what the manifest says; expected a whole run. Choose "
                f"another --run_id; or remove {run.uri(MANIFEST)} and run the job that made the "
                "run again: whole shards are kept."
            )
    if manifest is None:
        raise taken(run)
    return manifest


def _moved_by_another(recommendations: Store) -> ConflictError:
    return ConflictError(
        f"Another run moved {recommendations.uri(LATEST)} at the same moment. The run is "
        "complete; run the job again with the same --run_id to point to it."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
