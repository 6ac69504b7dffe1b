"""Keys that a night sets for all of its steps, such as the names of columns, so that they agree."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from visrec.cli.job import Job
from visrec.cli.workspace_keys import WorkspaceKeys
from visrec.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NightKeys(WorkspaceKeys):
    """Keys that a night shares with the jobs of its steps.

    Attributes:
        interactions: as in the other jobs. What is set here counts for all steps; as_of is the
            date of the night.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interactions.as_of is not None:
            raise InputError(
                f"Found --interactions.as_of {self.interactions.as_of}; expected --as_of, the date "
                "of the night.",
                key="interactions.as_of",
            )


def with_night_keys(job: Job, defaults: Job, night: NightKeys, path: str | None) -> Job:
    """The job of a step with the keys that the night sets.

    Args:
        job: the job of the step.
        defaults: the same job with only workspace keys and defaults.
        night: the configuration of the night.
        path: the YAML file of the step, for the error.

    Raises:
        InputError: the night and the file set a key to different values.
    """
    of_job = {key.name for key in dataclasses.fields(job)}
    shared = {
        name: _merge(name, (getattr(each, name) for each in (night, job, defaults)), path)
        for name in sorted(of_job & {key.name for key in dataclasses.fields(NightKeys)})
    }
    return dataclasses.replace(job, **shared)


def _merge(name: str, values: Iterable[Any], path: str | None) -> Any:
    """The value of a key, whatever its type is; a configuration is merged field by field.

    Args:
        name: the key.
        values: the night's value, the step's value and the default.
        path: the YAML file of the step, for the error.
    """
    of_night, of_step, defaults = values
    if dataclasses.is_dataclass(of_step) and not isinstance(of_step, type):
        merged = {}
        for key in dataclasses.fields(of_step):
            values = (getattr(each, key.name) for each in (of_night, of_step, defaults))
            merged[key.name] = _merge(f"{name}.{key.name}", values, path)
        return dataclasses.replace(of_step, **merged)
    if of_night == defaults:
        return of_step
    if of_step not in (defaults, of_night):
        raise InputError(
            f"Found --{name} {of_night} for the night, and {of_step} in {path}; expected one of "
            f"them. Remove {name} from {path}, or from the configuration of the night.",
            key=name,
        )
    return of_night
