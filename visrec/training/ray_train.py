"""The Ray Train wiring: N workers, DDP, a checkpoint each epoch, the model written by rank 0."""

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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

from visrec.config import check_fields
from visrec.models.artifact import TIMES, Artifact, save_artifact
from visrec.progress import Timer
from visrec.storage.store import Store
from visrec.training.checkpoints import save_checkpoint
from visrec.training.data import TrainingData
from visrec.training.fit import (
    TrainingRecipe,
    build_model,
    build_trainer,
    metrics_of,
    restore_trainer,
    seconds,
    train_to_end,
)
from visrec.training.loop import Trainer, WorkerContext, score_held_out


@dataclass(frozen=True, kw_only=True)
class TrainResources:
    """What training may take of the cluster.

    Attributes:
        workers: DDP processes; their shares make up one batch.
        use_gpu: one GPU for each, and nccl instead of gloo.
        cpus_per_worker: CPU cores of each; threads of its network on a CPU.
        max_failures: how often the group is started again from its last checkpoint.
    """

    SECTION: ClassVar[str] = "resources"  # of its keys on the command line

    workers: int = 1
    use_gpu: bool = False
    cpus_per_worker: int = 2
    max_failures: int = 2

    def __post_init__(self) -> None:
        check_fields(
            self,
            self.SECTION,
            workers="[1, 65536]",
            cpus_per_worker="[1, 65536]",
            max_failures="[0, 1000000]",
        )


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    Args:
        recipe: what to fit.
        data: shared by the workers of a node.
        artifact_store: where rank 0 writes the model.
        model_id: its name.
        settings: a digest of data and settings, kept with the model.
        threads: of a CPU worker.
        tally: what the workers tell their progress to.
    """

    recipe: TrainingRecipe
    data: "ray.ObjectRef[TrainingData]"
    artifact_store: Store
    model_id: str
    settings: str
    threads: int
    tally: Any


def fit_with_ray(job: Job, name: str, resources: TrainResources, runs: Store) -> Result:
    """Trains on the cluster. A run of the same name goes on from its last checkpoint.

    Args:
        job: what to train.
        name: of the run.
        resources: with what.
        runs: where Ray keeps checkpoints, below a folder of the run's name.
    """
    return run_workers(train_worker, job, name, resources, runs)


def run_workers(
    worker: Callable[[dict[str, Any]], None],
    job: Any,
    name: str,
    resources: TrainResources,
    runs: Store,
) -> Result:
    """Runs `worker({"job": job})` in each process of a DDP group, under a name to go on from."""
    # A report waits until the controller asks for it, by default up to 2 s after the last one: of a
    # short epoch that is most of the time. The driver's setting goes to the controller.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={
                "CPU": resources.cpus_per_worker,
                **({"GPU": 1} if resources.use_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name=name,
            storage_path=runs.path,
            storage_filesystem=runs.filesystem(),
            failure_config=FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    return trainer.fit()


def train_worker(config: dict[str, Any]) -> None:
    """What runs in each worker: build, resume, train, report each epoch, and write the model."""
    job: Job = config["job"]
    timer = Timer(job.tally)
    with timer.phase("read"):
        data = ray.get(job.data)
    trainer = start_worker(job.recipe, data, job.threads)
    leads = trainer.context.rank == 0
    for note in trainer.source.notes if leads else ():
        job.tally.say.remote(note)
    if leads and (done := trainer.progress.epoch):
        fit = "the refit's " if trainer.progress.chosen else ""
        job.tally.say.remote(f"resumed after {fit}epoch {done}")
    trainer = train_to_end(trainer, job.recipe, data, lambda t: _report(t, job, timer))
    if leads:
        with timer.phase("write"):
            _write_model(trainer, job, data)
        timer.done()


def start_worker(recipe: TrainingRecipe, data: TrainingData, threads: int) -> Trainer:
    """The trainer of this process of a group, put back to the group's last checkpoint."""
    torch.set_num_threads(threads)
    worker = ray.train.get_context()
    context = WorkerContext(worker.get_world_rank(), worker.get_world_size(), get_device())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return build_trainer(recipe, data, context, _wrap)
    with checkpoint.as_directory() as folder:
        return restore_trainer(recipe, data, Path(folder), context, _wrap)


def _wrap(module: nn.Module) -> nn.Module:
    wrapped: nn.Module = prepare_model(
        module, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
    )
    return wrapped


def _report(trainer: Trainer, job: Job, timer: Timer) -> None:
    """Tells Ray and the tally about the epoch."""
    if trainer.context.rank == 0:
        last, chosen = trainer.progress.history[-1], trainer.progress.chosen
        auc = last["val_auc"]
        eval_model = "no validation" if math.isnan(auc) else f"val AUC {auc:.4f}"
        eval_model = f"refit of {chosen.best_epoch}" if chosen else eval_model
        job.tally.say.remote(
            f"epoch {trainer.progress.epoch:>3}  loss {last['loss']:.4f}  "
            f"{eval_model}  lr {last['learning_rate']:.1e}  "
            f"{last['triples'] / last['seconds']:,.0f} triples/s"
        )
        timer.done(triples=last["triples"], epochs=1, train_s=last["seconds"])
    report_epoch(trainer)


def report_epoch(trainer: Trainer) -> None:
    """Tells Ray about the epoch, every worker of the group, with rank 0's checkpoint."""
    metrics = {"epoch": trainer.progress.epoch, **trainer.progress.history[-1]}
    if trainer.context.rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(trainer, Path(folder))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _write_model(trainer: Trainer, job: Job, data: TrainingData) -> None:
    trainer.model.load_state_dict(trainer.best)
    metrics = metrics_of(trainer.progress)
    job.artifact_store.write_json(TIMES, {"train_s": seconds(trainer.progress)})
    save_artifact(artifact_of(job, data, trainer.model, metrics), job.artifact_store)


def artifact_of(job: Job, data: TrainingData, model: Any, metrics: dict[str, Any]) -> Artifact:
    return Artifact(
        name=job.recipe.model_name,
        model=model,
        config=job.recipe.model_config,
        sizes=data.sizes,
        item_ids=data.item_ids,
        user_ids=None if model.needs.supports_new_users else data.user_ids,
        provenance={
            **data.provenance,
            "train": job.recipe.train,
            "sampling": job.recipe.sampling,
            "settings": job.settings,
        },
        metrics=metrics,
        model_id=job.model_id,
        held_out=data.test_pairs,
        categories=data.categories,
    )


def fit_at_once(job: Job) -> None:
    """Fits and writes a model that needs no training, in one task."""
    start, data = time.perf_counter(), ray.get(job.data)
    model = build_model(job.recipe, data)
    held = data.validation
    metrics: dict[str, Any] = {"val_auc": None, "epochs": 0, "history": []}
    if len(held):
        metrics["val_auc"] = float(score_held_out(model, data.catalogue, held).mean())
        if job.recipe.train.refit:
            model = build_model(job.recipe, data.refit)
    job.artifact_store.write_json(TIMES, {"train_s": round(time.perf_counter() - start, 3)})
    save_artifact(artifact_of(job, data, model, metrics), job.artifact_store)
    job.tally.say.remote(f"{job.recipe.model_name} fitted: it needs no training")
