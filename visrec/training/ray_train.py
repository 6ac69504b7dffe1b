"""The Ray Train wiring: N workers with DDP, a checkpoint each epoch, a model written by rank 0."""

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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

from visrec.config import check_fields, plain
from visrec.models.artifact import TIMES, Artifact, save_artifact
from visrec.models.base import Model
from visrec.models.provenance import Provenance
from visrec.progress import ProgressHandle, Timer
from visrec.storage.store import Store
from visrec.training.checkpoints import save_checkpoint
from visrec.training.data import TrainingData
from visrec.training.distributed import WorkerContext
from visrec.training.fit import (
    TrainingRecipe,
    build_model,
    build_trainer,
    restore_trainer,
    train_to_end,
    training_metrics,
    training_seconds,
)
from visrec.training.loop import Progress, Trainer
from visrec.training.tracking import (
    Tracker,
    TrackerAccess,
    epoch_values,
    flatten,
    open_tracker,
)
from visrec.training.validation import score_held_out


@dataclass(frozen=True, kw_only=True)
class TrainResources:
    """What training takes of the cluster.

    Attributes:
        workers: number of DDP processes; each batch is divided among them.
        use_gpu: give each worker a GPU, and use nccl instead of gloo.
        cpus_per_worker: CPU cores of each worker, and threads of its network on a CPU.
        max_failures: how often failed workers are restarted from the last checkpoint.
    """

    workers: int = 1
    use_gpu: bool = False
    cpus_per_worker: int = 2
    max_failures: int = 2

    def __post_init__(self) -> None:
        check_fields(
            self,
            "resources",
            workers="[1, 65536]",
            cpus_per_worker="[1, 65536]",
            max_failures="[0, 1000000]",
        )

    @property
    def per_worker(self) -> dict[str, float]:
        """CPUs and GPUs of one worker, as Ray names them."""
        gpu = {"GPU": 1.0} if self.use_gpu else {}
        return {"CPU": float(self.cpus_per_worker), **gpu}

    @property
    def total(self) -> dict[str, float]:
        """CPUs and GPUs of all workers."""
        return {name: self.workers * amount for name, amount in self.per_worker.items()}


@dataclass(frozen=True)
class TrainTask:
    """What every training worker is given.

    Attributes:
        recipe: what to fit.
        data: shared by the workers of a node.
        artifact_store: the directory to which rank 0 writes the model.
        model_id: name of the model.
        settings_digest: hash of data and settings, which is kept with the model.
        threads: CPU threads of a worker.
        progress_actor: where workers report their progress.
        track: the experiment tracker to which rank 0 logs each epoch, if any.
    """

    recipe: TrainingRecipe
    data: "ray.ObjectRef[TrainingData]"
    artifact_store: Store
    model_id: str
    settings_digest: str
    threads: int
    progress_actor: ProgressHandle
    track: TrackerAccess | None = None


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
        data = ray.get(task.data)
    trainer = build_or_restore_trainer(task.recipe, data, task.threads)
    is_leader = trainer.context.rank == 0
    for note in trainer.source.notes if is_leader else ():
        task.progress_actor.log.remote(note)
    if is_leader and (epochs := trainer.progress.epoch):
        fit = "the refit's " if trainer.progress.selection else ""
        task.progress_actor.log.remote(f"resumed after {fit}epoch {epochs}")
    tracker = _open_tracker(task, trainer.progress.tracker_run) if is_leader else None
    trainer = train_to_end(trainer, task.recipe, data, lambda t: _report(t, task, timer, tracker))
    if is_leader:
        with timer.phase("write"):
            _write_model(trainer, task, data)
        if tracker is not None:
            tracker.finish()
        timer.report()


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


def _open_tracker(task: TrainTask, run_id: str | None) -> Tracker | None:
    """The tracker's run; that of the checkpoint, if the training was resumed.

    Args:
        task: whose settings a new run has.
        run_id: of the checkpoint.
    """
    if task.track is None:
        return None
    recipe = task.recipe
    settings = {
        "model": {"name": recipe.model_name, **plain(recipe.model_config)},
        "sampling": plain(recipe.sampling),
        "train": plain(recipe.train),
    }
    return open_tracker(task.track, task.model_id, run_id, flatten(settings))


def _report(trainer: Trainer, task: TrainTask, timer: Timer, tracker: Tracker | None) -> None:
    """Reports an epoch to the terminal, to the tracker and to Ray Train."""
    if trainer.context.rank == 0:
        task.progress_actor.log.remote(epoch_line(trainer.progress))
        last = trainer.progress.history[-1]
        if tracker is not None:
            is_refit = trainer.progress.selection is not None
            tracker.log(trainer.progress.epoch, epoch_values(last, is_refit=is_refit))
            trainer.progress.tracker_run = tracker.run_id
        timer.report(triples=last["triples"], epochs=1, train_s=last["seconds"])
    report_epoch(trainer)


def epoch_line(progress: Progress) -> str:
    """One line about the last epoch, for the terminal."""
    last, selection = progress.history[-1], progress.selection
    auc = last["val_auc"]
    validation = "no validation" if math.isnan(auc) else f"val AUC {auc:.4f}"
    validation = f"refit of {selection.best_epoch}" if selection else validation
    return (
        f"epoch {progress.epoch:>3}  loss {last['loss']:.4f}  {validation}  "
        f"lr {last['learning_rate']:.1e}  {last['triples'] / last['seconds']:,.0f} triples/s"
    )


def report_epoch(trainer: Trainer) -> None:
    """Reports an epoch to Ray Train, from every worker of the group, with rank 0's checkpoint."""
    metrics = {"epoch": trainer.progress.epoch, **trainer.progress.history[-1]}
    if trainer.context.rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(trainer, Path(folder))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _write_model(trainer: Trainer, task: TrainTask, data: TrainingData) -> None:
    trainer.model.load_state_dict(trainer.best_weights)
    metrics = training_metrics(trainer.progress)
    times: dict[str, Any] = {"train_s": training_seconds(trainer.progress)}
    if task.track is not None:
        times |= {"tracker": task.track.name, "tracker_run": trainer.progress.tracker_run}
    task.artifact_store.write_json(TIMES, times)
    save_artifact(build_artifact(task, data, trainer.model, metrics), task.artifact_store)


def build_artifact(
    task: TrainTask, data: TrainingData, model: Model, metrics: dict[str, Any]
) -> Artifact:
    """The artifact of a fitted model, with what scoring and evaluation need of its training."""
    return Artifact(
        name=task.recipe.model_name,
        model=model,
        config=task.recipe.model_config,
        sizes=data.sizes,
        item_ids=data.item_ids,
        user_ids=None if model.traits.supports_new_users else data.user_ids,
        provenance=Provenance(
            data=data.provenance,
            train=plain(task.recipe.train),
            sampling=plain(task.recipe.sampling),
            settings_digest=task.settings_digest,
        ),
        metrics=metrics,
        model_id=task.model_id,
        held_out=data.test_pairs,
        categories=data.categories,
    )


def fit_closed_form(task: TrainTask) -> None:
    """Fits and writes a model that trains no weights, in a single Ray task."""
    start, data = time.perf_counter(), ray.get(task.data)
    model = build_model(task.recipe, data)
    metrics: dict[str, Any] = {"val_auc": None, "epochs": 0, "history": []}
    if len(data.validation):
        auc_E = score_held_out(model, data, data.validation)
        metrics["val_auc"] = float(auc_E.mean())
        if task.recipe.train.refit:
            model = build_model(task.recipe, data.for_refit)
    times: dict[str, Any] = {"train_s": round(time.perf_counter() - start, 3)}
    if task.track is not None and (tracker := _open_tracker(task, None)) is not None:
        if metrics["val_auc"] is not None:
            tracker.log(0, {"val_auc": metrics["val_auc"]})
        tracker.finish()
        times |= {"tracker": task.track.name, "tracker_run": tracker.run_id}
    task.artifact_store.write_json(TIMES, times)
    save_artifact(build_artifact(task, data, model, metrics), task.artifact_store)
    task.progress_actor.log.remote(f"{task.recipe.model_name} is fitted; it trains no weights")
