"""Runs a sweep with Ray Tune, and records each trial when it ends.

A sweep that was killed is resumed from its own records. (`Tuner.restore` would read pickles from
the store, know only its last snapshot, and continue with a pickled configuration.) The same command
runs the trials that have no record, and gives the records of the others to the scheduler and the
searcher. So scheduler, searcher, table and best configuration all take the outcome of a trial from
one source, its record.
"""

import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from visrec.progress import ProgressHandle
from visrec.storage.store import Store
from visrec.training.data import TrainingData
from visrec.training.fit import TrainingRecipe
from visrec.training.task import TrainResources
from visrec.tuning.groups import GroupsHandle, TrialGroups
from visrec.tuning.records import EpochMetrics, TrialRecord, best_trial, write_record
from visrec.tuning.search import METRIC, ResumableAsha, TrialSearcher
from visrec.tuning.spaces import Space, Values, values_in
from visrec.tuning.trials import PlanHolder, TrialPlan, TrialTrainable

# Requested by the process of a trial whose DDP group has the CPUs. Ray Tune requires a resource; a
# fraction of a CPU would keep a group that needs all CPUs from starting.
_PLACEHOLDER_RESOURCES = {"CPU": 0.0, "memory": 1.0}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search for the best configuration.

    Attributes:
        recipe: the default configuration, which trial 0 has unchanged.
        space: what the other trials vary.
        data: shared by all trials.
        trials: number of trials.
        scheduler: asha stops trials with a low AUC at a ninth or a third of their epochs; none
            stops no trial.
        search: random, or Optuna's tree-structured Parzen estimator.
        seed: seed of the sampled values.
        resources: what each trial requests, which is a DDP group if it has several workers.
        concurrency: number of trials that run at the same time.
        store: directory of the sweep.
        recorded: the trials that have ended, by number.
        progress_actor: receives the progress of the sweep.
    """

    recipe: TrainingRecipe
    space: Space
    data: "ray.ObjectRef[TrainingData]"
    trials: int
    scheduler: Literal["asha", "none"]
    search: Literal["random", "optuna"]
    seed: int
    resources: TrainResources
    concurrency: int
    store: Store
    recorded: Mapping[int, TrialRecord]
    progress_actor: ProgressHandle

    @property
    def in_groups(self) -> bool:
        """Whether each trial is a DDP group."""
        return self.resources.workers > 1


def run_sweep(sweep: Sweep) -> tuple[list[TrialRecord], dict[int, Exception]]:
    """Runs the trials that have no record.

    Returns:
        The records of all trials, in order, and the unexpected errors by trial number. The trials
        with such errors have no record on disk, so the same command tries them again.
    """
    searcher = TrialSearcher(
        space=sweep.space,
        default=values_in(sweep.space, sweep.recipe),
        recorded=sweep.recorded,
        trials=sweep.trials,
        seed=sweep.seed,
        optuna=sweep.search == "optuna",
    )
    recorder = _RecordCallback(sweep, searcher)
    errors: dict[int, Exception] = {}
    if len(sweep.recorded) < sweep.trials:
        groups: GroupsHandle = None
        if sweep.in_groups:
            groups = TrialGroups.remote(sweep.resources, sweep.store / "training")
        plan = TrialPlan(sweep.recipe, sweep.data, sweep.resources, groups)
        plan_name = f"visrec-sweep-{uuid.uuid4().hex}"
        holder = PlanHolder.options(name=plan_name).remote(plan)  # type: ignore[attr-defined]
        try:
            with tempfile.TemporaryDirectory() as scratch:
                errors = _run_trials(sweep, searcher, recorder, plan_name, scratch)
        finally:
            ray.kill(holder)
            if groups:
                ray.get(groups.stop_all.remote())
                ray.kill(groups)
    return sorted(recorder.records.values(), key=lambda record: record.number), errors


def _run_trials(
    sweep: Sweep,
    searcher: TrialSearcher,
    recorder: "_RecordCallback",
    plan_name: str,
    scratch: str,
) -> dict[int, Exception]:
    """Runs Ray Tune; nothing reads what it writes into `scratch`, which includes pickles.

    Returns:
        Unexpected errors, by trial number.
    """
    resources = _PLACEHOLDER_RESOURCES if sweep.in_groups else sweep.resources.per_worker
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, resources),
        param_space={"plan_name": plan_name},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            search_alg=searcher,
            scheduler=(
                ResumableAsha(sweep.recipe.train.epochs, sweep.recorded)
                if sweep.scheduler == "asha"
                else FIFOScheduler()  # type: ignore[no-untyped-call]
            ),
            num_samples=sweep.trials - len(sweep.recorded),
            max_concurrent_trials=sweep.concurrency,
            reuse_actors=not sweep.in_groups,
        ),
        run_config=tune.RunConfig(
            storage_path=scratch,
            verbose=0,
            callbacks=[recorder],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=sweep.resources.max_failures),
        ),
    )
    results = tuner.fit()
    errors = {}
    for result in (results[n] for n in range(len(results))):
        if result.error and result.config:
            number = result.config["number"]
            errors[number] = result.error
            recorder.records[number] = TrialRecord(
                number, result.config["values"], (), "failed", _last_line(result.error)
            )
    return errors


def _last_line(error: Exception) -> str:
    """The last line of an error's message; the error's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[-1]


class _RecordCallback(tune.Callback):
    """Writes a record for each trial that ends. It runs in the driver: only one process writes."""

    def __init__(self, sweep: Sweep, searcher: TrialSearcher) -> None:
        self.records = dict(sweep.recorded)
        self._searcher = searcher
        self._store, self._progress_actor = sweep.store, sweep.progress_actor
        self._history: dict[int, list[EpochMetrics]] = {}
        self._running: set[int] = set()
        self._epochs = 0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its callbacks, and a pickled handle keeps its actor alive."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        del iteration, trials
        self._running.add(trial.config["number"])
        self._show_status()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        del iteration, trials
        if result["metrics"]:
            self._epochs += 1
            history = self._history.setdefault(trial.config["number"], [])
            # If the trial's process had died, the trial has started again: its earlier metrics from
            # this epoch on are replaced.
            history[result["epoch"] - 1 :] = [result["metrics"]]
            self._show_status()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        del iteration, trials
        number, result = trial.config["number"], trial.last_result
        trained = TrialRecord(
            number=number,
            values=trial.config["values"],
            history=tuple(self._history.get(number, ())),
            status=result["status"] or "stopped",
            error=result["error"] or None,
        )
        record = write_record(self._store, trained)
        self.records[number] = record
        self._searcher.add_record(record)
        self._end_trial(number, describe_trial(record), train_s=trained.seconds)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The process of a trial died too often: the trial has ended, and gets no record."""
        del iteration, trials
        number = trial.config["number"]
        self._end_trial(
            number, f"trial {number:>3}  failed  {describe_values(trial.config['values'])}"
        )

    def _end_trial(self, number: int, line: str, **seconds: float) -> None:
        self._progress_actor.add.remote({"trials": 1.0, **seconds})
        self._progress_actor.log.remote(line)
        self._running.discard(number)
        self._show_status()

    def _show_status(self) -> None:
        status = sweep_status(len(self._running), self._epochs, best_trial(self.records.values()))
        self._progress_actor.set_status.remote(status)


def describe_trial(record: TrialRecord) -> str:
    """One line on the values and the outcome of a trial."""
    epochs = f"{len(record.history):>3} epoch{'s' if len(record.history) != 1 else ' '}"
    why = f"  ({record.error})" if record.error else ""
    return (
        f"trial {record.number:>3}  val AUC {record.auc:>6.4f}  {epochs}  {record.status:<8}  "
        f"{describe_values(record.values)}{why}"
    )


def describe_values(values: Values) -> str:
    """The searched keys without their sections, each with its value."""
    return "  ".join(
        f"{key.partition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in values.items()
    )


def sweep_status(running: int, epochs: int, best: TrialRecord | None) -> str:
    """The end of a sweep's progress line: running trials, epochs trained, best trial so far."""
    now = f"{running} running, {epochs:,} epoch{'s' if epochs != 1 else ''} trained"
    if best is None:
        return now
    values = describe_values(best.values)
    return f"{now}, best AUC so far {best.auc:.4f} (trial {best.number}: {values})"
