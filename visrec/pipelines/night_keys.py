"""Keys that a night sets for all of its steps, such as the names of columns, so that they agree."""

import dataclasses
from dataclasses import dataclass

from visrec.cli.job import Job, JobConfig
from visrec.cli.workspace_keys import WorkspaceKeys
from visrec.errors import InputError
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.step_keys import StepFile
from visrec.pipelines.train import TrainJob


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


_AS_OF = {"interactions.as_of": "the cutoff is the date of the night, --as_of"}
_MODEL = "the night evaluates and serves the model that it trains"
_EVALUATION = "each model of a night has a folder of its own below evaluation"
# For each step's job, the keys that the night sets itself, and why.
_OF_NIGHT: dict[type[JobConfig], dict[str, str]] = {
    TrainJob: {"model_id": "the night names its model by its day", **_AS_OF},
    EvaluateJob: {"model": _MODEL, "models": _MODEL, "evaluation": _EVALUATION, **_AS_OF},
    RecommendJob: {"run_id": "the run is named by the date of the night", **_AS_OF},
}
_OF_TRAINING_NIGHT = {"model": _MODEL, "evaluation": _EVALUATION}


def with_night_keys(
    job: Job, defaults: Job, night: JobConfig, path: str | None, *, trains: bool
) -> Job:
    """The job of a step with the keys that the night sets.

    Args:
        job: the job of the step.
        defaults: the same job with only workspace keys and defaults.
        night: the configuration of the night, which has `NightKeys`.
        path: the YAML file of the step, for the error.
        trains: whether the night trains a model instead of using the workspace's latest.

    Raises:
        InputError: the night and the file set a key to different values, or the file sets a key
            that the night sets itself.
    """
    file = StepFile(path=path, defaults=defaults, command="the night")
    file.refuse(_OF_NIGHT.get(type(job), {}), job)
    if trains and isinstance(job, RecommendJob):
        file.refuse(_OF_TRAINING_NIGHT, job)
    of_job = {key.name for key in dataclasses.fields(job)}
    of_night = {key.name for key in dataclasses.fields(NightKeys)} | {"force_publish"}
    return file.merge(sorted(of_job & of_night), job, night)
