"""The jobs of a night: one for each step, read from its YAML file, on the night's workspace."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

from visrec.cli.job import Job, JobConfig
from visrec.cli.keys import config_keys, key_exists
from visrec.cli.launch import visrec_cause
from visrec.cli.parse import parse_in_workspace
from visrec.errors import GateError, InputError
from visrec.features.table import FEATURES_MANIFEST, read_manifest
from visrec.pipelines import evaluate, extract_features, recommend_job, train
from visrec.pipelines.ablate import require_triples
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.input_checks import require_model, require_table
from visrec.pipelines.job_tables import items_table
from visrec.pipelines.night_keys import NightKeys
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.storage import schemas
from visrec.storage.store import Store

# For each step, whose name is also that of its command, the job with the keys of --<step>_config.
_JOBS: dict[str, type[JobConfig]] = {
    "extract": ExtractJob,
    "train": TrainJob,
    "evaluate": EvaluateJob,
    "recommend": RecommendJob,
}
JobWithCutoff = TypeVar("JobWithCutoff", TrainJob, EvaluateJob, RecommendJob)


@dataclass(frozen=True)
class NightJobs:
    """The configuration of each step of a night.

    Attributes:
        extract: features of the pictures.
        train: the model of a training day.
        evaluate: the evaluation of that model.
        recommend: the lists.
    """

    extract: ExtractJob
    train: TrainJob
    evaluate: EvaluateJob
    recommend: RecommendJob

    @property
    def extracts(self) -> bool:
        """Whether there is anything to extract: not if the features were imported, unless texts are
        embedded."""
        if self.extract.text.model is not None:
            return True
        features = Store.at(self.extract.resolve(self.extract.features, "features"))
        has_features = features.exists(FEATURES_MANIFEST)
        return not (has_features and read_manifest(features).identity.is_imported)

    def require_same_min_rating(self, *, evaluates: bool) -> None:
        """Raises an error if lists or evaluation use a different min_rating than training.

        Args:
            evaluates: whether the night evaluates its model.
        """
        min_rating = self.train.interactions.min_rating
        self.recommend.interactions.require_min_rating(min_rating, "the night's training")
        if evaluates:
            self.evaluate.interactions.require_min_rating(min_rating, "the night's training")

    def require_evaluation(self) -> None:
        """Checks what the evaluation trains itself, which comes after the night's training."""
        evaluate.check_training(self.evaluate)
        if self.evaluate.ablate:
            require_triples(self.train.model.name, "as the model of the night")

    def require_inputs(self, *, trains: bool, evaluates: bool) -> None:
        """Checks the inputs of all steps before the first step starts.

        Args:
            trains: whether the night trains a model instead of using the workspace's latest.
            evaluates: whether that model is evaluated.

        Raises:
            InputError: the pictures, a table or the model is missing.
        """
        if self.extracts:
            with naming_config_file("extract"):
                extract_features.check(self.extract)
        with naming_config_file("recommend"):
            recommend_job.check_tables(self.recommend)
        if not trains:
            with naming_config_file("recommend"):
                require_model(recommend_job.model_store(self.recommend, self.recommend.model))
            return
        with naming_config_file("train"):
            train.check_tables(self.train)
        if evaluates:
            with naming_config_file("evaluate"):
                self.require_evaluation()
                items = items_table(self.evaluate, self.evaluate.items, self.evaluate.items_columns)
                require_table(items, schemas.ITEMS)


def load_job(job_type: type[Job], path: str | None, night: JobConfig) -> Job:
    """The job of a step, on the workspace of the night.

    Args:
        job_type: its class.
        path: its YAML file; without one it has default keys.
        night: the configuration of the night.

    Raises:
        InputError: the file has an unknown key or a wrong value.
    """
    config_flags = ["--config", path] if path else []
    night_flags = ["--workspace", night.workspace, "--local", str(night.local).lower()]
    try:
        return parse_in_workspace(job_type, [*config_flags, *night_flags])
    except InputError as error:
        if path is None or path == error.path:  # then the message names it already
            raise
        raise InputError(f"{path}: {error}", path=path, key=error.key) from error


def with_cutoff(job: JobWithCutoff, day: date) -> JobWithCutoff:
    """The job with a cutoff: interactions of that day and later are left out."""
    interactions = dataclasses.replace(job.interactions, as_of=day.isoformat())
    return dataclasses.replace(job, interactions=interactions)


def explain_step_key(key: str) -> str:
    """The end of a sentence about a key that only steps' jobs have; empty if none has it."""
    steps = [step for step, job in _JOBS.items() if key_exists(key, config_keys(job))]
    if not steps and key.startswith("model."):
        steps = ["train"]  # a key of another model than the default one
    if not steps:
        return ""
    commands = " and ".join(f"`visrec {step}`" for step in steps)
    files = " or ".join(f"--{step}_config" for step in steps)
    return f", which is a key of {commands}; expected it in the YAML file of {files}."


@contextmanager
def naming_config_file(step: str) -> Iterator[None]:
    """Adds to an error the name of the YAML file that holds the keys it mentions.

    Raises:
        InputError: the error with that sentence appended.
        GateError: the same.
    """
    try:
        yield
    except Exception as error:
        cause = visrec_cause(error)
        if step not in _JOBS or not isinstance(cause, InputError | GateError):
            raise
        keys = cause.keys
        if isinstance(cause, GateError):  # --force_publish is a flag of the night, too
            keys = tuple(key for key in keys if key != "force_publish")
        if not keys:
            raise
        # A key that the night also has may be in either file.
        where = "are the night's own, or may be in"
        of_night = config_keys(NightKeys)
        if not all(key_exists(key, of_night) for key in keys):
            where = "belong in"
        named = copy.copy(cause)  # which keeps its class and its fields
        named.args = (
            f"{cause} (Keys of `visrec {step}` {where} the YAML file of --{step}_config.)",
        )
        raise named from error
