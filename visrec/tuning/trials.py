"""One trial of a sweep: a Ray Tune trainable that trains one epoch per step.

A trial with one worker trains in its own process. One with several is a DDP group, which
`visrec.tuning.groups` starts and stops.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune

from visrec.errors import VisrecError
from visrec.training.data import TrainingData
from visrec.training.distributed import WorkerContext
from visrec.training.fit import TrainingRecipe, build_trainer
from visrec.training.task import TrainResources
from visrec.tuning.groups import GroupsHandle, history_with_outcome
from visrec.tuning.records import EpochMetrics, Status, best_auc
from visrec.tuning.search import METRIC
from visrec.tuning.spaces import Values, with_values


@dataclass(frozen=True)
class TrialPlan:
    """What every trial is given.

    Attributes:
        recipe: the default configuration.
        data: shared by the processes of a node.
        resources: what a trial requests.
        groups: the actor of the DDP groups; None where a trial trains in its own process.
    """

    recipe: TrainingRecipe
    data: "ray.ObjectRef[TrainingData]"
    resources: TrainResources
    groups: GroupsHandle

    def epochs(self, number: int, values: Values) -> Generator[EpochMetrics, None, None]:
        """The epochs of one trial; each is trained when its metrics are requested."""
        recipe = with_values(self.recipe, values)
        if self.groups:
            yield from _train_in_group(self, number, recipe)
        else:
            yield from _train_in_process(self, recipe)


def _train_in_process(
    plan: TrialPlan, recipe: TrainingRecipe
) -> Generator[EpochMetrics, None, None]:
    torch.set_num_threads(plan.resources.cpus_per_worker)
    data = ray.get(plan.data)
    device = torch.device("cuda" if plan.resources.use_gpu else "cpu")
    trainer = build_trainer(recipe, data, WorkerContext(device=device))
    while not trainer.is_finished:
        trainer.run_epoch()
        yield history_with_outcome(trainer)[-1]


def _train_in_group(
    plan: TrialPlan, number: int, recipe: TrainingRecipe
) -> Generator[EpochMetrics, None, None]:
    try:
        ray.get(plan.groups.start.remote(number, recipe, [plan.data], plan.groups))
        is_last = False
        while not is_last:
            epoch = ray.get(plan.groups.next_epoch.remote(number))
            is_last = bool(epoch.get("is_last"))
            yield epoch
    finally:
        ray.get(plan.groups.stop.remote(number))


@ray.remote(num_cpus=0)
class PlanHolder:
    """Keeps the plan, under a name, while the sweep runs.

    `tune.with_parameters` would keep the plan, and the training data with it, until the driver
    ends.
    """

    def __init__(self, plan: TrialPlan) -> None:
        self._plan = plan

    def plan(self) -> TrialPlan:
        return self._plan


class TrialTrainable(tune.Trainable):
    """A process that trains one trial after another; a step is an epoch."""

    def setup(self, config: dict[str, Any]) -> None:
        holder: Any = ray.get_actor(config["plan_name"])  # Ray's handles have no types
        self._plan: TrialPlan = ray.get(holder.plan.remote())
        self._begin_trial(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin_trial(new_config)
        return True

    def cleanup(self) -> None:
        self._epochs.close()

    def _begin_trial(self, config: dict[str, Any]) -> None:
        self._history: list[EpochMetrics] = []
        self._epochs = self._plan.epochs(config["number"], config["values"])

    def step(self) -> dict[str, Any]:
        try:
            epoch = dict(next(self._epochs))
        except VisrecError as error:
            return self._result(None, "failed", error=str(error))
        # A group that restarted from its checkpoint has these keys in its last epoch only.
        is_last, is_finite = epoch.pop("is_last", False), epoch.pop("is_finite", True)
        if not (is_finite and math.isfinite(epoch["loss"])):
            return self._result(None, "diverged")
        self._history.append(epoch)
        return self._result(epoch, "finished" if is_last else None)

    def _result(
        self, epoch: EpochMetrics | None, status: Status | None, error: str = ""
    ) -> dict[str, Any]:
        """What Ray Tune takes from a step; a status ends the trial."""
        return {
            "epoch": len(self._history),
            METRIC: best_auc(self._history) if epoch else math.nan,
            "metrics": epoch,
            "status": status,
            "error": error,
            "done": status is not None,
        }
