"""Which model serves a night, and why: the trained one, VisRank, or popularity.

The gates on the held-out set decide, with the figures of an evaluation that is stored. So a night
that is started again, or backfilled, chooses the same model. VisRank and popularity train
nothing; the one that serves gets a model directory of its own, next to that of the trained model.
"""

import dataclasses
from dataclasses import dataclass

from visrec.cli.job import ModelChoice
from visrec.cli.summary import Summary
from visrec.evaluation.baselines import BASELINES
from visrec.evaluation.results import METRICS
from visrec.models.visrank import VisRankConfig
from visrec.pipelines import train
from visrec.pipelines.night_jobs import NightJobs
from visrec.pipelines.night_model import NightModel, model_of_day
from visrec.pipelines.train import TrainJob
from visrec.publication.gate_context import GatesConfig, ServingChoice
from visrec.publication.held_out_gates import HeldOutFigures, best_row, explain_choice

# What serves if no evaluation says how good the trained model is.
DEFAULT_ROW = f"visrank-{VisRankConfig().mode}"
NO_TEST_USERS = "none of its users had two baskets"


@dataclass(frozen=True)
class Served:
    """The model that serves a night.

    Attributes:
        model: its directory, and the evaluation that decided.
        choice: why it serves.
    """

    model: NightModel
    choice: ServingChoice


def choose_served(
    jobs: NightJobs,
    model: NightModel,
    summary: Summary,
    *,
    evaluates: bool,
    why_untrained: str | None,
) -> Served:
    """The model that serves a night: the best by the gates on the held-out set.

    Args:
        jobs: the jobs of the night's steps.
        model: the night's trained model, or the VisRank model fitted instead.
        summary: receives the time of fitting a baseline.
        evaluates: whether the night evaluates its model.
        why_untrained: why the configured model could not be trained; None if it was.
    """
    served = _choose(jobs, model, summary, evaluates=evaluates)
    if why_untrained is None:
        return served
    reason = f"{jobs.train.model.name} could not be trained, because {why_untrained}; "
    choice = dataclasses.replace(served.choice, reason=reason + served.choice.reason)
    return Served(served.model, choice)


def _choose(jobs: NightJobs, model: NightModel, summary: Summary, *, evaluates: bool) -> Served:
    if jobs.recommend.kind == "item_to_item":
        return _uncompared(model, "item-to-item lists have no held-out set")
    if model.is_evaluated:
        return _best_on_held_out(jobs.train, model, jobs.recommend.gates, summary)
    if not evaluates or not jobs.train.split.test:
        return _uncompared(model, "--split.test false" if evaluates else "--evaluate false")
    return _visrank_for_now(jobs.train, model, NO_TEST_USERS, jobs.recommend.gates, summary)


def _uncompared(model: NightModel, why: str) -> Served:
    reason = f"{model.store.name} serves and is compared with no other model: {why}"
    return Served(model, ServingChoice(reason=reason))


def _visrank_for_now(
    job: TrainJob, model: NightModel, why: str, gates: GatesConfig, summary: Summary
) -> Served:
    """VisRank, in place of a trained model whose quality is unknown."""
    if not model.has_trained_weights or gates.min_gain <= -1:  # with -1 no model can be too bad
        return _uncompared(model, why)
    served = fit_baseline(job, DEFAULT_ROW, model, summary)
    reason = (
        f"{served.store.name} serves in place of {model.store.name}, which is compared "
        f"with no other model: {why}"
    )
    return Served(served, ServingChoice(reason=reason))


def _best_on_held_out(
    job: TrainJob, model: NightModel, gates: GatesConfig, summary: Summary
) -> Served:
    """The best of an evaluated model and the baselines of its evaluation."""
    figures = HeldOutFigures.from_json(model.evaluation.read_json(METRICS))
    row = figures.row_of(model.digest)
    assert row is not None, "a model that is evaluated has a row"
    if why := figures.why_undecided(row, gates):
        return _visrank_for_now(job, model, why, gates, summary)
    chosen = best_row(figures, row, gates)
    served = model if chosen == row else fit_baseline(job, chosen, model, summary)
    ids = {row: model.store.name, chosen: served.store.name}
    reason = explain_choice(figures, row, chosen, gates, ids)
    return Served(served, ServingChoice(reason=reason, row=None if chosen == row else chosen))


def fit_baseline(job: TrainJob, row: str, model: NightModel, summary: Summary) -> NightModel:
    """Fits the baseline of an evaluation row and returns its model directory.

    Args:
        job: how models are trained; the baseline has the same data and split.
        row: the baseline's row of the evaluation.
        model: the model that the baseline replaces; the baseline gets the same training day.
        summary: receives the time.
    """
    baseline = next(baseline for baseline in BASELINES if baseline.label == row)
    served = dataclasses.replace(model_of_day(job, row, model.day), evaluation=model.evaluation)
    if not served.is_trained:
        choice = ModelChoice(str(baseline.model), baseline.config)
        # `train.main` would name it as the model that was trained last.
        train.train(served.train_job(dataclasses.replace(job, model=choice)), summary)
    return served
