"""Keys that a night sets for all of its steps, such as the names of columns, so that they agree."""

import dataclasses
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
        name: _merge(name, getattr(night, name), getattr(job, name), getattr(defaults, name), path)
        for name in sorted(of_job & {key.name for key in dataclasses.fields(NightKeys)})
    }
    return dataclasses.replace(job, **shared)


def _merge(name: str, of_night: Any, of_step: Any, default: Any, path: str | None) -> Any:
    """The value of a key, whatever its type is; a configuration is merged field by field.

    Args:
        name: the key.
        of_night: its value in the configuration of the night.
        of_step: its value in the configuration of the step.
        default: its value if neither sets it.
        path: the YAML file of the step, for the error.
    """
    if dataclasses.is_dataclass(of_step) and not isinstance(of_step, type):
        merged = {}
        for field in dataclasses.fields(of_step):
            night, step, usual = (
                getattr(each, field.name) for each in (of_night, of_step, default)
            )
            merged[field.name] = _merge(f"{name}.{field.name}", night, step, usual, path)
        return dataclasses.replace(of_step, **merged)
    if of_night == default:
        return of_step
    if of_step not in (default, of_night):
        raise InputError(
            f"Found --{name} {of_night} for the night, and {of_step} in {path}; expected one of "
            f"them. Remove {name} from {path}, or from the configuration of the night.",
            key=name,
        )
    return of_night
