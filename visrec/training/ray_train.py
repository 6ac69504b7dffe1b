"""The Ray Train wiring: N workers with DDP, a checkpoint each epoch, a model written by rank 0."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import nn

from visrec.progress import Timer
from visrec.storage.store import Store
from visrec.tasks import get
from visrec.training.checkpoints import save_checkpoint
from visrec.training.data import TrainingData
from visrec.training.distributed import WorkerContext
from visrec.training.fit import TrainingRecipe, build_trainer, restore_trainer
from visrec.training.loop import Trainer
from visrec.training.task import TrainResources, TrainTask, run_training


def fit_with_ray(task: TrainTask, name: str, resources: TrainResources, runs: Store) -> Result:
    """Trains on the cluster. A run with the name of an earlier one resumes from its checkpoint.

    Args:
        task: what to train.
        name: name of the run.
        resources: what the workers take of the cluster.
        runs: where Ray Train keeps checkpoints, in a folder with the name of the run.
    """
    return run_ddp_group(train_worker, task, name, resources, runs)


def run_ddp_group(
    worker: Callable[[dict[str, Any]], None],
    task: object,
    name: str,
    resources: TrainResources,
    runs: Store,
) -> Result:
    """Runs `worker({"task": task})` in each process of a DDP group; see `fit_with_ray`."""
    # A worker's report waits until the controller polls, by default every 2 s, which is longer than
    # a short epoch. The controller inherits the driver's setting.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    filesystem, path = runs.arrow_filesystem()
    trainer = TorchTrainer(
        worker,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker=resources.per_worker,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    return trainer.fit()


def train_worker(config: dict[str, Any]) -> None:
    """Runs in each worker: builds or restores a trainer, trains, and on rank 0 writes the model."""
    task: TrainTask = config["task"]
    timer = Timer(task.progress_actor)
    with timer.phase("read"):
        data: TrainingData = get(task.data)
    timer.report()
    trainer = build_or_restore_trainer(task.recipe, data, task.threads)
    run_training(task, data, trainer, report_epoch)


def build_or_restore_trainer(recipe: TrainingRecipe, data: TrainingData, threads: int) -> Trainer:
    """The trainer of this process, restored from the group's last checkpoint if there is one."""
    torch.set_num_threads(threads)
    worker = ray.train.get_context()
    context = WorkerContext(worker.get_world_rank(), worker.get_world_size(), get_device())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return build_trainer(recipe, data, context, _wrap_ddp)
    with checkpoint.as_directory() as folder:
        return restore_trainer(recipe, data, Path(folder), context, _wrap_ddp)


def _wrap_ddp(module: nn.Module) -> nn.Module:
    wrapped: nn.Module = prepare_model(
        module, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
    )
    return wrapped


def report_epoch(trainer: Trainer) -> None:
    """Reports an epoch to Ray Train, from every worker of the group, with rank 0's checkpoint."""
    metrics = {"epoch": trainer.progress.epoch, **trainer.progress.history[-1]}
    if trainer.context.rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(trainer, Path(folder))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
