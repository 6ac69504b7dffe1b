"""The task of a training worker, and how the worker carries it out, with or without Ray.

One worker without a GPU trains in the job's own process. It writes its checkpoints to the
workspace itself; for several workers, Ray Train does.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrec.config import check_fields, plain
from visrec.models.artifact import TIMES, Artifact, save_artifact
from visrec.models.base import Model
from visrec.models.provenance import Provenance
from visrec.progress import ProgressHandle, Timer
from visrec.scratch import copy_to_scratch
from visrec.storage.store import Store
from visrec.tasks import Ref, get
from visrec.threads import torch_threads
from visrec.training.checkpoints import save_checkpoint
from visrec.training.data import TrainingData
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
from visrec.training.validation import held_out_aucs, sample_users

_CHECKPOINT = "in_process.json"  # names the folder of the last checkpoint of a training without Ray
_COPY_BYTES = 1 << 22  # of a checkpoint in memory at a time: it may be larger than the model


@dataclass(frozen=True, kw_only=True)
class TrainResources:
    """The cluster resources that training uses.

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
    data: Ref
    artifact_store: Store
    model_id: str
    settings_digest: str
    threads: int
    progress_actor: ProgressHandle
    track: TrackerAccess | None = None


def fit_in_process(task: TrainTask, run: Store) -> None:
    """Trains in this process, and resumes from the last checkpoint of an earlier one.

    Args:
        task: what to train.
        run: the folder of its checkpoints.
    """
    data: TrainingData = get(task.data)
    with torch_threads(task.threads):
        with tempfile.TemporaryDirectory() as folder:
            is_resumed = _read_checkpoint(run, Path(folder))
            trainer = (
                restore_trainer(task.recipe, data, Path(folder))
                if is_resumed
                else build_trainer(task.recipe, data)
            )
        run_training(task, data, trainer, lambda trainer: _write_checkpoint(trainer, run))


def _write_checkpoint(trainer: Trainer, run: Store) -> None:
    """Writes a checkpoint of the epoch, and removes the one before it."""
    refit = "refit-" if trainer.progress.first_fit_progress else ""
    name = f"epoch-{refit}{trainer.progress.epoch:06d}"
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(trainer, Path(folder))
        files = sorted(path.name for path in Path(folder).iterdir())
        for file in files:
            with (
                open(Path(folder) / file, "rb") as source,
                run.open_replacement(f"{name}/{file}") as sink,
            ):
                shutil.copyfileobj(source, sink, _COPY_BYTES)
    before = run.read_json(_CHECKPOINT)["folder"] if run.exists(_CHECKPOINT) else name
    run.write_json(_CHECKPOINT, {"folder": name, "files": files})
    if before != name:
        (run / before).delete_all()


def _read_checkpoint(run: Store, folder: Path) -> bool:
    """Copies the last checkpoint into a folder; False if there is none."""
    if not run.exists(_CHECKPOINT):
        return False
    last = run.read_json(_CHECKPOINT)
    for file in last["files"]:
        with (
            run.open_input_stream(f"{last['folder']}/{file}") as source,
            open(folder / file, "wb", buffering=0) as copy,
        ):
            copy_to_scratch(source, copy, "a checkpoint")
    return True


def run_training(
    task: TrainTask,
    data: TrainingData,
    trainer: Trainer,
    write_checkpoint: Callable[[Trainer], None],
) -> None:
    """Runs the trainer to its end, and on rank 0 writes the model.

    Args:
        task: what to train.
        data: the data of the task.
        trainer: new or restored.
        write_checkpoint: is called after each epoch.
    """
    timer = Timer(task.progress_actor)
    is_leader = trainer.context.rank == 0
    for note in trainer.source.notes if is_leader else ():
        task.progress_actor.log.remote(note)
    if is_leader and (epochs := trainer.progress.epoch):
        fit = "the refit's " if trainer.progress.first_fit_progress else ""
        task.progress_actor.log.remote(f"resumed after {fit}epoch {epochs}")
    tracker = _open_tracker(task, trainer.progress.tracker_run) if is_leader else None

    def report(trainer: Trainer) -> None:
        if is_leader:
            _report(trainer, task, timer, tracker)
        write_checkpoint(trainer)

    trainer = train_to_end(trainer, task.recipe, data, report)
    if is_leader:
        first = trainer.progress.first_fit
        if first.added_weight:
            task.progress_actor.log.remote(
                f"the closed-form score is added with weight {first.added_weight:g}: "
                f"val AUC {first.best_auc:.4f}"
            )
        with timer.phase("write"):
            trainer.model.load_state_dict(trainer.best_weights)
            metrics = training_metrics(trainer.progress)
            seconds = training_seconds(trainer.progress)
            _write_model(task, data, trainer.model, metrics, seconds, tracker)
        timer.report()


def _open_tracker(task: TrainTask, run_id: str | None) -> Tracker | None:
    """The tracker's run; that of the checkpoint, if the training was resumed.

    Args:
        task: the task whose settings a new run has.
        run_id: the checkpoint's id.
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
    """Reports an epoch to the terminal and to the tracker."""
    task.progress_actor.log.remote(epoch_line(trainer.progress))
    last = trainer.progress.history[-1]
    if tracker is not None:
        first = trainer.progress.first_fit_progress
        # The refit's steps follow those of the first fit: some trackers refuse to go back.
        step = trainer.progress.epoch + (len(first.history) if first else 0)
        tracker.log(step, epoch_values(last, is_refit=first is not None))
        trainer.progress.tracker_run = tracker.run_id
    timer.report(triples=last["triples"], epochs=1, train_s=last["seconds"])


def epoch_line(progress: Progress) -> str:
    """One line about the last epoch, for the terminal."""
    last = progress.history[-1]
    first = progress.first_fit_progress
    auc = last["val_auc"]
    validation = "no validation" if math.isnan(auc) else f"val AUC {auc:.4f}"
    validation = f"refit of {first.best_epoch}" if first else validation
    return (
        f"epoch {progress.epoch:>3}  loss {last['loss']:.4f}  {validation}  "
        f"lr {last['learning_rate']:.1e}  {last['triples'] / last['seconds']:,.0f} triples/s"
    )


def _write_model(
    task: TrainTask,
    data: TrainingData,
    model: Model,
    metrics: dict[str, Any],
    seconds: float,
    tracker: Tracker | None,
) -> None:
    """Writes the fitted model and the time that it took, and ends the tracker's run."""
    times: dict[str, Any] = {"train_s": seconds}
    if task.track is not None and tracker is not None:
        times |= {"tracker": task.track.name, "tracker_run": tracker.run_id}
    task.artifact_store.write_json(TIMES, times)
    save_artifact(build_artifact(task, data, model, metrics), task.artifact_store)
    if tracker is not None:
        tracker.finish()


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
    """Fits and writes a model that trains no weights, in a single task."""
    start, data = time.perf_counter(), get(task.data)
    model, config = build_model(task.recipe, data), task.recipe.train
    metrics: dict[str, Any] = {"val_auc": None, "epochs": 0, "history": []}
    validation = sample_users(data.validation, config.validation_users, config.seed)
    if len(validation):
        auc_E = held_out_aucs(model, data, validation)
        metrics["val_auc"] = float(auc_E.mean())
        if config.refit:
            del model  # before the other is made: that of ease has a weight for each pair of items
            model = build_model(task.recipe, data.for_refit)
    seconds = round(time.perf_counter() - start, 3)
    tracker = _open_tracker(task, None)
    if tracker is not None and metrics["val_auc"] is not None:
        tracker.log(0, {"val_auc": metrics["val_auc"]})
    _write_model(task, data, model, metrics, seconds, tracker)
    task.progress_actor.log.remote(f"{task.recipe.model_name} is fitted; it trains no weights")
