"""The Ray Tune wiring: a trial is trained an epoch at a time, and recorded when it is over.

A sweep that was killed goes on by its own records, not by `Tuner.restore`: that one reads pickles
back from the store, knows only what its last snapshot knew, and continues with a pickled
configuration. Here the same command runs the trials that are not on record, with a scheduler and a
search that know those that are. What a trial came to is told once, by its record: to the search,
the scheduler, the table and the best configuration alike.
"""

import math
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
import torch
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from visrec.errors import VisrecError
from visrec.storage.store import Store
from visrec.training.data import TrainingData
from visrec.training.fit import TrainingRecipe, build_trainer
from visrec.training.loop import WorkerContext
from visrec.training.ray_train import TrainResources
from visrec.tuning.groups import Groups, entries
from visrec.tuning.records import Epoch, Record, Status, best_auc, best_of, write_record
from visrec.tuning.search import METRIC, Asha, Proposals
from visrec.tuning.spaces import Space, Values, values_of, with_values

# Of a trial whose group has the CPUs: Ray Tune wants some resource, and a share of a CPU would
# keep a group from one that needs all of them.
_PLACEHOLDER_RESOURCES = {"CPU": 0.0, "memory": 1.0}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is searched, with what.

    Args:
        recipe: the default configuration; trial 0 has it as it is.
        space: what the others draw.
        data: shared by all trials.
        trials: how many.
        scheduler: asha stops trials that stand badly after an epoch or a few; none stops none.
        search: random, or Optuna's tree-structured Parzen estimator.
        seed: of the drawn values.
        resources: of each trial; with more than one worker it is a DDP group of its own.
        concurrency: trials at a time.
        store: the sweep's directory.
        recorded: the trials that are over.
        tally: told of each trial that ends.
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
    recorded: Mapping[int, Record]
    tally: Any


def run_sweep(sweep: Sweep) -> tuple[list[Record], dict[int, Exception]]:
    """Runs the trials that are not on record.

    Returns:
        The records of all trials, by number, and the errors that nobody foresaw, by number: those
        trials are not kept on record, so the same command tries them again.
    """
    proposals = Proposals(
        space=sweep.space,
        default=values_of(sweep.space, sweep.recipe),
        recorded=sweep.recorded,
        trials=sweep.trials,
        seed=sweep.seed,
        optuna=sweep.search == "optuna",
    )
    keeper = _RecordCallback(sweep, proposals)
    errors: dict[int, Exception] = {}
    if len(sweep.recorded) < sweep.trials:
        groups = None
        if sweep.resources.workers > 1:
            groups = Groups.remote(sweep.resources, sweep.store / "training")  # type: ignore[attr-defined]
        plan = Plan(sweep.recipe, sweep.data, sweep.resources, groups)
        desk = f"visrec-sweep-{uuid.uuid4().hex}"
        keeps = _PlanHolder.options(name=desk).remote(plan)  # type: ignore[attr-defined]
        try:
            with tempfile.TemporaryDirectory() as scratch:
                errors = _run_trials(sweep, proposals, keeper, desk, scratch)
        finally:
            ray.kill(keeps)
            if groups:
                ray.get(groups.stop_all.remote())
                ray.kill(groups)
    return sorted(keeper.records.values(), key=lambda record: record.number), errors


def _run_trials(
    sweep: Sweep, proposals: Proposals, keeper: "_RecordCallback", desk: str, scratch: str
) -> dict[int, Exception]:
    """Ray Tune's part. What it writes into `scratch`, pickles among it, is read by nobody."""
    in_groups = sweep.resources.workers > 1
    tuner = tune.Tuner(
        tune.with_resources(
            Trial, _PLACEHOLDER_RESOURCES if in_groups else _of_a_process(sweep.resources)
        ),
        param_space={"desk": desk},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            search_alg=proposals,
            scheduler=(
                Asha(sweep.recipe.train.epochs, sweep.recorded)
                if sweep.scheduler == "asha"
                else FIFOScheduler()  # type: ignore[no-untyped-call]
            ),
            num_samples=sweep.trials - len(sweep.recorded),
            max_concurrent_trials=sweep.concurrency,
            reuse_actors=not in_groups,
        ),
        run_config=tune.RunConfig(
            storage_path=scratch,
            verbose=0,
            callbacks=[keeper],
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
            keeper.records[number] = Record(
                number, result.config["values"], (), "failed", str(result.error).splitlines()[-1]
            )
    return errors


def _of_a_process(resources: TrainResources) -> dict[str, float]:
    return {"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})}


# A trial.


@dataclass(frozen=True)
class Plan:
    """What every trial's process is told.

    Args:
        recipe: the default.
        data: shared by the processes of a node.
        resources: of a trial.
        groups: the DDP groups' actor, where trials are groups.
    """

    recipe: TrainingRecipe
    data: "ray.ObjectRef[TrainingData]"
    resources: TrainResources
    groups: Any

    def epochs(self, number: int, values: Values) -> Iterator[Epoch]:
        """The epochs of one trial, each trained when it is asked for."""
        if self.groups:
            yield from _in_a_group(self, number, with_values(self.recipe, values))
        else:
            yield from _in_this_process(self, with_values(self.recipe, values))


def _in_this_process(plan: Plan, recipe: TrainingRecipe) -> Iterator[Epoch]:
    torch.set_num_threads(plan.resources.cpus_per_worker)
    data = ray.get(plan.data)
    device = torch.device("cuda" if plan.resources.use_gpu else "cpu")
    trainer = build_trainer(recipe, data, WorkerContext(device=device))
    while not trainer.finished:
        trainer.epoch()
        yield entries(trainer)[-1]


def _in_a_group(plan: Plan, number: int, recipe: TrainingRecipe) -> Iterator[Epoch]:
    try:
        ray.get(plan.groups.start.remote(number, recipe, [plan.data], plan.groups))
        over = False
        while not over:
            epoch = ray.get(plan.groups.epoch.remote(number))
            over = bool(epoch.get("over"))
            yield epoch
    finally:
        ray.get(plan.groups.stop.remote(number))


@ray.remote(num_cpus=0)
class _PlanHolder:
    """Keeps the plan, under a name, while the sweep runs.

    `tune.with_parameters` would keep it, and with it the training data, until the driver ends.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def plan(self) -> Plan:
        return self._plan


class Trial(tune.Trainable):
    """A process that trains one trial after the other; a step is an epoch."""

    def setup(self, config: dict[str, Any]) -> None:
        desk: Any = ray.get_actor(config["desk"])
        self._plan: Plan = ray.get(desk.plan.remote())
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._epochs.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._history: list[Epoch] = []
        self._epochs: Any = self._plan.epochs(config["number"], config["values"])

    def step(self) -> dict[str, Any]:
        try:
            epoch = dict(next(self._epochs))
        except VisrecError as error:
            return self._said(None, "failed", error=str(error))
        # Of a group that began again from its checkpoint, the last epoch alone has them.
        over = bool(epoch.pop("over", False))
        if not (epoch.pop("sound", True) and math.isfinite(epoch["loss"])):
            return self._said(None, "diverged")
        self._history.append(epoch)
        return self._said(epoch, "finished" if over else None)

    def _said(self, epoch: Epoch | None, end: Status | None, error: str = "") -> dict[str, Any]:
        return {
            "epoch": len(self._history),
            METRIC: best_auc(self._history) if epoch else math.nan,
            "entry": epoch,
            "end": end,
            "error": error,
            "done": end is not None,
        }


class _RecordCallback(tune.Callback):
    """Writes the record of each trial that ends, in the driver, so that one process writes."""

    def __init__(self, sweep: Sweep, proposals: Proposals) -> None:
        self.records = dict(sweep.recorded)
        self._proposals = proposals
        self._store, self._tally = sweep.store, sweep.tally
        self._history: dict[int, list[Epoch]] = {}
        self._running: set[int] = set()
        self._epochs = 0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its callbacks, and a pickled handle keeps its actor alive."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        del iteration, trials
        self._running.add(trial.config["number"])
        self._tell()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        del iteration, trials
        if result["entry"]:
            self._epochs += 1
            history = self._history.setdefault(trial.config["number"], [])
            # A trial whose process died begins again: what it had from there on is replaced.
            history[result["epoch"] - 1 :] = [result["entry"]]
            self._tell()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        del iteration, trials
        number, result = trial.config["number"], trial.last_result
        trained = Record(
            number=number,
            values=trial.config["values"],
            history=tuple(self._history.get(number, ())),
            status=result["end"] or "stopped",
            error=result["error"] or None,
        )
        record = write_record(self._store, trained)
        self.records[number] = record
        self._proposals.learn(record)
        self._tally.add.remote({"trials": 1.0, "train_s": trained.seconds})
        self._tally.say.remote(line_of(record))
        self._running.discard(number)
        self._tell()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial's process died, and that too often: it is over, and is not on record."""
        del iteration, trials
        number = trial.config["number"]
        self._tally.add.remote({"trials": 1.0})
        self._tally.say.remote(f"trial {number:>3}  failed  {words_of(trial.config['values'])}")
        self._running.discard(number)
        self._tell()

    def _tell(self) -> None:
        words = standing(len(self._running), self._epochs, best_of(self.records.values()))
        self._tally.stand.remote(words)


def line_of(record: Record) -> str:
    """One line that says what a trial had and what came of it."""
    epochs = f"{len(record.history):>3} epoch{'s' if len(record.history) != 1 else ' '}"
    why = f"  ({record.error})" if record.error else ""
    return (
        f"trial {record.number:>3}  val AUC {record.auc:>6.4f}  {epochs}  {record.status:<8}  "
        f"{words_of(record.values)}{why}"
    )


def words_of(values: Values) -> str:
    """The searched keys by their last names, each with its value."""
    return "  ".join(
        f"{key.partition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in values.items()
    )


def standing(running: int, epochs: int, best: Record | None) -> str:
    """What the line of progress says of a sweep: the trials that run, and the best one so far."""
    now = f"{running} running, {epochs:,} epoch{'s' if epochs != 1 else ''} trained"
    if best is None:
        return now
    return f"{now}, best AUC so far {best.auc:.4f} (trial {best.number}: {words_of(best.values)})"
