"""Keys that a night sets for all of its steps, such as the names of columns, so that they agree."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from visrec.cli.job import Job, JobConfig
from visrec.cli.keys import without_secrets
from visrec.cli.workspace_keys import WorkspaceKeys, value_of
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


@dataclass(frozen=True)
class _Layers:
    """A step's keys from which those of the step and of its night are merged.

    Attributes:
        night: the configuration of the night.
        step: the job of the step, by its own file.
        defaults: the same job with only workspace keys and defaults.
        path: the YAML file of the step, for the error.
    """

    night: JobConfig
    step: JobConfig
    defaults: JobConfig
    path: str | None


def with_night_keys(job: Job, defaults: Job, night: JobConfig, path: str | None) -> Job:
    """The job of a step with the keys that the night sets.

    Args:
        job: the job of the step.
        defaults: the same job with only workspace keys and defaults.
        night: the configuration of the night, which has `NightKeys`.
        path: the YAML file of the step, for the error.

    Raises:
        InputError: the night and the file set a key to different values.
    """
    layers = _Layers(night, job, defaults, path)
    of_job = {key.name for key in dataclasses.fields(job)}
    shared = {
        name: _merge(name, layers)
        for name in sorted(of_job & {key.name for key in dataclasses.fields(NightKeys)})
    }
    return dataclasses.replace(job, **shared)


def _merge(name: str, layers: _Layers) -> Any:
    """The value of a dotted key, whatever its type is; a configuration is merged field by field."""
    of_night, of_step, default = (
        value_of(each, name) for each in (layers.night, layers.step, layers.defaults)
    )
    if dataclasses.is_dataclass(of_step) and not isinstance(of_step, type):
        fields = (field.name for field in dataclasses.fields(of_step))
        merged = {field: _merge(f"{name}.{field}", layers) for field in fields}
        return dataclasses.replace(of_step, **merged)
    # A flag counts even if it has the value that the workspace has: somebody has just typed it.
    if of_night == default and not _is_given(name, layers.night):
        return of_step
    is_set_by_step = of_step != default or _is_given(name, layers.step)
    if of_step != of_night and is_set_by_step:
        raise InputError(
            f"Found --{name} {without_secrets(of_night)} for the night, and "
            f"{without_secrets(of_step)} in {layers.path}; expected one of them. Remove {name} "
            f"from {layers.path}, or from the command or the configuration of the night.",
            key=name,
        )
    return of_night


def _is_given(name: str, job: JobConfig) -> bool:
    """Whether a flag or a file sets a key, or an entry of it."""
    return any(key == name or key.startswith(f"{name}.") for key in job.given_keys)
