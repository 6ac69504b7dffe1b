"""Trials that are each a DDP group of their own, trained an epoch at a time as they are asked.

Ray Tune stops a trial by ending its process. A Ray Train run started inside that process leaves its
placement group behind then, with its CPUs, until the job ends (ray-project/ray 54305). So a run
is started from one actor that outlives the trials, its workers ask that actor before each epoch,
and a stopped trial is one that gets no as an answer: the group ends as if it were at its end.
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
    report_epoch,
    run_workers,
    start_worker,
)
from visrec.tuning.records import Epoch


@dataclass(frozen=True)
class GroupJob:
    """What each worker of a group is told.

    Args:
        number: of the trial.
        recipe: what to fit.
        data: shared by the workers of a node.
        threads: of a CPU worker.
        groups: whom to ask and to tell.
    """

    number: int
    recipe: TrainingRecipe
    data: "ray.ObjectRef[TrainingData]"
    threads: int
    groups: Any


@dataclass
class _Group:
    """One run: what it may do, what it has done, and what it ended with."""

    granted: int = 0
    stopped: bool = False
    history: list[Epoch] = field(default_factory=list)
    ended: bool = False
    error: ray.exceptions.RayError | None = None


@ray.remote(num_cpus=0)
class Groups:
    """The DDP groups of a sweep, by trial number.

    Args:
        resources: of each group.
        runs: where Ray Train keeps their checkpoints.
    """

    def __init__(self, resources: TrainResources, runs: Store) -> None:
        self._resources, self._runs = resources, runs
        self._groups: dict[int, _Group] = {}
        self._watchers: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()

    # For the trial.

    async def start(
        self, number: int, recipe: TrainingRecipe, data: list[Any], groups: Any
    ) -> None:
        """Starts a trial's group, after the end of any that it had.

        Args:
            number: of the trial.
            recipe: what to fit.
            data: the reference of the training data, in a list so that it stays one.
            groups: the handle of this actor, for the workers.
        """
        await self.stop(number)
        job = GroupJob(number, recipe, data[0], self._resources.cpus_per_worker, groups)
        group = self._groups[number] = _Group()
        self._watchers[number] = asyncio.create_task(self._watch(group, job))

    async def epoch(self, number: int) -> Epoch:
        """Lets the group train one epoch more and gives what came of it.

        Raises:
            RayError: the run ended with it.
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
        """Ends the group, if there is one, and waits until its resources are free."""
        if watcher := self._watchers.pop(number, None):
            async with self._changed:
                self._groups[number].stopped = True
                self._changed.notify_all()
            await watcher

    async def stop_all(self) -> None:
        for number in list(self._watchers):
            await self.stop(number)

    # For the workers.

    async def may_train(self, number: int, epochs: int) -> bool:
        """Whether to go on after so many epochs; waits until that is known."""
        group = self._groups[number]
        async with self._changed:
            await self._changed.wait_for(lambda: group.stopped or group.granted > epochs)
        # What was granted holds even if the group was stopped since: some workers may be at it.
        return group.granted > epochs

    async def tell(self, number: int, history: list[Epoch]) -> None:
        """Takes the entries of all epochs so far: a group that starts again begins with them."""
        async with self._changed:
            self._groups[number].history = history
            self._changed.notify_all()

    async def _watch(self, group: _Group, job: GroupJob) -> None:
        run: Any = _Run.remote()  # type: ignore[attr-defined]  # put there by the decorator
        try:
            await run.fit.remote(job, self._resources, self._runs)
        except ray.exceptions.RayError as error:
            group.error = error
        finally:
            ray.kill(run)
        async with self._changed:
            group.ended = True
            self._changed.notify_all()


@ray.remote(num_cpus=0)
class _Run:
    """The driver of one Ray Train run: a process whose end is the end of all that Ray Train made.

    (In a task, the controller of a finished run lives as long as the process that the task was in.)
    """

    def fit(self, job: GroupJob, resources: TrainResources, runs: Store) -> None:
        run_workers(_train_when_asked, job, f"trial-{job.number:05}", resources, runs)


def _train_when_asked(config: dict[str, Any]) -> None:
    """What runs in each worker. All of them get the same answer before an epoch."""
    job: GroupJob = config["job"]
    trainer = start_worker(job.recipe, ray.get(job.data), job.threads)
    _tell(trainer, job)
    while not trainer.finished and ray.get(
        job.groups.may_train.remote(job.number, trainer.progress.epoch)
    ):
        trainer.epoch()
        report_epoch(trainer)
        _tell(trainer, job)


def _tell(trainer: Trainer, job: GroupJob) -> None:
    if trainer.context.rank == 0:
        ray.get(job.groups.tell.remote(job.number, entries(trainer)))


def entries(trainer: Trainer) -> list[Epoch]:
    """The trainer's history, the last entry with whether training is over and the weights sound."""
    last = {"over": trainer.finished, "sound": trainer.weights_are_finite}
    return [*trainer.progress.history[:-1], *({**e, **last} for e in trainer.progress.history[-1:])]
