"""A training without Ray: resources, the epoch's line, checkpoints, and what becomes of a model."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.memory import peak_memory
from tests.training import checkerboard
from visrec.models.artifact import TIMES, load_artifact
from visrec.models.bpr_mf import BprMfConfig
from visrec.models.curatornet import CuratorNetConfig
from visrec.models.visrank import VisRankConfig
from visrec.progress import ProgressActor
from visrec.sampling.triples import SamplingConfig
from visrec.storage.store import Store
from visrec.tasks import LocalActor
from visrec.training import task as training_task
from visrec.training.data import TrainingData
from visrec.training.fit import TrainingRecipe, build_model
from visrec.training.loop import Progress, TrainConfig
from visrec.training.task import (
    TrainResources,
    TrainTask,
    build_artifact,
    epoch_line,
    fit_closed_form,
    fit_in_process,
)
from visrec.training.validation import held_out_aucs, sample_users

DATA = checkerboard()
EPOCH = {
    "loss": 0.5, "val_auc": 0.75, "learning_rate": 0.001, "seconds": 2.0, "triples": 4096.0,
}  # fmt: skip


def make_task(name: str, config: Any, store: Store, **train: Any) -> TrainTask:
    recipe = TrainingRecipe(name, config, TrainConfig(**train), SamplingConfig())
    data: Any = DATA
    actor = LocalActor(ProgressActor())
    return TrainTask(recipe, data, store, "m", "digest", 1, actor)


@pytest.mark.parametrize(
    ("resources", "per_worker", "total"),
    [
        (TrainResources(workers=3), {"CPU": 2.0}, {"CPU": 6.0}),
        (
            TrainResources(workers=2, cpus_per_worker=4, use_gpu=True),
            {"CPU": 4.0, "GPU": 1.0},
            {"CPU": 8.0, "GPU": 2.0},
        ),
    ],
)
def test_resources_are_those_of_each_worker_and_of_all(
    resources: TrainResources, per_worker: dict[str, float], total: dict[str, float]
) -> None:
    assert resources.per_worker == per_worker
    assert resources.total == total


@pytest.mark.parametrize(
    ("auc", "selection", "words"),
    [
        (0.75, None, "val AUC 0.7500"),
        (math.nan, None, "no validation"),
        (math.nan, Progress(best_epoch=7), "refit of 7"),
    ],
)
def test_line_of_an_epoch_says_what_it_was_validated_with(
    auc: float, selection: Progress | None, words: str
) -> None:
    progress = Progress(epoch=3, history=[{**EPOCH, "val_auc": auc}], first_fit_progress=selection)
    assert epoch_line(progress) == (f"epoch   3  loss 0.5000  {words}  lr 1.0e-03  2,048 triples/s")


@pytest.mark.parametrize(
    ("name", "config", "keeps_users"),
    [("curatornet", CuratorNetConfig(), False), ("bpr_mf", BprMfConfig(), True)],
)
def test_artifact_keeps_user_ids_only_for_a_model_with_user_embeddings(
    tmp_path: Path, name: str, config: Any, keeps_users: bool
) -> None:
    task = make_task(name, config, Store.at(str(tmp_path)), seed=5)
    artifact = build_artifact(task, DATA, build_model(task.recipe, DATA), {})
    assert (artifact.user_ids is not None) is keeps_users
    assert artifact.provenance.data == DATA.provenance
    assert artifact.provenance.train["seed"] == 5
    assert artifact.provenance.settings_digest == "digest"


def closed_form_auc(
    monkeypatch: pytest.MonkeyPatch, store: Store, data: TrainingData, **train: Any
) -> float | None:
    """The validation AUC that a VisRank is written with."""
    monkeypatch.setattr(training_task, "get", lambda _: data)
    fit_closed_form(make_task("visrank", VisRankConfig(), store, **train))
    assert store.read_json(TIMES)["train_s"] >= 0
    auc: float | None = load_artifact(store).metrics["val_auc"]
    return auc


def test_closed_form_model_is_validated_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auc = closed_form_auc(monkeypatch, Store.at(str(tmp_path)), DATA)
    assert auc is not None
    assert auc > 0.6  # each user stays in one visual cluster


def test_closed_form_model_is_validated_with_at_most_the_given_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at(str(tmp_path))
    auc = closed_form_auc(monkeypatch, store, DATA, validation_users=3, seed=4)
    model = build_model(make_task("visrank", VisRankConfig(), store).recipe, DATA)
    auc_E = held_out_aucs(model, DATA, sample_users(DATA.validation, 3, seed=4))
    assert len(auc_E) == 3
    assert auc == auc_E.mean()


def test_closed_form_model_without_validation_has_no_auc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = DATA.validation.take(np.zeros(0, np.int64))
    data = dataclasses.replace(DATA, validation=nobody)
    assert closed_form_auc(monkeypatch, Store.at(str(tmp_path)), data) is None


@pytest.mark.parametrize("refit", [True, False])
def test_closed_form_model_is_refitted_on_the_validation_rows_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refit: bool
) -> None:
    fitted = []
    build = training_task.build_model

    def spy(recipe: TrainingRecipe, data: TrainingData) -> Any:
        fitted.append(len(data.train.values))
        return build(recipe, data)

    monkeypatch.setattr(training_task, "build_model", spy)
    closed_form_auc(monkeypatch, Store.at(str(tmp_path)), DATA, refit=refit)
    rows = len(DATA.train.values)
    held_out = len(DATA.validation.targets.values)
    assert fitted == ([rows, rows + held_out] if refit else [rows])


def test_checkpoint_is_written_and_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = np.random.default_rng(0).bytes(100_000_000)

    def save(_: Any, folder: Path) -> None:
        (folder / "state.safetensors").write_bytes(big)

    monkeypatch.setattr(training_task, "save_checkpoint", save)
    run, trainer = Store.at(str(tmp_path / "run")), SimpleNamespace(progress=Progress(epoch=1))
    copy = tmp_path / "copy"
    copy.mkdir()
    training_task._write_checkpoint(trainer, run)  # type: ignore[arg-type]
    with peak_memory() as peak:
        training_task._write_checkpoint(trainer, run)  # type: ignore[arg-type]
        assert training_task._read_checkpoint(run, copy)
    assert peak.grown < 30e6
    assert (copy / "state.safetensors").read_bytes() == big


def test_training_that_is_stopped_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CuratorNetConfig(item_width=12, user_width=10)
    train: dict[str, Any] = {"epochs": 4, "triples_per_epoch": 320, "batch_size": 64}
    digests, write = {}, training_task._write_checkpoint

    def stop_after_the_refits_first(trainer: Any, run: Store) -> None:
        write(trainer, run)
        if trainer.progress.first_fit_progress and trainer.progress.epoch == 1:
            raise InterruptedError

    for name in ("calm", "stopped"):
        task = make_task("curatornet", config, Store.at(str(tmp_path / name)), **train)
        run = Store.at(str(tmp_path / "runs" / name))
        if name == "stopped":
            monkeypatch.setattr(training_task, "_write_checkpoint", stop_after_the_refits_first)
            with pytest.raises(InterruptedError):
                fit_in_process(task, run)
            monkeypatch.setattr(training_task, "_write_checkpoint", write)
            assert len(list(run.list())) == 3  # one checkpoint, and its name
        fit_in_process(task, run)
        digests[name] = load_artifact(task.artifact_store).digest
    assert digests["calm"] == digests["stopped"]
