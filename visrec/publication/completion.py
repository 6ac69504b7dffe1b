"""Completes a run: checks that its gates passed, seals it and writes its manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from visrec.errors import ConflictError, GateError, InputError
from visrec.publication.claims import PARTS, lost_claim_error, read_claim, seal
from visrec.publication.gate import Gate
from visrec.publication.manifest import (
    HELD_BACK,
    RUN_MANIFEST,
    ForcedPublication,
    RunManifest,
    parse_manifest,
    remove_stray_files,
)
from visrec.publication.pointer import read_pointer
from visrec.publication.records import VERSION, now
from visrec.publication.run_spec import is_rewritten_part
from visrec.storage.store import Store, to_json


def read_complete_run(run: Store) -> RunManifest | None:
    """Removes the files of a complete run that its manifest does not name; returns the manifest.

    Returns None if there is no manifest, or if a file that it names is missing or has another size:
    then the run is to be made again.

    Raises:
        InputError: the manifest is not the one that was written; or the run cannot be made again
            beside it, because users were removed from the run.
    """
    manifest, sizes = remove_stray_files(run)
    if manifest is None:
        return None
    damaged = [name for name, file in manifest.files.items() if sizes.get(name) != file.bytes]
    if damaged and any(map(is_rewritten_part, manifest.files)):
        # The job would make files of other names, and readers would see users twice.
        raise InputError(
            f"{run.uri(damaged[0])} is missing or damaged, and `visrec forget` has written files "
            "of this run again, which its job makes with other names. If the run is published, go "
            f"back with `visrec rollback`. Then remove {run.uri(RUN_MANIFEST)} and run the job "
            "again.",
            path=run.uri(damaged[0]),
        )
    return None if damaged else manifest


def finish_run(
    run: Store,
    draft: RunManifest,
    gates: Sequence[Gate],
    force_reason: str | None = None,
    inputs_digest: str | None = None,
) -> tuple[RunManifest, bool]:
    """Writes the manifest of a run, if all its gates passed and its files are in place.

    Args:
        run: the directory of the run.
        draft: the manifest without the gates and the fields that follow them.
        gates: the checks.
        force_reason: why the run is published even if a gate failed. The manifest records it, and
            the gates that it overrode.
        inputs_digest: for which the run was claimed; None for a run without a claim.

    Returns:
        The manifest, and whether another start has completed the run: a writer of the same files
        beside this one, or an earlier start whose files were damaged since then.

    Raises:
        GateError: a gate failed and no reason was given; nothing was published.
        ConflictError: another writer completed the run with other files or took the claim, or
            retention removed the run.
    """
    failed = [gate for gate in gates if gate.outcome == "failed"]
    if failed and force_reason is None:
        _hold_back(run, gates, failed)
    if inputs_digest is not None:
        seal(run, inputs_digest)
    _require_written_files(run, draft)
    manifest = _with_gates_and_pointer(run, draft, gates, force_reason)
    completed_by_another = not run.create(RUN_MANIFEST, to_json(manifest.to_dict()))
    if completed_by_another:
        manifest = _agree_on_manifest(run, manifest)
    if inputs_digest is not None:
        _withdraw_if_removed(run)
    remove_stray_files(run)
    return manifest, completed_by_another


def _hold_back(run: Store, gates: Sequence[Gate], failed: Sequence[Gate]) -> None:
    """Records the gates in a file of the run.

    Raises:
        GateError: always.
    """
    record = {"version": VERSION, "gates": [gate.to_dict() for gate in gates]}
    run.write_json(HELD_BACK, {**record, "held_back_at": now()})
    thresholds = " or run again with other thresholds;" if any(gate.key for gate in failed) else ""
    raise GateError(
        "Publication was held back; the pointer has not moved. "
        + " ".join(gate.sentence for gate in failed)
        + f" The files stay: fix the cause and run again;{thresholds} or publish with "
        "--force_publish 'the reason', which the manifest will record. All checks are in "
        f"{run.uri(HELD_BACK)}."
    )


def _require_written_files(run: Store, draft: RunManifest) -> None:
    """Checks that every file is there with the size that was written.

    Raises:
        ConflictError: a file is missing or has another size.
    """
    sizes = {entry.name: entry.size for entry in run.list(PARTS)}
    for name, file in draft.files.items():
        if sizes.get(name) != file.bytes:
            raise ConflictError(
                f"{run.uri(name)} has {sizes.get(name, 0)} bytes, not the {file.bytes} that were "
                "written: another job is writing this run. Choose another --run_id."
            )


def _with_gates_and_pointer(
    run: Store, draft: RunManifest, gates: Sequence[Gate], force_reason: str | None
) -> RunManifest:
    """The draft with the gates, and with the pointer's state at this moment."""
    recommendations = run.parent
    assert recommendations is not None  # a run is a folder of the recommendations
    pointer, _ = read_pointer(recommendations)
    overridden = tuple(gate.name for gate in gates if gate.outcome == "failed")
    recorded = [
        replace(gate, outcome="forced") if gate.outcome == "failed" else gate for gate in gates
    ]
    return replace(
        draft,
        gates=tuple(recorded),
        forced=ForcedPublication(force_reason, overridden) if force_reason else None,
        pointer_sequence=pointer.sequence,
        # If the run has no cutoff, a rollback to the run sets the pointer's cutoff to this one.
        pointer_cutoff_timestamp=pointer.cutoff_timestamp,
        completed_at=now(),
    )


def _agree_on_manifest(run: Store, new: RunManifest) -> RunManifest:
    """The manifest that stays, if the run already has one.

    If both name the same files, the existing one stays. Files of a complete run may have been lost
    and made again under their names with other bytes, as after an upgrade of a library. If the
    files in place are those that this job has checked, the new manifest replaces the existing one.

    Raises:
        ConflictError: the existing manifest names other files that are not lost, or retention has
            removed it.
    """
    while (found := run.read_if_exists(RUN_MANIFEST)) is not None:
        manifest = parse_manifest(found[0], run.uri(RUN_MANIFEST))
        if manifest.files == new.files:
            return manifest
        if manifest.files.keys() != new.files.keys() or not all(
            _has_sha256(run, name, file.sha256)
            for name, file in new.files.items()
            if manifest.files[name] != file
        ):
            raise ConflictError(
                f"Another writer completed the run at {run.root} with other files. Choose another "
                "--run_id."
            )
        repaired = replace(
            new,
            # A run that was rolled back since it became complete must not be published again.
            pointer_sequence=manifest.pointer_sequence,
            pointer_cutoff_timestamp=manifest.pointer_cutoff_timestamp,
        )
        if run.replace(RUN_MANIFEST, to_json(repaired.to_dict()), found[1]):
            return repaired
    raise lost_claim_error(run)


def _has_sha256(run: Store, name: str, sha256: str) -> bool:
    found = run.read_if_exists(name)
    return found is not None and hashlib.sha256(found[0]).hexdigest() == sha256


def _withdraw_if_removed(run: Store) -> None:
    """Removes the manifest again if retention has removed the run.

    This matters when two writers complete one run: the first writes the manifest, retention removes
    the run, and then the second, which was slower, writes the manifest of a run without files.

    Raises:
        ConflictError: retention has removed the run.
    """
    claim, _ = read_claim(run)
    if claim is None or claim.state == "removed":
        # Without a claim, the same inputs may have claimed and completed the run again, so the
        # manifest may be theirs. If it is not, the next retention removes it.
        if claim is not None:
            run.delete([RUN_MANIFEST])
        raise lost_claim_error(run)
