"""The YAML file of a step beside the command that runs the step: a key of the file counts, or it is
refused before anything runs."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrec.cli.job import Job, JobConfig
from visrec.cli.keys import flatten, parse_yaml, without_secrets
from visrec.cli.workspace_keys import value_of
from visrec.errors import InputError


@dataclass(frozen=True, kw_only=True)
class StepFile:
    """The YAML file of a step.

    Attributes:
        path: its location; None without a file.
        defaults: the job of the step with only workspace keys and defaults.
        command: what runs the step, for errors, such as "the night".
    """

    path: str | None
    defaults: JobConfig
    command: str

    def merge(self, names: Iterable[str], job: Job, outer: JobConfig) -> Job:
        """The job of the step with those keys that the command sets.

        Args:
            names: the keys that both have.
            job: the job of the step, by its file.
            outer: the configuration of the command.

        Raises:
            InputError: the command and the file set a key to different values.
        """
        merged = {name: self._merge(name, job, outer) for name in names}
        return dataclasses.replace(job, **merged)

    def _merge(self, name: str, job: JobConfig, outer: JobConfig) -> Any:
        """The value of a dotted key, whatever its type is; a configuration is merged field by
        field."""
        of_command, of_step, default = (
            value_of(each, name) for each in (outer, job, self.defaults)
        )
        if dataclasses.is_dataclass(of_step) and not isinstance(of_step, type):
            fields = (field.name for field in dataclasses.fields(of_step))
            merged = {field: self._merge(f"{name}.{field}", job, outer) for field in fields}
            return dataclasses.replace(of_step, **merged)
        # A flag counts even if it has the value that the workspace has: somebody has just typed it.
        if of_command == default and not _is_given(name, outer):
            return of_step
        is_set_by_step = of_step != default or _is_given(name, job)
        if of_step != of_command and is_set_by_step:
            raise InputError(
                f"Found --{name} {without_secrets(of_command)} for {self.command}, and "
                f"{without_secrets(of_step)} in {self.path}; expected one of them. Remove {name} "
                f"from {self.path}, or from the command or the configuration of {self.command}.",
                key=name,
            )
        return of_command

    def refuse(self, keys: Mapping[str, str], job: JobConfig) -> None:
        """Refuses keys that the command sets itself.

        Args:
            keys: for each dotted key, or group of keys, why the file cannot set it.
            job: the job of the step, by its file.

        Raises:
            InputError: the file sets one of them to another value than the default.
        """
        for key, why in keys.items():
            if value_of(job, key) != value_of(self.defaults, key):
                raise InputError(
                    f"Found {key} in {self.path}; expected it to be left out: {why}.",
                    path=self.path,
                    key=key,
                )


def read_given_keys(path: str) -> dict[str, Any]:
    """The dotted keys of a YAML file, which has been parsed before."""
    return dict(flatten(parse_yaml(Path(path).read_bytes(), path), {}))


def _is_given(name: str, job: JobConfig) -> bool:
    """Whether a flag or a file sets a key, or an entry of it."""
    return any(key == name or key.startswith(f"{name}.") for key in job.given_keys)
