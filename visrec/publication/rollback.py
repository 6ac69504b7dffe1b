"""Moves the pointer back to an earlier run, once all files of that run were read and are intact."""

from collections.abc import Sequence
from dataclasses import replace

from visrec.errors import InputError, did_you_mean
from visrec.publication.manifest import RUN_MANIFEST, RunManifest, require_intact_files
from visrec.publication.pointer import Pointer, replace_pointer
from visrec.publication.publish import (
    moved_meanwhile_error,
    next_pointer,
    read_manifest_to_publish,
)
from visrec.publication.run_spec import run_store
from visrec.publication.tables import read_settled_pointer
from visrec.storage.store import Store

_SHOWN = 14  # runs in a message, as many as retention keeps by default


def complete_runs(recommendations: Store) -> list[str]:
    """The ids of all complete runs, the latest id first."""
    names = (entry.name.split("/") for entry in recommendations.list("run="))
    return sorted(
        {run.removeprefix("run=") for run, *rest in names if rest == [RUN_MANIFEST]}, reverse=True
    )


def roll_back(recommendations: Store, run_id: str | None = None) -> tuple[str, str]:
    """Publishes an earlier run again, after all its files were read and are intact.

    Args:
        recommendations: where the runs are.
        run_id: the earlier run; by default the one before the published run.

    Returns:
        The run that was published, and the run that is published now. A job that finds the first
        one complete does not publish it again.

    Raises:
        InputError: there is no such run or no run before; or a file of it is not what was
            published; or retention is removing it.
        ConflictError: another writer moved the pointer first.
    """
    pointer, version = read_settled_pointer(recommendations)
    run_id = run_id or pointer.previous_run_id
    if version is None or pointer.run_id is None:
        raise InputError(
            f"Found no publication at all in {recommendations.root}; expected a run to go back to. "
            "Name the directory of the runs with --recommendations.",
            path=recommendations.root,
            key="recommendations",
        )
    if run_id is None:
        why = ": after a rollback, the pointer remembers none" if pointer.rolled_back else ""
        raise InputError(
            f"Found no publication before {pointer.run_id} in {recommendations.root}{why}; "
            "expected a run to go back to. Name a complete one with `visrec rollback --run_id`. "
            f"{_shown(_others(recommendations, pointer))}",
            path=recommendations.root,
            key="run_id",
        )
    data, manifest = _read_earlier_manifest(recommendations, run_id, pointer)
    require_intact_files(run_store(recommendations, run_id), manifest)
    pointer_then = replace(pointer, cutoff_timestamp=manifest.pointer_cutoff_timestamp)
    rolled_back = dict.fromkeys([*pointer.rolled_back, pointer.run_id])
    new_pointer = replace(
        next_pointer(run_id, data, manifest, pointer_then),
        previous_run_id=None,
        rolled_back=tuple(name for name in rolled_back if name != run_id),
    )
    if not replace_pointer(recommendations, new_pointer, version):
        raise moved_meanwhile_error(recommendations)
    read_settled_pointer(recommendations)
    return pointer.run_id, run_id


def _read_earlier_manifest(
    recommendations: Store, run_id: str, pointer: Pointer
) -> tuple[bytes, RunManifest]:
    """The bytes of the manifest of the run to go back to, and the manifest.

    Raises:
        InputError: the run is published already, is not complete, or retention is removing it.
    """
    run = run_store(recommendations, run_id)
    found = read_manifest_to_publish(recommendations, run_id, pointer)
    if found is not None and run_id != pointer.run_id and run_id not in pointer.removing:
        return found
    what = "the run that is published"
    if run_id != pointer.run_id:
        what = "no complete run" if found is None else "a run that retention is removing"
    others = _others(recommendations, pointer)
    raise InputError(
        f"Found {what} at {run.root}; expected a complete one (--run_id)"
        f"{did_you_mean(run_id, others) or '.'} {_shown(others)}",
        path=run.root,
        key="run_id",
    )


def _others(recommendations: Store, pointer: Pointer) -> list[str]:
    """The ids of all complete runs but the published one, the latest id first."""
    return [name for name in complete_runs(recommendations) if name != pointer.run_id]


def _shown(others: Sequence[str]) -> str:
    """The sentence that names the runs to go back to."""
    shown = ", ".join(others[:_SHOWN]) + (" ..." if len(others) > _SHOWN else "")
    return f"Complete besides the published one: {shown or 'none'}."
