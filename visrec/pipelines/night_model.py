"""Which model serves a night: the one of the last training day, or one of its own.

Training days are counted from 1970 and do not depend on which nights have been run. So a night gets
the same model whenever it is run, unless a night between its training day and itself has trained a
model of its own (`--train_now`): then it gets the newest of these.
"""

import dataclasses
from dataclasses import dataclass
from datetime import date

import ray

from visrec.evaluation.results import METRICS
from visrec.models import MODELS
from visrec.models.artifact import MANIFEST, load_artifact
from visrec.pipelines import train
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.night_jobs import with_cutoff
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.sources.interactions import InteractionsConfig, read_interactions
from visrec.storage.store import Store

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class NightModel:
    """The model that serves a night, trained or not.

    Attributes:
        day: the training day, which is the cutoff of its training.
        store: its directory.
        evaluation: the directory of its evaluation.
    """

    day: date
    store: Store
    evaluation: Store

    @property
    def is_trained(self) -> bool:
        return self.store.exists(MANIFEST)

    @property
    def is_evaluated(self) -> bool:
        """Whether there is an evaluation of this very model."""
        if not self.evaluation.exists(METRICS):
            return False
        digests = self.evaluation.read_json(METRICS)["digests"]
        return self.store.read_json(MANIFEST)["digest"] in digests.values()

    def has_held_out_rows(self) -> bool:
        """Whether there are test rows to evaluate the trained model with."""
        return bool(ray.get(ray.remote(_has_held_out_rows).remote(self.store)))

    def train_job(self, job: TrainJob) -> TrainJob:
        return dataclasses.replace(with_cutoff(job, self.day), model_id=self.store.name)

    def evaluate_job(self, job: EvaluateJob) -> EvaluateJob:
        job = dataclasses.replace(job, model=self.store.root, evaluation=self.evaluation.root)
        return with_cutoff(job, self.day)

    def recommend_job(self, job: RecommendJob) -> RecommendJob:
        return dataclasses.replace(job, model=self.store.root, evaluation=self.evaluation.root)


def choose_model(job: TrainJob, night: date, train_every: int, *, train_now: bool) -> NightModel:
    """The model of a night.

    It is the newest trained model of the days from the last training day to the night. If there is
    none, it is a model of the training day, still to be trained. If there are no interactions
    before the training day, each night until the next training day trains a model of its own.

    Args:
        job: how models are trained.
        night: date of the night.
        train_every: days from one training day to the next.
        train_now: the night trains its own model in any case.
    """
    models, name = train.models_store(job), job.model.name
    due = training_day(night, train_every)
    if train_now or not _can_train(job, models / f"{name}-{due}", due):
        day = night
    else:
        day = newest_model_day(models, name, due, night) or due
    store = models / f"{name}-{day}"
    return NightModel(day, store, Store.at(job.resolve(None, f"evaluation/{store.name}")))


def training_day(night: date, train_every: int) -> date:
    """The last training day up to a night; every day is one if `train_every` is 1.

    With `train_every` 0, only `--train_now` trains; the result is then the night itself.
    """
    days = (night - _EPOCH).days
    return date.fromordinal(_EPOCH.toordinal() + days - days % max(train_every, 1))


def newest_model_day(models: Store, name: str, first: date, last: date) -> date | None:
    """The last day between two for which there is a trained model."""
    for days_back in range((last - first).days + 1):
        day = date.fromordinal(last.toordinal() - days_back)
        if (models / f"{name}-{day}").exists(MANIFEST):
            return day
    return None


def _can_train(job: TrainJob, model: Store, day: date) -> bool:
    """Whether a model is there, or needs no interactions, or there are some before its day."""
    job = with_cutoff(job, day)
    uri = train.interactions_uri(job)
    requires_interactions = MODELS[job.model.name].traits.requires_interactions
    if uri is None or not requires_interactions or model.exists(MANIFEST):
        return True
    return bool(ray.get(ray.remote(_has_interactions).remote(job.interactions, uri)))


def _has_interactions(config: InteractionsConfig, uri: str) -> bool:
    return any(len(batch) for batch in read_interactions(config, uri))


def _has_held_out_rows(model: Store) -> bool:
    return len(load_artifact(model).held_out) > 0
