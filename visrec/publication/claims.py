"""Who may write a run: shards of one set of inputs at a time, until it is sealed or removed.

The claim is one small file, and every change of it replaces exactly what was read:

    (none) -> open -> sealed          `claim`, then `seal` just before the manifest
    open of inputs a -> open of b     others take a run that nobody has sealed; a never gets it back
    open or sealed -> removed -> (none)      `retention.py`, which deletes the claim last

A claim carries a random token, so that one that was deleted and made again is another one.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from visrec.errors import ConflictError, InputError
from visrec.storage.store import Store, parse_json, to_json

CLAIM = "_claim.json"
# What a run's writers write, besides claim and manifest, starts with one of these.
PARTS, FINGERPRINTS = "part-", "_marks/"
OPEN, SEALED, REMOVED = "open", "sealed", "removed"


def read_claim(run: Store) -> tuple[Mapping[str, Any] | None, str | None]:
    """The claim and its version; None and None where there is none.

    Raises:
        InputError: the file is not a claim.
    """
    found = run.read_if_exists(CLAIM)
    if found is None:
        return None, None
    where = run.uri(CLAIM)
    data = parse_json(found[0], where)
    if not (
        isinstance(data, dict)
        and isinstance(data.get("inputs"), str)
        and isinstance(data.get("lost"), list)
        and data.get("state") in (OPEN, SEALED, REMOVED)
    ):
        raise InputError(
            f"{where} is damaged: expected the claim that visrec wrote. Where nobody is at work on "
            f"{run.root}, remove the file and run the job again."
        )
    return data, found[1]


def claim(run: Store, inputs: str) -> None:
    """Takes a run for shards made of these inputs, from others that did not seal it.

    Shards are written only by a writer that finds the run still claimed (`is_claimed`), under names
    of their inputs; a writer that finds afterwards that it lost the run removes what it wrote. Who
    lost a run never gets it back, so that its files are garbage for good.

    Args:
        run: the run's directory.
        inputs: their digest.

    Raises:
        InputError: the run is sealed for other inputs, or others have taken it.
        ConflictError: retention is removing the run.
    """
    lost: list[str] = []
    version = None
    while not run.exchange(CLAIM, _claim(inputs, lost), version):
        found, version = read_claim(run)
        if found is None:
            lost = []
            continue
        if found["state"] == REMOVED:
            raise ConflictError(
                f"Retention is removing {run.root}. Run the job again when that is done: where the "
                "removal was stopped, the retention of the next nights finishes it."
            )
        if found["inputs"] == inputs:
            return
        if found["state"] == SEALED or inputs in found["lost"]:
            raise InputError(
                f"The run at {run.root} was made from other inputs or settings, or is being made "
                "from them; choose another --run_id, or, where nobody is at work on it and it has "
                "no manifest, remove it."
            )
        lost = [*found["lost"], found["inputs"]]


def is_claimed(run: Store, inputs: str) -> bool:
    """Whether a run may be written with shards of these inputs."""
    found, _ = read_claim(run)
    return found is not None and found["inputs"] == inputs and found["state"] != REMOVED


def is_lost(run: Store, inputs: str) -> bool:
    """Whether nothing that is made of these inputs can be part of the run any more.

    Not where there is no claim: the same inputs may claim the run anew at any moment, and take up
    the shards that they find.
    """
    found, _ = read_claim(run)
    return found is not None and (found["inputs"] != inputs or found["state"] == REMOVED)


def seal(run: Store, inputs: str) -> None:
    """From now on nobody can claim the run for other inputs.

    Raises:
        ConflictError: others have taken the run, or retention is removing it.
    """
    while True:
        found, version = read_claim(run)
        if found is None or found["inputs"] != inputs or found["state"] == REMOVED:
            raise taken(run)
        if found["state"] == SEALED or run.exchange(
            CLAIM, to_json({**found, "state": SEALED}), version
        ):
            return


def taken(run: Store) -> ConflictError:
    """What a writer says that has lost its run."""
    return ConflictError(
        f"Another writer has taken {run.root} for lists of other inputs, or retention has removed "
        "it. Choose another --run_id, or run the job again."
    )


def removal() -> bytes:
    """The claim of a run that is being removed."""
    return to_json({"inputs": "", "lost": [], "state": REMOVED, "token": uuid.uuid4().hex})


def _claim(inputs: str, lost: list[str]) -> bytes:
    return to_json({"inputs": inputs, "lost": lost, "state": OPEN, "token": uuid.uuid4().hex})
