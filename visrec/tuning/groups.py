"""Trials that are DDP groups, each of which trains one epoch at a time on request.

Ray Tune stops a trial by ending its process. If that process had started a Ray Train run, the run's
placement group would keep its CPUs until the job ends (ray-project/ray 54305). So one actor, which
outlives the trials, starts all runs. Before each epoch, the workers ask this actor whether they may
train it. To stop a trial, the actor answers no, and the run ends as if it had trained its last
epoch.
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
from visrec.training.ray_train import build_or_restore_trainer, report_epoch, run_ddp_group
from visrec.training.task import TrainResources
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
        stopped: whether the group gets no more epochs.
        history: metrics of each epoch so far.
        ended: whether the run is over and its resources are free.
        error: why a run failed; None for any other.
    """

    granted: int = 0
    stopped: bool = False
    history: list[EpochMetrics] = field(default_factory=list)
    ended: bool = False
    error: Exception | None = None


class GroupTable:
    """The DDP groups of a sweep, by trial number. `TrialGroups` is this class as a Ray actor.

    Args:
        resources: what each group requests.
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
        """Starts the group of a trial; an earlier group of the same trial is ended first.

        Args:
            number: number of the trial.
            recipe: what to fit.
            data: a reference to the training data, in a list so that Ray passes the reference on.
            groups: the handle of this actor, for the workers.
        """
        await self.stop(number)
        task = GroupTask(number, recipe, data[0], self._resources.cpus_per_worker, groups)
        group = self._groups[number] = GroupState()
        self._watchers[number] = asyncio.create_task(self._watch(group, task))

    async def next_epoch(self, number: int) -> EpochMetrics:
        """Lets a group train one more epoch and returns the metrics of that epoch.

        Raises:
            RayError: the run failed.
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
        """Whether a group that has trained `epochs` epochs may train another; waits for that."""
        group = self._groups[number]
        async with self._changed:
            await self._changed.wait_for(lambda: group.stopped or group.granted > epochs)
        # An epoch that was granted is trained even if the group has been stopped since, because
        # other workers of the group may have begun it.
        return group.granted > epochs

    async def record_history(self, number: int, history: list[EpochMetrics]) -> None:
        """Replaces the metrics of all epochs; a restarted group sends those of its checkpoint."""
        async with self._changed:
            self._groups[number].history = history
            self._changed.notify_all()

    async def _watch(self, group: GroupState, task: GroupTask) -> None:
        """Runs a group to its end and notes how it ended."""
        try:
            await self._run(task)
        except Exception as error:  # whatever it is, `next_epoch` raises it where the trial runs
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
    """The driver of one Ray Train run, in a process of its own that is ended after the run.

    Ray Train's controller lives as long as the process that started the run. A Ray task would not
    do, because Ray uses the process of a task again.
    """

    def fit(self, task: GroupTask, resources: TrainResources, runs: Store) -> None:
        run_ddp_group(_train_granted_epochs, task, f"trial-{task.number:05}", resources, runs)


def _train_granted_epochs(config: dict[str, Any]) -> None:
    """Runs in each worker of a group: trains as many epochs as `may_train` grants.

    All workers get the same answer before an epoch.
    """
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
    """The trainer's history, with two more keys in its last entry.

    `is_last` says whether training is over, `is_finite` whether weights and scores are finite.
    """
    outcome = {"is_last": trainer.is_finished, "is_finite": trainer.weights_and_scores_are_finite}
    history = trainer.progress.history
    return [*history[:-1], *({**epoch, **outcome} for epoch in history[-1:])]
