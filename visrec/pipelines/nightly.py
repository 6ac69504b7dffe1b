"""One night: features of new pictures, a model if one is due, lists, gates, publication, retention.

visrec nightly --local
visrec nightly --config configs/nightly.yaml
visrec nightly --config configs/nightly.yaml --as_of 2026-11-20
visrec submit nightly --config configs/nightly.yaml

A second start of the same night continues where the first one stopped. If the night is complete, it
makes no lists: it moves the pointer if the first start died before that, removes old nights and
exports. Missed nights can be run later, in any order. A backfilled night uses the interactions
before its date and, with exceptions (`night_model.py`), the model that it would have used then.
Pictures, items, users and block lists are as they are now.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from time import perf_counter
from typing import Any, Literal

from visrec.cli.job import Job, JobConfig
from visrec.cli.notify import NotifyConfig, require_notifier
from visrec.cli.output import say
from visrec.cli.summary import Summary
from visrec.config import check_fields
from visrec.errors import BusyError, GateError, InputError, NoExamplesError
from visrec.exports.targets import parse_target
from visrec.pipelines import evaluate, extract_features, recommend, train
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.export import LEASES, export_or_raise
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.night_choice import (
    DEFAULT_ROW,
    NO_TEST_USERS,
    Served,
    choose_served,
    fit_baseline,
)
from visrec.pipelines.night_command import visrec_command
from visrec.pipelines.night_jobs import (
    NightJobs,
    explain_step_key,
    load_job,
    naming_config_file,
    with_cutoff,
)
from visrec.pipelines.night_keys import NightKeys, with_night_keys
from visrec.pipelines.night_model import NightModel, model_of_day, models_to_try
from visrec.pipelines.recommend_job import (
    RecommendJob,
    announce_run_tables,
    recommendations_store,
)
from visrec.pipelines.train import TrainJob
from visrec.publication.completion import read_complete_run
from visrec.publication.publish import publication_status, publish_run
from visrec.publication.retention import remove_old_runs
from visrec.publication.run_spec import run_store
from visrec.sources.interactions import require_past
from visrec.storage.lease import Lease
from visrec.storage.store import Store

_BUSY = "another process is at work on this night"
_WHAT_TO_DO = (
    "Wait until it ends; or stop it and start this command again, which continues where it stopped."
)


@dataclass(frozen=True, kw_only=True)
class NightlyJob(NightKeys, JobConfig):
    """The night.

    Attributes:
        as_of: date of the night, which is also the name of the run; by default today (UTC), and
            never a later day. Interactions of that day and later are left out.
        extract_config: YAML with keys of `visrec extract`; by default its defaults. The workspace,
            and how a step starts and shows messages, are the night's own in all of these files.
        train_config: YAML with keys of `visrec train`.
        recommend_config: YAML with keys of `visrec recommend`.
        evaluate_config: YAML with keys of `visrec evaluate`.
        train_every: days that a model serves. Training days are counted from 1970, so that a night
            has the same model whenever it is run, unless a night before it trained a model with
            train_now. Until there are interactions before a training day, each night trains a model
            of its own. With 0 no model is trained, except by train_now, and the night uses the
            model that `visrec recommend` would use.
        train_now: train a model of this night.
        evaluate: evaluate the model of a training day, into its own folder below evaluation, so
            that the gates can check it.
        keep: nights to keep; older ones are removed, except the published one and the one published
            before it.
        export_to: list of targets, as --to of `visrec export` takes them, that get the changed
            lists of the published run at the end of the night. If that fails, the night stays
            published, and the next start of the night exports again.
        exit_if_running: exit code if another process is at work on the same night; nothing is done
            then.
        force_publish: the reason to publish lists that a gate would hold back.
        notify: where a message goes if the night fails, is refused or is held back.
    """

    as_of: str | None = None
    extract_config: str | None = None
    train_config: str | None = None
    recommend_config: str | None = None
    evaluate_config: str | None = None
    train_every: int = 7
    train_now: bool = False
    evaluate: bool = True
    keep: int = 14
    export_to: list[str] = field(default_factory=list)
    exit_if_running: Literal[0, 3] = 0
    force_publish: str | None = None
    notify: NotifyConfig = field(default_factory=NotifyConfig)

    def __post_init__(self) -> None:
        if self.as_of is None:  # once, so that a night which runs past midnight stays this one
            object.__setattr__(self, "as_of", datetime.now(UTC).date().isoformat())
        midnight = datetime.combine(self.night_date(), time(), UTC)
        require_past(midnight.timestamp(), "as_of", self.as_of, "a date")
        super().__post_init__()
        # With fewer than two nights there would be none to roll back to.
        check_fields(self, "", train_every="[0, 36525]", keep="[2, 2147483647]")

    @classmethod
    def explain_foreign_key(cls, key: str) -> str:
        """Which file takes a key that only a step's job has."""
        return explain_step_key(key)

    def night_date(self) -> date:
        """The date of the night.

        Raises:
            InputError: `as_of` is not a date.
        """
        try:
            return date.fromisoformat(str(self.as_of))
        except ValueError as error:
            raise InputError(
                f"Found --as_of {self.as_of!r}; expected a date such as 2026-11-22."
            ) from error

    @property
    def trains(self) -> bool:
        """Whether models are trained at all."""
        return bool(self.train_every or self.train_now)


def check(config: NightlyJob) -> None:
    require_notifier(config.notify)
    jobs = load_jobs(config)
    jobs.require_inputs(trains=config.trains, evaluates=config.evaluate)
    for url in config.export_to:
        parse_target(url)
    announce_run_tables(jobs.recommend)


def main(config: NightlyJob, summary: Summary) -> None:
    night = config.night_date().isoformat()
    steps = Steps(config, load_jobs(config), summary)
    nights = Store.at(config.resolve(None, "nights"))
    nights.check_writable()
    with Lease(nights, f"{night}.lease", on_wait=say) as lease:
        if not lease.held:
            busy = f"{_BUSY}: {lease.holder}. Nothing was done here. {_WHAT_TO_DO}"
            if config.exit_if_running:
                raise BusyError(busy)
            say(busy)
            summary.is_busy = True
            summary.rows = {
                "night": night,
                "at work": lease.holder,
                "published": f"no: {_BUSY}",
            }
            return
        recommendations = recommendations_store(steps.jobs.recommend)
        manifest = read_complete_run(run_store(recommendations, night))
        if manifest is not None:
            say(
                f"The night {night} is complete already. It knows what happened before {night} "
                "00:00 UTC; later interactions count in the next night."
            )
            tables = steps.jobs.recommend.publish.tables
            publish_run(recommendations, night, completed_by_another=True, tables=tables)
            steps.rows |= {"model": manifest.model_id, "choice": manifest.choice}
        else:
            try:
                _run_steps(steps, lease)
            except GateError as error:
                summary.rows = {"night": night, **steps.rows, "published": f"no: {error}"}
                _record(nights, night, summary, steps)
                summary.write(Store.at(config.workspace))
                raise
        with steps.step("retention"):
            removed = remove_old_runs(recommendations, config.keep, night)
            steps.rows["nights removed"] = ", ".join(removed) or "none"
        status = publication_status(
            recommendations, night, completed_by_another=manifest is not None
        )
        summary.rows = {"night": night, **steps.rows, "published": status.summary}
        summary.rows |= status.tables_row(steps.jobs.recommend.publish.tables)
        summary.rows["next"] = visrec_command("explain", config.workspace, user="USER")
        summary.not_published = status.explanation
        if manifest is None or not nights.exists(f"{night}.json"):
            _record(nights, night, summary, steps)
        if config.export_to:
            with steps.step("export"):
                leases = Store.at(config.resolve(None, LEASES))
                summary.rows |= export_or_raise(config.export_to, recommendations, leases)


def _run_steps(steps: "Steps", lease: Lease) -> None:
    """From pictures to published lists, as long as this process has the night.

    Raises:
        GateError: a gate held the lists back.
    """
    steps.extract()
    lease.check()
    model = steps.train()
    lease.check()
    steps.evaluate(model)
    lease.check()
    steps.recommend(steps.choose(model))


def _record(nights: Store, night: str, summary: Summary, steps: "Steps") -> None:
    """Writes how a night ended; a later start that completes it writes it again."""
    nights.write_json(f"{night}.json", {**summary.to_dict(), "steps_s": steps.seconds})


def load_jobs(config: NightlyJob) -> NightJobs:
    """Loads the jobs of all steps, so that a wrong key is found before the first step runs.

    None of them has a cutoff yet: `NightModel` gives training and evaluation theirs, and
    `Steps.recommend` the lists theirs.
    """
    jobs = NightJobs(
        extract=_load(ExtractJob, config.extract_config, config),
        train=_load(TrainJob, config.train_config, config),
        evaluate=_load(EvaluateJob, config.evaluate_config, config),
        recommend=dataclasses.replace(
            _load(RecommendJob, config.recommend_config, config),
            run_id=config.night_date().isoformat(),
        ),
    )
    if config.trains:
        jobs.require_same_min_rating(evaluates=config.evaluate)
    return jobs


def _load(job_type: type[Job], path: str | None, config: NightlyJob) -> Job:
    defaults = load_job(job_type, None, config)
    job = load_job(job_type, path, config) if path else defaults
    return with_night_keys(job, defaults, config, path, trains=config.trains)


class Steps:
    """Runs the steps of a night.

    Args:
        config: the night's configuration.
        jobs: the jobs of its steps.
        summary: receives the phases of the jobs.

    Attributes:
        rows: what the summary of the night shows of its steps.
        seconds: wall time of each step that ran. (`Summary.phases` are phases of the jobs.)
    """

    def __init__(self, config: NightlyJob, jobs: NightJobs, summary: Summary) -> None:
        self.jobs = jobs
        self._config, self._night, self._summary = config, config.night_date(), summary
        self.rows: dict[str, Any] = {}  # values of any type that a summary shows
        self.seconds: dict[str, float] = {}
        self._why_untrained: str | None = None  # of the configured model

    def extract(self) -> None:
        """Extracts the features of new pictures and texts, unless features are imported."""
        if not self.jobs.extracts:
            self._skip("extract", "the features are imported")
            return
        with self.step("extract"):
            extract_features.main(self.jobs.extract, self._summary)
        self._take_rows("pictures", "run through the network", "rejected", "rejected by reason")
        self._take_rows("texts", "texts embedded", "items without a text")

    def train(self) -> NightModel | None:
        """The night's model, trained if necessary.

        None means: use the workspace's latest model. Where there is nothing to train on, the model
        is VisRank.
        """
        config, job = self._config, self.jobs.train
        if not config.trains:
            return None
        models = models_to_try(job, self._night, config.train_every, train_now=config.train_now)
        why_untrained: str | None = None
        for model in models:
            if model.is_trained:
                return model
            try:
                with self.step("train"):
                    train.main(model.train_job(job), self._summary)
            except NoExamplesError as error:
                why_untrained = error.found
                say(f"{model.store.name} is not trained, because {why_untrained}.")
            else:
                self.rows["trained model"] = model.store.name
                rows = self._summary.rows  # another model may serve the night
                self.rows |= {f"its {name}": rows[name] for name in ("validation AUC", "epochs")}
                return model
        self._why_untrained = why_untrained
        with self.step("train"):
            model = model_of_day(job, DEFAULT_ROW, models[-1].day)
            return fit_baseline(job, DEFAULT_ROW, model, self._summary)

    def evaluate(self, model: NightModel | None) -> None:
        """Evaluates the night's model, unless that is done, or there are no held-out rows."""
        if model is None or not self._config.evaluate or not self.jobs.train.split.test:
            return
        if model.is_evaluated:
            return
        if not model.has_held_out_rows():
            name = model.store.name
            self._skip("evaluate", f"{name} has no test rows: {NO_TEST_USERS}")
            return
        with self.step("evaluate"):
            evaluate.main(model.evaluate_job(self.jobs.evaluate), self._summary)
        self._take_rows("report at")

    def choose(self, model: NightModel | None) -> Served | None:
        """Which model serves the night; None for the latest of the workspace."""
        if model is None:
            return None
        with naming_config_file("recommend"):  # which has the keys of the gates
            return choose_served(
                self.jobs,
                model,
                self._summary,
                evaluates=self._config.evaluate,
                why_untrained=self._why_untrained,
            )

    def recommend(self, served: Served | None) -> None:
        """Makes the lists, checks them by the gates and publishes them."""
        job, choice = self.jobs.recommend, None
        if served is not None:
            job, choice = served.model.recommend_job(job), served.choice
            self.rows |= {"model": served.model.store.name, "choice": served.choice.reason}
        with self.step("recommend"):
            recommend.main(with_cutoff(job, self._night), self._summary, choice)
        self._take_rows(
            "model", "choice", "users", "cold users", "shards scored now", "lists carried over"
        )
        self._take_rows("gates", "forced gates", "evaluation", "run at")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Prints a heading, measures the time, and names the file of a wrong key."""
        say(f"\n{self._night} {name}")
        start = perf_counter()
        with naming_config_file(name):
            yield
        self.seconds[name] = round(perf_counter() - start, 2)

    def _skip(self, name: str, reason: str) -> None:
        say(f"\n{self._night} {name}: skipped, because {reason}")

    def _take_rows(self, *names: str) -> None:
        """Copies rows of the step's summary to those of the night."""
        rows = self._summary.rows
        self.rows |= {name: rows[name] for name in names if name in rows}
