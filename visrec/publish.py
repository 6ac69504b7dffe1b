"""Publication: a run is its shards, then its manifest, then the pointer. Never half.

Shards lie under the run's own prefix. The manifest is created where there is none, the pointer
`_latest.json` replaced only if it is still the one that was read. Whoever follows the pointer sees
a whole run, or the one before.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

from visrec.claims import seal
from visrec.errors import ConflictError, GateError, InputError
from visrec.storage import Store, to_json

MANIFEST, LATEST = "_manifest.json", "_latest.json"
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
    pointer, version = _read_pointer(recommendations)
    return read_published(run_store(recommendations, pointer["run_id"])) if version else None


def complete(
    run: Store,
    described: Mapping[str, Any],
    gates: Sequence[Gate],
    force: str | None = None,
    inputs: str | None = None,
) -> Mapping[str, Any]:
    """Writes a run's manifest, once all its gates have passed and its files are in place.

    Args:
        run: the run's directory.
        described: files with rows, bytes and sha256, and all else the manifest tells.
        gates: the checks.
        force: why the run is published even where a check did not pass; the manifest records it,
            and the checks that it overrode.
        inputs: for which the run was claimed, if it was.

    Raises:
        GateError: a check did not pass, and nothing was forced; nothing was published.
        ConflictError: another writer completed the run with other files.
    """
    failed = [gate for gate in gates if gate.outcome == "failed"]
    if failed and force is None:
        run.write_json(HELD_BACK, {"gates": [gate.__dict__ for gate in gates], "at": _now()})
        raise GateError(
            "Publication was held back; the pointer has not moved. "
            + " ".join(gate.sentence for gate in failed)
            + " The files stay: mend the cause and run again; or run again with other thresholds, "
            "or with --force_publish 'the reason', which the manifest will record. All checks are "
            f"in {run.uri(HELD_BACK)}."
        )
    if inputs is not None:
        seal(run, inputs)
    sizes = {entry.name: entry.size for entry in run.list("part-")}
    for name, facts in described["files"].items():
        if sizes.get(name) != facts["bytes"]:
            raise ConflictError(
                f"{run.uri(name)} has {sizes.get(name, 0)} bytes, not the {facts['bytes']} that "
                "were written: another writer is at work on this run. Choose another --run_id."
            )
    manifest = {
        **described,
        "gates": [
            gate.__dict__ | ({"outcome": "forced"} if gate in failed else {}) for gate in gates
        ],
        "forced": force and {"reason": force, "gates": [gate.name for gate in failed]},
        "completed_at": _now(),
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
    run.delete({HELD_BACK, *sizes} - described["files"].keys())
    return manifest


def point_to(recommendations: Store, run_id: str) -> bool:
    """Switches the pointer to a complete run; False where it stays as it is.

    It does not go back: not to a run that knew less of the past than the one it names (a night that
    was filled in later), nor to one that somebody has rolled back from.

    Raises:
        ConflictError: another writer moved the pointer first.
    """
    pointer, (before, version) = _pointer(recommendations, run_id), _read_pointer(recommendations)
    if _standing(pointer, before) is not None:
        return False
    moved = {**pointer, "previous_run_id": before["run_id"]}
    moved["rolled_back"] = before.get("rolled_back", [])
    if moved["before"] is None:  # else a night of long ago could follow a run without a date
        moved["before"] = before.get("before")
    _move(recommendations, moved, version)
    return True


def standing(recommendations: Store, run_id: str) -> str:
    """Whether a complete run is the published one, and if not, why the pointer does not move."""
    pointer, (now, _) = _pointer(recommendations, run_id), _read_pointer(recommendations)
    return _standing(pointer, now) or "no"


def why_not_published(recommendations: Store, run_id: str) -> str | None:
    """One sentence on which run stays published instead of a complete one, and why; None where the
    complete one is the published run."""
    reason = standing(recommendations, run_id)
    if reason == "yes":
        return None
    now, _ = _read_pointer(recommendations)
    text = (
        f"The run {run_id} is complete and is not published: {now['run_id']} stays published, "
        f"because {reason.removeprefix('no: ')}."
    )
    if (now.get("before") or 0) > datetime.now(UTC).timestamp():
        text += (
            f" The cutoff of {now['run_id']} lies in the future, so it would stay published until "
            "then: go back to an earlier run with jobs/rollback.py --run_id."
        )
    return text


def _standing(pointer: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """None for a run to which the pointer may move."""
    if now["manifest_sha256"] == pointer["manifest_sha256"]:
        return "yes"
    if pointer["run_id"] in now.get("rolled_back", []):
        return "no: it was rolled back"
    known, then = pointer["before"], now.get("before")
    if known is not None and then is not None and known < then:
        return "no: a later night is published"
    return None


def roll_back(recommendations: Store, run_id: str | None = None) -> tuple[str, str]:
    """Points to an earlier run again, after its files have been read whole.

    Args:
        recommendations: where the runs are.
        run_id: to which one; by default the one before the one that is published.

    Returns:
        The run that was published, and the one that is now. The first is not published again by a
        job that finds it complete.

    Raises:
        InputError: there is no such run, or no run before; or a file of it is not what it was.
        ConflictError: another writer moved the pointer first.
    """
    before, version = _read_pointer(recommendations)
    run_id = run_id or before["previous_run_id"]
    if run_id is None or version is None:
        found = f"no run before {before['run_id']}" if version else "no publication at all"
        raise InputError(
            f"Found {found} in {recommendations.root}; expected one to go back to. Name it with "
            "--run_id, or the place with --recommendations."
        )
    run = run_store(recommendations, run_id)
    manifest = read_published(run)
    if manifest is None or run_id == before["run_id"]:
        what = "no complete run" if manifest is None else "the run that is published"
        raise InputError(f"Found {what} at {run.root}; expected a complete one before (--run_id).")
    for name, facts in sorted(manifest["files"].items()):
        if not run.exists(name) or hashlib.sha256(run.read(name)).hexdigest() != facts["sha256"]:
            raise InputError(
                f"{run.uri(name)} is not what the manifest says; expected a whole run. Choose "
                "another --run_id."
            )
    left = [*before.get("rolled_back", []), before["run_id"]]
    pointer = {
        **_pointer(recommendations, run_id),
        "rolled_back": [name for name in dict.fromkeys(left) if name != run_id],
    }
    _move(recommendations, pointer, version)
    return str(before["run_id"]), run_id


def retire(recommendations: Store, keep: int, tonight: str | None = None) -> list[str]:
    """Removes the oldest nights beyond some, with all their files, and says which.

    A night is a run whose id is a date. What the pointer names, and the run before it, stay.

    Args:
        recommendations: where the runs are.
        keep: how many nights stay, complete or not.
        tonight: a night that stays, however old it is.
    """
    names = {entry.name.partition("/")[0] for entry in recommendations.list("run=")}
    pointer = _read_pointer(recommendations)[0]
    named = {pointer["run_id"], pointer["previous_run_id"], tonight}
    runs = {name.removeprefix("run=") for name in names}
    nights = sorted(filter(_is_date, runs), reverse=True)
    old = [night for night in nights[keep:] if night not in named]
    for night in old:
        # Without its manifest a run is not complete to anybody.
        recommendations.delete([f"run={night}/{MANIFEST}"])
        recommendations.delete_folder(f"run={night}")
    return sorted(old)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _pointer(recommendations: Store, run_id: str) -> dict[str, Any]:
    manifest = run_store(recommendations, run_id).read(MANIFEST)
    return {
        "run_id": run_id,
        "manifest": f"run={run_id}/{MANIFEST}",
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "before": json.loads(manifest).get("before"),
        "previous_run_id": None,
        "published_at": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_NONE: dict[str, Any] = {"run_id": None, "previous_run_id": None, "manifest_sha256": None}


def _read_pointer(recommendations: Store) -> tuple[dict[str, Any], str | None]:
    """The pointer and its version; what stands for none, and None, where there is none."""
    if not recommendations.exists(LATEST):
        return _NONE, None
    data, version = recommendations.read_versioned(LATEST)
    return json.loads(data), version


def _move(recommendations: Store, pointer: dict[str, Any], version: str | None) -> None:
    if version is None:
        moved = recommendations.create(LATEST, to_json(pointer))
    else:
        moved = recommendations.replace(LATEST, to_json(pointer), version)
    if not moved:
        raise ConflictError(
            f"Another run moved {recommendations.uri(LATEST)} at the same moment. The run is "
            "complete; run the job again with the same --run_id to point to it."
        )
