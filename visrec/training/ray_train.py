"""The Ray Train wiring: N workers, DDP, a checkpoint each epoch, the model written by rank 0."""

import tempfile
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

from visrec.interactions.triples import SamplingConfig
from visrec.models import MODELS
from visrec.models.artifact import Artifact, save_artifact
from visrec.progress import Timer
from visrec.storage import Store
from visrec.training.checkpoints import restore_checkpoint, save_checkpoint
from visrec.training.data import TrainingData
from visrec.training.loop import Place, TrainConfig, Trainer, score_held_out


@dataclass(frozen=True, kw_only=True)
class TrainResources:
    """What training may take of the cluster.

    Attributes:
        workers: DDP processes; their shares make up one batch.
        use_gpu: one GPU for each, and nccl instead of gloo.
        cpus_per_worker: CPU cores of each; threads of its network on a CPU.
        max_failures: how often the group is started again from its last checkpoint.
    """

    workers: int = 1
    use_gpu: bool = False
    cpus_per_worker: int = 2
    max_failures: int = 2


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    Args:
        model_name: in `MODELS`.
        model_config: its config.
        train: how to fit.
        sampling: how to draw.
        data: shared by the workers of a node.
        artifact_store: where rank 0 writes the model.
        model_id: its name.
        settings: a digest of data and settings, kept with the model.
        threads: of a CPU worker.
        tally: what the workers tell their progress to.
    """

    model_name: str
    model_config: Any
    train: TrainConfig
    sampling: SamplingConfig
    data: "ray.ObjectRef[TrainingData]"
    artifact_store: Store
    model_id: str
    settings: str
    threads: int
    tally: Any


def fit_with_ray(job: Job, resources: TrainResources, runs: Store) -> Result:
    """Trains on the cluster. A run of the same `model_id` goes on from its last checkpoint.

    Args:
        job: what to train.
        resources: with what.
        runs: where Ray keeps checkpoints, below a folder of the model's name.
    """
    trainer = TorchTrainer(
        train_worker,
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
            name=job.model_id,
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
    torch.set_num_threads(job.threads)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), get_device())
    timer = Timer(job.tally)
    with timer.phase("read"):
        data = ray.get(job.data)
    trainer = Trainer(
        build_model(job, data).to(place.device),
        data,
        job.train,
        job.sampling,
        place,
        wrap=lambda module: prepare_model(
            module, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
        ),
    )
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            restore_checkpoint(trainer, Path(folder))
        if place.rank == 0:
            job.tally.say.remote(f"resumed after epoch {trainer.progress.epoch}")
    trainer.run(lambda t: _report(t, job, timer))
    if place.rank == 0:
        with timer.phase("write"):
            _write_model(trainer, job, data)
        timer.done()


def build_model(job: Job, data: TrainingData) -> Any:
    """The model with weights from the seed, fitted to what needs no gradient."""
    torch.manual_seed(job.train.seed)
    model = MODELS[job.model_name](job.model_config, data.sizes)
    model.fit(data.catalogue, data.train)
    return model


def _report(trainer: Trainer, job: Job, timer: Timer) -> None:
    """Tells Ray (with rank 0's checkpoint) and the tally about the epoch."""
    last = trainer.progress.history[-1]
    metrics = {"epoch": trainer.progress.epoch, **last}
    if trainer.place.rank:
        ray.train.report(metrics)
        return
    job.tally.say.remote(
        f"epoch {trainer.progress.epoch:>3}  loss {last['loss']:.4f}  "
        f"val AUC {last['val_auc']:.4f}  lr {last['learning_rate']:.1e}  "
        f"{last['triples'] / last['seconds']:,.0f} triples/s"
    )
    timer.done(triples=last["triples"], epochs=1, train_s=last["seconds"])
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(trainer, Path(folder))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _write_model(trainer: Trainer, job: Job, data: TrainingData) -> None:
    trainer.model.load_state_dict(trainer.best)
    # Without the seconds: the same data, settings and seed give the same bytes.
    history = [
        {name: value for name, value in epoch.items() if name != "seconds"}
        for epoch in trainer.progress.history
    ]
    metrics = {"val_auc": trainer.progress.best_auc, "epochs": len(history), "history": history}
    save_artifact(artifact_of(job, data, trainer.model, metrics), job.artifact_store)


def artifact_of(job: Job, data: TrainingData, model: Any, metrics: dict[str, Any]) -> Artifact:
    return Artifact(
        name=job.model_name,
        model=model,
        config=job.model_config,
        sizes=data.sizes,
        item_ids=data.item_ids,
        user_ids=None if model.needs.cold_users else data.user_ids,
        made_from={
            **data.made_from,
            "train": job.train,
            "sampling": job.sampling,
            "settings": job.settings,
        },
        metrics=metrics,
        model_id=job.model_id,
        categories=data.categories,
    )


def fit_at_once(job: Job) -> None:
    """Fits and writes a model that needs no training, in one task."""
    data = ray.get(job.data)
    model = build_model(job, data)
    held = data.validation
    metrics: dict[str, Any] = {"val_auc": None, "epochs": 0, "history": []}
    if len(held):
        metrics["val_auc"] = float(score_held_out(model, data.catalogue, held).mean())
    save_artifact(artifact_of(job, data, model, metrics), job.artifact_store)
    job.tally.say.remote(f"{job.model_name} fitted: it needs no training")
