"""Which model a night trains or has: that of the last training day, or one of its own.

Training days are counted from 1970 and do not depend on which nights have been run. So a night gets
the same model whenever it is run, with three exceptions. If `--train_now` trained a model between
the training day and this night, the night uses the newest such model. With `--train_every 0` the
night uses the model that the workspace trained last, whatever its cutoff. And a model that is
trained late sees the pictures and items of now.

The cutoff of a model, and of its evaluation, is its training day. That is the night's own date on a
training day, with `--train_now`, and while there is nothing to train on before the training day.
"""

import dataclasses
from dataclasses import dataclass
from datetime import date, timedelta

from visrec.errors import NoExamplesError
from visrec.evaluation.results import METRICS
from visrec.models.artifact import MODEL_MANIFEST, load_artifact
from visrec.pipelines import train
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.night_jobs import with_cutoff
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.storage.store import Store
from visrec.tasks import call
from visrec.training.data import TrainingInputs, load_training_data
from visrec.training.fit import TrainingRecipe, require_examples

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class NightModel:
    """A model of a night, trained or not.

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
        return self.store.exists(MODEL_MANIFEST)

    @property
    def digest(self) -> str:
        """The digest of the trained model."""
        return str(self.store.read_json(MODEL_MANIFEST)["digest"])

    @property
    def is_evaluated(self) -> bool:
        """Whether there is an evaluation of this very model."""
        if not self.evaluation.exists(METRICS):
            return False
        return self.digest in self.evaluation.read_json(METRICS)["digests"].values()

    @property
    def has_trained_weights(self) -> bool:
        """Whether the model has weights that training has set, and not counts or statistics."""
        return call(_has_trained_weights, self.store)

    def has_held_out_rows(self) -> bool:
        """Whether there are test rows to evaluate the trained model with."""
        return call(_has_held_out_rows, self.store)

    def train_job(self, job: TrainJob) -> TrainJob:
        return dataclasses.replace(with_cutoff(job, self.day), model_id=self.store.name)

    def evaluate_job(self, job: EvaluateJob) -> EvaluateJob:
        job = dataclasses.replace(job, model=self.store.root, evaluation=self.evaluation.root)
        return with_cutoff(job, self.day)

    def recommend_job(self, job: RecommendJob) -> RecommendJob:
        return dataclasses.replace(job, model=self.store.root, evaluation=self.evaluation.root)


def models_to_try(
    job: TrainJob, night: date, train_every: int, *, train_now: bool
) -> list[NightModel]:
    """The models that may serve a night, in the order in which they are tried.

    Usually there is one: the newest trained model of the days from the last training day to the
    night. If none is trained, two are tried: a model of the training day, then a model of the night
    itself, which sees more interactions. If what was known on the training day gives nothing to
    train on, each night until the next training day trains a model of its own.

    Args:
        job: how models are trained.
        night: date of the night.
        train_every: days from one training day to the next.
        train_now: the night trains its own model in any case.
    """
    models = train.models_store(job)
    name = job.model.name
    due = training_day(night, train_every)
    newest = newest_model_day(models, name, due, night)
    if train_now or newest == night:
        days = [night]
    elif newest is None:
        days = [due, night]
    elif model_of_day(job, name, due).is_trained or _has_examples(job, due):
        days = [newest]
    else:  # the newest model is an earlier night's own
        days = [night]
    return [model_of_day(job, name, day) for day in dict.fromkeys(days)]


def model_of_day(job: TrainJob, name: str, day: date) -> NightModel:
    """The model of a day, and where its evaluation is.

    Args:
        job: how models are trained; its workspace has the model.
        name: its kind, or the row of the evaluation of a baseline.
        day: the cutoff of its training.
    """
    store = train.models_store(job) / f"{name}-{day}"
    return NightModel(day, store, Store.at(job.resolve(None, f"evaluation/{store.name}")))


def training_day(night: date, train_every: int) -> date:
    """The last training day up to a night; every day is one if `train_every` is 1.

    With `train_every` 0, only `--train_now` trains; the result is then the night itself.
    """
    days_since = (night - _EPOCH).days % max(train_every, 1)
    return night - timedelta(days=days_since)


def newest_model_day(models: Store, name: str, first: date, last: date) -> date | None:
    """The latest day from `first` to `last` that has a trained model; None if no day has."""
    for days_back in range((last - first).days + 1):
        day = last - timedelta(days=days_back)
        if (models / f"{name}-{day}").exists(MODEL_MANIFEST):
            return day
    return None


def _has_examples(job: TrainJob, day: date) -> bool:
    """Whether there is something to train on in what was known on a day."""
    job = with_cutoff(job, day)
    inputs = train.training_inputs(job, Store.at(job.resolve(job.features, "features")))
    return call(_has_training_examples, inputs, train.training_recipe(job))


def _has_training_examples(inputs: TrainingInputs, recipe: TrainingRecipe) -> bool:
    try:
        require_examples(recipe, load_training_data(inputs))
    except NoExamplesError:
        return False
    return True


def _has_held_out_rows(model: Store) -> bool:
    return len(load_artifact(model).held_out) > 0


def _has_trained_weights(model: Store) -> bool:
    return load_artifact(model).model.trains_on != "nothing"
