"""The night: new pictures, a model where one is due, lists, gates, publication, old runs removed.

python jobs/nightly.py --local
python jobs/nightly.py --config configs/nightly.yaml
python jobs/nightly.py --config configs/nightly.yaml --as_of 2026-11-20
ray job submit --working-dir . -- python jobs/nightly.py --config configs/nightly.yaml

A second start of the same night goes on where the first was stopped, and does nothing where that
is done. Nights may be filled in later, in any order, to the same lists.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from time import perf_counter
from typing import Any, Literal, TypeVar

import ray

from visrec.cli.launch import JobConfig, Summary, own_cause, parse
from visrec.config import check_fields
from visrec.errors import GateError, InputError
from visrec.features.table import MANIFEST as FEATURES
from visrec.features.table import read_manifest
from visrec.models import MODELS
from visrec.models.artifact import MANIFEST, load_artifact
from visrec.pipelines import evaluate, extract_features, recommend, train
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.input_checks import require_model, require_pictures, require_table
from visrec.pipelines.recommend import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.publication.retention import prune_runs
from visrec.publication.run import (
    find_complete,
    point_to,
    publication_status,
    run_store,
    why_not_published,
)
from visrec.sources.interactions import InteractionsConfig, read_interactions, require_past
from visrec.storage.lease import Lease
from visrec.storage.store import Store

_EPOCH = date(1970, 1, 1)
_BUSY = "another process is at work on this night"
# Of each step: the job, and the option that names the file with its keys.
_FILES = {
    "extract": ("jobs/extract_features.py", "extract"),
    "train": ("jobs/train.py", "training"),
    "evaluate": ("jobs/evaluate.py", "evaluation"),
    "recommend": ("jobs/recommend.py", "recommend"),
}
Job = TypeVar("Job", bound=JobConfig)
Timed = TypeVar("Timed", TrainJob, EvaluateJob, RecommendJob)


@dataclass(frozen=True, kw_only=True)
class NightlyJob(JobConfig):
    """The night.

    Attributes:
        as_of: the date whose night it is, and the name of the run; by default today's (UTC), and
            never a later one. What happened on that day or later is not known.
        extract: YAML with keys of jobs/extract_features.py; by default its own.
        training: YAML with keys of jobs/train.py.
        recommend: YAML with keys of jobs/recommend.py.
        evaluation: YAML with keys of jobs/evaluate.py.
        train_every: days that a model serves. Training days are counted from 1970, whatever was run
            before, so that a night has the same model whenever it is run. As long as nothing
            happened before the last of them, each night trains its own. 0 never trains: the model
            that jobs/recommend.py would take is taken.
        train_now: train a model of this night.
        evaluate: judge the model of a training day, so that the gates know it; in a folder of its
            own below evaluation.
        keep: nights that stay; older ones are removed, but for the published one and the one
            before.
        exit_if_running: exit code where another process is at work on the same night.
        force_publish: the reason to publish what the gates would hold back.
    """

    as_of: str | None = None
    extract: str | None = None
    training: str | None = None
    recommend: str | None = None
    evaluation: str | None = None
    train_every: int = 7
    train_now: bool = False
    evaluate: bool = True
    keep: int = 14
    exit_if_running: Literal[0, 3] = 0
    force_publish: str | None = None

    def __post_init__(self) -> None:
        begins = datetime.combine(self.night(), time(), UTC)
        require_past(begins.timestamp(), "as_of", self.as_of)
        # Of the nights that stay, one is to go back to.
        check_fields(self, "", train_every="[0, 36525]", keep="[2, 2147483647]")

    def night(self) -> date:
        """The date.

        Raises:
            InputError: it is none.
        """
        if self.as_of is None:
            return datetime.now(UTC).date()
        try:
            return date.fromisoformat(self.as_of)
        except ValueError as error:
            raise InputError(
                f"Found --as_of {self.as_of!r}; expected a date such as 2026-11-22."
            ) from error


def check(config: NightlyJob) -> None:
    Steps(config, config.night(), Summary("nightly")).require_inputs()


def main(config: NightlyJob, summary: Summary) -> None:
    night = config.night()
    steps = Steps(config, night, summary)
    nights = Store.at(config.resolve(None, "nights"))
    nights.check_writable()
    with Lease(nights, f"{night}.lease") as lease:
        if not lease.held:
            if config.exit_if_running:
                raise GateError(f"{_BUSY}; nothing was done here.")
            print(f"{_BUSY}: nothing to do here.", flush=True)
            summary.rows = {"night": night.isoformat(), "published": f"no: {_BUSY}"}
            return
        recommendations, name = steps.recommendations, night.isoformat()
        done = find_complete(run_store(recommendations, name)) is not None
        if not done:
            steps.extract()
            lease.check()
            model = steps.model()
            lease.check()
            steps.judge(model)
            lease.check()
            steps.publish(model)
        else:
            print(f"The night {night} is complete already.", flush=True)
            point_to(recommendations, name, rerun=True)
        with steps.step("retire"):
            removed = prune_runs(recommendations, config.keep, name)
            steps.rows["nights removed"] = ", ".join(removed) or "none"
        published = publication_status(recommendations, name, rerun=done)
        summary.rows = {"night": name, **steps.rows, "published": published}
        summary.not_published = why_not_published(recommendations, name, rerun=done)
        if not done or not nights.exists(f"{name}.json"):
            nights.write_json(f"{name}.json", {**summary.as_json(), "steps_s": steps.seconds})


@dataclass(frozen=True)
class NightModel:
    """A model of a training day, the day, and where it is judged."""

    store: Store
    day: date
    evaluation: Store


class Steps:
    """The other jobs, each on the night's workspace and as of the night.

    Args:
        config: of the night.
        night: its date.
        summary: takes the phases of all of them.
    """

    def __init__(self, config: NightlyJob, night: date, summary: Summary) -> None:
        self._config, self._night, self._summary = config, night, summary
        # All of them now: a mistake in one is not to be told after hours of another.
        self._extract = self._job(ExtractJob, config.extract)
        self._train = self._job(TrainJob, config.training)
        self._evaluate = self._job(EvaluateJob, config.evaluation)
        self._recommend = self._job(
            RecommendJob, config.recommend, run_id=night.isoformat(),
            force_publish=config.force_publish,
        )  # fmt: skip
        if self._trains:
            wanted = self._train.interactions.min_rating
            self._recommend.interactions.require_min_rating(wanted, "the night's training")
            if config.evaluate:
                self._evaluate.interactions.require_min_rating(wanted, "the night's training")
        self.rows: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    @property
    def recommendations(self) -> Store:
        return recommend.target_of(self._recommend)

    def require_inputs(self) -> None:
        """Raises an InputError where the pictures, a table or the model that is asked for is not
        there: a misspelt path of the last step is not to be told after hours of the first."""
        if not self._imported():
            with _naming_the_file("extract"):
                require_pictures(self._extract.resolve(self._extract.images, "images"))
        with _naming_the_file("recommend"):
            recommend.check_tables(self._recommend)
        if not self._trains:
            with _naming_the_file("recommend"):
                require_model(recommend.model_store(self._recommend, self._recommend.model))
            return
        with _naming_the_file("train"):
            train.check_tables(self._train)
        if self._config.evaluate:
            with _naming_the_file("evaluate"):
                require_table(self._evaluate.items, "items")

    @property
    def _trains(self) -> bool:
        return bool(self._config.train_every or self._config.train_now)

    def _imported(self) -> bool:
        features = Store.at(self._extract.resolve(self._extract.features, "features"))
        return features.exists(FEATURES) and read_manifest(features).identity.made_elsewhere

    def extract(self) -> None:
        """Features of new pictures, where features are made of pictures here."""
        if self._imported():
            print(f"\n{self._night} extract: left out, for features are imported here", flush=True)
            return
        with self.step("extract"):
            extract_features.main(self._extract, self._summary)
        self._take("pictures", "run through the network", "rejected")

    def model(self) -> "NightModel | None":
        """The night's model, trained where it is not yet; None for the workspace's last."""
        config, name = self._config, self._train.model.name
        if not self._trains:
            return None
        models = Store.at(self._train.resolve(self._train.models, "models"))
        due = _training_day(self._night, config.train_every)
        if config.train_now or not self._had_begun(models / f"{name}-{due}", due):
            day = self._night
        else:
            day = _newest(models, name, due, self._night) or due
        store = models / f"{name}-{day}"
        if not store.exists(MANIFEST):
            with self.step("train"):
                job = _as_of(self._train, day)
                job = dataclasses.replace(job, model_id=store.name, models=models.root)
                train.main(job, self._summary)
            self._take("validation AUC", "epochs")
        return NightModel(store, day, Store.at(config.resolve(None, f"evaluation/{store.name}")))

    def _had_begun(self, model: Store, due: date) -> bool:
        """Whether anything counts before a training day. Of a younger shop each night trains a
        model of its own until the next one, so that it has the same whenever it is run."""
        job = _as_of(self._train, due)
        uri = train.interactions_of(job)
        if uri is None or not MODELS[job.model.name].needs.interactions or model.exists(MANIFEST):
            return True
        return bool(ray.get(ray.remote(_any_counts).remote(job.interactions, uri)))

    def judge(self, model: "NightModel | None") -> None:
        """How good the night's model is, where that is not known yet and something is held out."""
        if model is None or not self._config.evaluate or not self._train.split.test:
            return
        if not ray.get(ray.remote(_holds_out).remote(model.store)):
            print(
                f"\n{self._night} evaluate: left out, for the training of {model.store.name} held "
                "nothing out: none of its users had two baskets",
                flush=True,
            )
            return
        known: dict[str, Any] = {}
        if model.evaluation.exists(recommend.METRICS):
            known = model.evaluation.read_json(recommend.METRICS)["digests"]
        if model.store.read_json(MANIFEST)["digest"] not in known.values():
            with self.step("evaluate"):
                job = dataclasses.replace(
                    self._evaluate, model=model.store.root, evaluation=model.evaluation.root
                )
                evaluate.main(_as_of(job, model.day), self._summary)

    def publish(self, model: "NightModel | None") -> None:
        """Lists of the night through the gates to the pointer."""
        with self.step("recommend"):
            job = self._recommend
            if model is not None:
                job = dataclasses.replace(
                    job, model=model.store.root, evaluation=model.evaluation.root
                )
            recommend.main(_as_of(job, self._night), self._summary)
        self._take("model", "users", "cold users", "shards scored now", "lists carried over")
        self._take("gates", "forced past", "evaluation", "run at")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A heading, and the seconds of a step."""
        print(f"\n{self._night} {name}", flush=True)
        start = perf_counter()
        with _naming_the_file(name):
            yield
        self.seconds[name] = round(perf_counter() - start, 2)

    def _take(self, *names: str) -> None:
        """Rows of a job's summary for the night's."""
        self.rows |= {
            name: self._summary.rows[name] for name in names if name in self._summary.rows
        }

    def _job(self, kind: type[Job], given: str | None, **keys: Any) -> Job:
        """A job as its YAML has it, on the night's workspace.

        Raises:
            InputError: a key or a value in it is not known.
        """
        config = self._config
        try:
            job = parse(kind, ["--config", given] if given else [])
        except InputError as error:
            named = str(given) in str(error)
            raise InputError(str(error) if named else f"{given}: {error}") from error
        return dataclasses.replace(job, workspace=config.workspace, local=config.local, **keys)


@contextmanager
def _naming_the_file(step: str) -> Iterator[None]:
    """Says of a step's error, which names keys of the step's job, in which file they stand.

    Raises:
        InputError: the step's own with that sentence behind it.
    """
    try:
        yield
    except Exception as error:
        cause = own_cause(error)
        if step not in _FILES or not isinstance(cause, InputError) or "--" not in str(cause):
            raise
        job, option = _FILES[step]
        raise InputError(
            f"{cause} (Keys of {job} stand in the YAML file of --{option}.)"
        ) from error


def _as_of(job: Timed, day: date) -> Timed:
    """The job, which knows nothing of that day and later."""
    known = dataclasses.replace(job.interactions, as_of=day.isoformat())
    return dataclasses.replace(job, interactions=known)


def _any_counts(config: InteractionsConfig, uri: str) -> bool:
    return any(len(batch) for batch in read_interactions(config, uri))


def _holds_out(model: Store) -> bool:
    return len(load_artifact(model).held_out) > 0


def _training_day(night: date, every: int) -> date:
    """The last day, counted from 1970 in steps of `every` days, that is not after the night."""
    days = (night - _EPOCH).days
    return date.fromordinal(_EPOCH.toordinal() + days - days % max(every, 1))


def _newest(models: Store, name: str, first: date, last: date) -> date | None:
    """The newest day between two of which there is a model."""
    for back in range((last - first).days + 1):
        day = date.fromordinal(last.toordinal() - back)
        if (models / f"{name}-{day}").exists(MANIFEST):
            return day
    return None
