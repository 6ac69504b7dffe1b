"""Who writes a run: shards of one set of inputs at a time, of those that nobody has completed."""

import json
from typing import Any

from visrec.errors import ConflictError, InputError
from visrec.storage import Store, to_json

CLAIM = "_claim.json"


def claim(run: Store, inputs: str) -> None:
    """Takes a run for shards made of these inputs, from others that did not complete it.

    Shards are written only by who reads them, finds the run still claimed (`is_claimed`), and
    replaces what was read: who lost the run cannot write over its next owner's. Who lost it never
    gets it back: its old shards would count as current, and could still be written over.

    Args:
        run: the run's directory.
        inputs: their digest.

    Raises:
        InputError: it is being completed with shards of other inputs, or others have taken it.
    """
    mine: dict[str, Any] = {"inputs": inputs, "lost": [], "sealed": False}
    while not run.create(CLAIM, to_json(mine)):
        data, version = run.read_versioned(CLAIM)
        found = json.loads(data)
        if found["inputs"] == inputs:
            return
        if found["sealed"] or inputs in found["lost"]:
            raise InputError(
                f"The run at {run.root} was made from other inputs or settings, or is being made "
                "from them; choose another --run_id, or, where nobody is at work on it and it has "
                "no manifest, remove it."
            )
        mine["lost"] = [*found["lost"], found["inputs"]]
        if run.replace(CLAIM, to_json(mine), version):
            return


def is_claimed(run: Store, inputs: str) -> bool:
    """Whether a run is claimed for shards of these inputs."""
    return bool(run.read_json(CLAIM)["inputs"] == inputs)


def seal(run: Store, inputs: str) -> None:
    """From now on nobody can claim the run for other inputs."""
    data, version = run.read_versioned(CLAIM)
    found = json.loads(data)
    sealed = to_json({**found, "sealed": True})
    if found["inputs"] == inputs and (
        data == sealed or run.replace(CLAIM, sealed, version) or run.read(CLAIM) == sealed
    ):
        return
    raise ConflictError(
        f"Another writer has taken {run.root} for lists of other inputs. Choose another --run_id."
    )
