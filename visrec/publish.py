"""Publication: a run is its shards, then its manifest, then the pointer. Never half.

Shards lie under the run's own prefix. The manifest is created where there is none, the pointer
`_latest.json` replaced only if it is still the one that was read. Whoever follows the pointer sees
a whole run, or the one before.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from visrec.errors import ConflictError, GateError, InputError
from visrec.storage import Store, to_json

MANIFEST, LATEST = "_manifest.json", "_latest.json"


@dataclass(frozen=True)
class Gate:
    """One check before publication.

    Args:
        name: what is checked.
        found: what was found.
        expected: what was expected.
        passed: whether that is well.
        key: the configuration key of the threshold, without dashes.
        note: the numbers behind what was found, or why it was not judged.
    """

    name: str
    found: Any
    expected: Any
    passed: bool
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
    if (
        not run_id
        or not all(c.isascii() and (c.isalnum() or c in "-_.:") for c in run_id)
        or run_id[0] == "."
    ):
        raise InputError(
            f"Found --run_id {run_id!r}; expected letters, digits, '-', '_', ':' and '.', such as "
            "2026-11-22."
        )
    return recommendations / f"run={run_id}"


def read_published(run: Store) -> Mapping[str, Any] | None:
    """A run's manifest, None where the run is not complete."""
    return run.read_json(MANIFEST) if run.exists(MANIFEST) else None


def read_last(recommendations: Store) -> Mapping[str, Any] | None:
    """The manifest of the run that the pointer names; None where there is none to read."""
    if not recommendations.exists(LATEST):
        return None
    pointer = recommendations.read_json(LATEST)
    return read_published(run_store(recommendations, pointer["run_id"]))


def complete(
    run: Store,
    described: Mapping[str, Any],
    gates: Sequence[Gate],
    force: str | None = None,
) -> Mapping[str, Any]:
    """Writes a run's manifest, once all its gates have passed and its files are in place.

    Args:
        run: the run's directory.
        described: files with rows, bytes and sha256, and all else the manifest tells.
        gates: the checks.
        force: why the run is published even where a check did not pass; the manifest records it,
            and the checks that it overrode.

    Raises:
        GateError: a check did not pass, and nothing was forced; nothing was published.
        ConflictError: another writer completed the run with other files.
    """
    failed = [gate for gate in gates if not gate.passed]
    if failed and force is None:
        raise GateError(
            "Publication was held back; the pointer has not moved. "
            + " ".join(gate.sentence for gate in failed)
            + " The files stay: mend the cause and run again under another --run_id; or run again "
            "with other thresholds, or with --force_publish 'the reason', which the manifest will "
            "record."
        )
    sizes = {entry.name: entry.size for entry in run.list("part-")}
    for name, facts in described["files"].items():
        if sizes.get(name) != facts["bytes"]:
            raise ConflictError(
                f"{run.uri(name)} has {sizes.get(name, 0)} bytes, not the {facts['bytes']} that "
                "were written: another writer is at work on this run. Choose another --run_id."
            )
    manifest = {
        **described,
        "gates": [gate.__dict__ for gate in gates],
        "forced": force and {"reason": force, "gates": [gate.name for gate in failed]},
        "completed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not run.create(MANIFEST, to_json(manifest)):
        theirs = run.read_json(MANIFEST)
        if theirs["files"] != described["files"]:
            raise ConflictError(
                f"The run at {run.root} was completed by another writer with other files. "
                "Choose another --run_id."
            )
        return dict(theirs)
    # A run that was cut into more shards before this one leaves files that no manifest names.
    run.delete(sizes.keys() - described["files"].keys())
    return manifest


def point_to(recommendations: Store, run_id: str) -> bool:
    """Switches the pointer to a complete run; False where it points there already.

    Raises:
        ConflictError: another writer moved the pointer first.
    """
    run = run_store(recommendations, run_id)
    manifest = run.read(MANIFEST)
    pointer: dict[str, Any] = {
        "run_id": run_id,
        "manifest": f"run={run_id}/{MANIFEST}",
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "previous_run_id": None,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not recommendations.exists(LATEST):
        moved = recommendations.create(LATEST, to_json(pointer))
    else:
        data, version = recommendations.read_versioned(LATEST)
        before = json.loads(data)
        if before["manifest_sha256"] == pointer["manifest_sha256"]:
            return False
        pointer["previous_run_id"] = before["run_id"]
        moved = recommendations.replace(LATEST, to_json(pointer), version)
    if not moved:
        raise ConflictError(
            f"Another run moved {recommendations.uri(LATEST)} at the same moment. The run is "
            "complete; run the job again with the same --run_id to point to it."
        )
    return True
