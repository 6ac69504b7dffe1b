"""Trials that are DDP groups, each of which trains one epoch at a time on request.

Ray Tune stops a trial by ending its process. If a Ray Train run was started in that process, its
placement group then stays behind, with its CPUs, until the job ends (ray-project/ray 54305).
So one actor that outlives the trials starts all runs. Their workers ask it before each epoch
whether to go on, and to stop a trial the actor answers no: the group ends as if it had reached its
end.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from visrec.storage.store import Store
from visrec.training.data import TrainingData
from visrec.training.fit import TrainingRecipe
from visrec.training.loop import Trainer
from visrec.training.ray_train import (
    TrainResources,
    build_or_restore_trainer,
    report_epoch,
    run_ddp_group,
)
from visrec.tuning.records import EpochMetrics

GroupsHandle = Any  # handle of a `TrialGroups` actor: Ray's handles have no types


@dataclass(frozen=True)
class GroupTask:
    """What every worker of a group is given.

    Attributes:
        number: number of the trial.
        recipe: what to fit.
        data: shared by the workers of a node.
        threads: CPU threads of a worker.
        groups: the actor that grants epochs and takes their metrics.
    """

    number: int
    recipe: TrainingRecipe
    data: "ray.ObjectRef[TrainingData]"
    threads: int
    groups: GroupsHandle


@dataclass
class GroupState:
    """How far a group may train, how far it has trained, and how it ended.

    Attributes:
        granted: number of epochs that the group may train.
        stopped: no more epochs will be granted.
        history: metrics of each epoch so far.
        ended: the run is over and has given its resources back.
        error: what the run failed with, if it failed.
    """

    granted: int = 0
    stopped: bool = False
    history: list[EpochMetrics] = field(default_factory=list)
    ended: bool = False
    error: ray.exceptions.RayError | None = None


class GroupTable:
    """The DDP groups of a sweep, by trial number. `TrialGroups` is the same as a Ray actor.

    Args:
        resources: of each group.
        runs: where Ray Train keeps checkpoints.
    """

    def __init__(self, resources: TrainResources, runs: Store) -> None:
        self._resources, self._runs = resources, runs
        self._groups: dict[int, GroupState] = {}
        self._watchers: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()

    # Called by trials.

    async def start(
        self,
        number: int,
        recipe: TrainingRecipe,
        data: list["ray.ObjectRef[TrainingData]"],
        groups: GroupsHandle,
    ) -> None:
        """Starts the group of a trial, after the end of an earlier group of the same trial.

        Args:
            number: number of the trial.
            recipe: what to fit.
            data: the reference of the training data, in a list so that Ray does not resolve it.
            groups: the handle of this actor, for the workers.
        """
        await self.stop(number)
        task = GroupTask(number, recipe, data[0], self._resources.cpus_per_worker, groups)
        group = self._groups[number] = GroupState()
        self._watchers[number] = asyncio.create_task(self._watch(group, task))

    async def next_epoch(self, number: int) -> EpochMetrics:
        """Lets a group train one more epoch and returns the metrics of that epoch.

        Raises:
            RayError: the run failed with it.
        """
        group = self._groups[number]
        async with self._changed:
            group.granted += 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: group.ended or len(group.history) >= group.granted)
        if group.error:
            raise group.error
        return group.history[group.granted - 1]

    async def stop(self, number: int) -> None:
        """Ends the group of a trial, if there is one, and waits until its resources are free."""
        if watcher := self._watchers.pop(number, None):
            async with self._changed:
                self._groups[number].stopped = True
                self._changed.notify_all()
            await watcher

    async def stop_all(self) -> None:
        for number in list(self._watchers):
            await self.stop(number)

    # Called by workers.

    async def may_train(self, number: int, epochs: int) -> bool:
        """Whether to train on after `epochs` epochs; waits until that is decided."""
        group = self._groups[number]
        async with self._changed:
            await self._changed.wait_for(lambda: group.stopped or group.granted > epochs)
        # A granted epoch is trained even if the group was stopped since: other workers of the group
        # may have begun it.
        return group.granted > epochs

    async def record_history(self, number: int, history: list[EpochMetrics]) -> None:
        """Replaces the metrics of all epochs so far: a restarted group begins with its own."""
        async with self._changed:
            self._groups[number].history = history
            self._changed.notify_all()

    async def _watch(self, group: GroupState, task: GroupTask) -> None:
        """Runs a group to its end and notes how it ended."""
        try:
            await self._run(task)
        except ray.exceptions.RayError as error:
            group.error = error
        async with self._changed:
            group.ended = True
            self._changed.notify_all()

    async def _run(self, task: GroupTask) -> None:
        driver: Any = _RayTrainDriver.remote()  # type: ignore[attr-defined]
        try:
            await driver.fit.remote(task, self._resources, self._runs)
        finally:
            ray.kill(driver)


TrialGroups = ray.remote(num_cpus=0)(GroupTable)


@ray.remote(num_cpus=0)
class _RayTrainDriver:
    """The driver of one Ray Train run: a process whose end frees everything that Ray Train made.

    (In a task, the controller of a finished run lives as long as the process that ran the task.)
    """

    def fit(self, task: GroupTask, resources: TrainResources, runs: Store) -> None:
        run_ddp_group(_train_granted_epochs, task, f"trial-{task.number:05}", resources, runs)


def _train_granted_epochs(config: dict[str, Any]) -> None:
    """Runs in each worker of a group. All workers get the same answer before an epoch."""
    task: GroupTask = config["task"]
    trainer = build_or_restore_trainer(task.recipe, ray.get(task.data), task.threads)
    _send_history(trainer, task)
    while not trainer.is_finished and ray.get(
        task.groups.may_train.remote(task.number, trainer.progress.epoch)
    ):
        trainer.run_epoch()
        report_epoch(trainer)
        _send_history(trainer, task)


def _send_history(trainer: Trainer, task: GroupTask) -> None:
    if trainer.context.rank == 0:
        history = history_with_outcome(trainer)
        ray.get(task.groups.record_history.remote(task.number, history))


def history_with_outcome(trainer: Trainer) -> list[EpochMetrics]:
    """The trainer's history, where the last entry has two keys more.

    `is_last` is whether training is over, and `is_finite` whether the weights and scores are
    finite.
    """
    outcome = {"is_last": trainer.is_finished, "is_finite": trainer.weights_and_scores_are_finite}
    history = trainer.progress.history
    return [*history[:-1], *({**epoch, **outcome} for epoch in history[-1:])]
