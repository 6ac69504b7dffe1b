"""Keys that a night sets for all of its steps, such as the names of columns, so that they agree."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from visrec.cli.job import Job
from visrec.errors import InputError
from visrec.sources.interactions import InteractionsConfig


@dataclass(frozen=True, kw_only=True)
class NightKeys:
    """The keys of the night that its steps' jobs have under the same names.

    Attributes:
        interactions: as in the other jobs. What is set here counts for all steps; as_of is the
            date of the night.
        images: pictures; by default images of the workspace.
        image_pattern: names of several pictures of an item, such as {item_id}_{view}.jpg.
        items: items table of all steps; by default items.* of the workspace, if it exists.
        items_columns: its columns that have other names in the files, such as {item_id: sku}.
        users: users table; by default users.* of the workspace, if it exists.
        users_columns: its columns that have other names in the files.
    """

    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    images: str | None = None
    image_pattern: str | None = None
    items: str | None = None
    items_columns: dict[str, str] = field(default_factory=dict)
    users: str | None = None
    users_columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.interactions.as_of is not None:
            raise InputError(
                f"Found --interactions.as_of {self.interactions.as_of}; expected --as_of, the date "
                "of the night.",
                key="interactions.as_of",
            )


def with_night_keys(job: Job, night: NightKeys, path: str | None) -> Job:
    """The job of a step with the keys that the night sets.

    Args:
        job: of the step.
        night: the configuration of the night.
        path: the YAML file of the step, for the error.

    Raises:
        InputError: the night and the file set a key to different values.
    """
    of_job = {key.name for key in dataclasses.fields(job)}
    shared = {
        key.name: _merge(key.name, getattr(night, key.name), getattr(job, key.name), key, path)
        for key in dataclasses.fields(NightKeys)
        if key.name in of_job
    }
    return dataclasses.replace(job, **shared)


def _default(key: "dataclasses.Field[Any]") -> Any:
    """The default of a key, whatever its type is."""
    made_by = key.default_factory
    return key.default if made_by is dataclasses.MISSING else made_by()


def _merge(
    name: str, of_night: Any, of_step: Any, key: "dataclasses.Field[Any]", path: str | None
) -> Any:
    """The value of a key, whatever its type is; a configuration is merged field by field."""
    if dataclasses.is_dataclass(of_step) and not isinstance(of_step, type):
        merged = {}
        for inner in dataclasses.fields(of_step):
            values = getattr(of_night, inner.name), getattr(of_step, inner.name)
            merged[inner.name] = _merge(f"{name}.{inner.name}", *values, inner, path)
        return dataclasses.replace(of_step, **merged)
    default = _default(key)
    if of_night == default:
        return of_step
    if of_step not in (default, of_night):
        raise InputError(
            f"Found --{name} {of_night} for the night, and {of_step} in {path}; expected one of "
            f"them. Remove {name} from {path}, or from the configuration of the night.",
            key=name,
        )
    return of_night
