"""A run that stops and resumes ends with the same bits as an uninterrupted one."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.memory import largest_file
from tests.training import checkerboard
from visrec.errors import InputError
from visrec.models.bpr_mf import BprMf, BprMfConfig
from visrec.models.curatornet import CuratorNet, CuratorNetConfig
from visrec.sampling.triples import SamplingConfig
from visrec.training.checkpoints import read_progress, restore_checkpoint, save_checkpoint
from visrec.training.distributed import WorkerContext
from visrec.training.loop import Progress, TrainConfig, Trainer

# So little noise that the AUC soon stops rising, which lowers the learning rate.
DATA = checkerboard(noise=0.1)


class Stopped(Exception):
    """Raised where the machine would be taken away."""


def _trainer(init_seed: int = 0) -> Trainer:
    """A trainer with dropout and a falling learning rate, so that every kind of state is in use."""
    torch.manual_seed(init_seed)
    model = CuratorNet(CuratorNetConfig(item_width=12, user_width=10), DATA.sizes)
    model.fit(DATA.catalogue, DATA.train)
    config = TrainConfig(
        epochs=4,
        triples_per_epoch=320,
        batch_size=64,
        learning_rate=0.01,
        lr_patience=0,
        stop_patience=10,
    )
    return Trainer(model, DATA, config, SamplingConfig(), WorkerContext())


def _state_without_seconds(trainer: Trainer) -> dict[str, Any]:
    history = [{k: v for k, v in e.items() if k != "seconds"} for e in trainer.progress.history]
    return {
        "history": history,
        "epoch": trainer.progress.epoch,
        "best_auc": trainer.progress.best_auc,
        "stale": trainer.progress.epochs_without_improvement,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "schedule": trainer.scheduler.state_dict(),
    }


def _assert_same(one: Trainer, other: Trainer) -> None:
    assert _state_without_seconds(one) == _state_without_seconds(other)
    for left, right in (
        (one.model.state_dict(), other.model.state_dict()),
        (one.eval_model.state_dict(), other.eval_model.state_dict()),
        (one.best_weights, other.best_weights),
    ):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    moments = [trainer.optimizer.state_dict()["state"] for trainer in (one, other)]
    assert moments[0].keys() == moments[1].keys()
    for index, state in moments[0].items():
        assert all(torch.equal(state[key], moments[1][index][key]) for key in state)


def _sparse_trainer(init_seed: int = 0) -> Trainer:
    """A trainer with sparse tables, where a step of 8 moves only some rows of 40 users."""
    torch.manual_seed(init_seed)
    config = TrainConfig(
        epochs=4, triples_per_epoch=24, batch_size=8, learning_rate=0.1, stop_patience=10
    )
    sampling = SamplingConfig(negatives="drawn")
    return Trainer(BprMf(BprMfConfig(width=6), DATA.sizes), DATA, config, sampling, WorkerContext())


@pytest.mark.parametrize("after", [1, 2, 3])
def test_resumed_run_ends_as_the_uninterrupted_one(after: int, tmp_path: Path) -> None:
    uninterrupted = _trainer()
    uninterrupted.run(lambda _: None)
    assert len({entry["learning_rate"] for entry in uninterrupted.progress.history}) > 1

    def stop(trainer: Trainer) -> None:
        if trainer.progress.epoch == after:
            save_checkpoint(trainer, tmp_path)
            raise Stopped

    stopped = _trainer()
    with pytest.raises(Stopped):
        stopped.run(stop)
    resumed = _trainer(init_seed=1)  # other weights, which the checkpoint replaces
    restore_checkpoint(resumed, tmp_path)
    _assert_same(resumed, stopped)
    resumed.run(lambda _: None)
    _assert_same(resumed, uninterrupted)


def test_checkpoint_without_room_names_the_folder(tmp_path: Path) -> None:
    refused = pytest.raises(InputError, match=rf"a checkpoint in {tempfile.gettempdir()}.*TMPDIR")
    with largest_file(10), refused:
        save_checkpoint(_trainer(), tmp_path)


@pytest.mark.parametrize("after", [1, 3])
def test_resumed_run_restores_the_state_of_each_sparse_row(after: int, tmp_path: Path) -> None:
    uninterrupted, stopped, resumed = (
        _sparse_trainer(),
        _sparse_trainer(),
        _sparse_trainer(init_seed=1),
    )
    uninterrupted.run(lambda _: None)
    while stopped.progress.epoch < after:
        stopped.run_epoch()
    # By then only some rows have moments, and the average differs from the weights.
    moved = (stopped.optimizer.state[stopped.model.users.weight]["exp_avg"] != 0).any(dim=1)
    assert 0 < int(moved.sum()) < len(moved)
    assert not torch.equal(stopped.eval_model.users.weight, stopped.model.users.weight)
    save_checkpoint(stopped, tmp_path)
    restore_checkpoint(resumed, tmp_path)
    _assert_same(resumed, stopped)
    resumed.run(lambda _: None)
    _assert_same(resumed, uninterrupted)


def test_restored_weights_share_no_memory_with_the_best_weights(tmp_path: Path) -> None:
    trainer, restored = _trainer(), _trainer(init_seed=1)
    trainer.run(lambda _: None)
    save_checkpoint(trainer, tmp_path)
    restore_checkpoint(restored, tmp_path)
    with torch.no_grad():
        for parameter in restored.model.parameters():
            parameter.add_(1.0)
    assert all(
        torch.equal(restored.best_weights[key], trainer.best_weights[key])
        for key in trainer.best_weights
    )


def test_restored_finished_run_trains_no_more(tmp_path: Path) -> None:
    trainer, restored = _trainer(), _trainer(init_seed=1)
    trainer.run(lambda _: None)
    save_checkpoint(trainer, tmp_path)
    restore_checkpoint(restored, tmp_path)
    assert restored.is_finished
    restored.run(lambda _: pytest.fail("trained on"))


def test_checkpoint_is_tensors_and_json(tmp_path: Path) -> None:
    trainer = _trainer()
    trainer.run(lambda _: None)
    save_checkpoint(trainer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    assert json.loads((tmp_path / "state.json").read_text())["progress"] == asdict(trainer.progress)
    trainer.progress = Progress(first_fit_progress=trainer.progress)
    save_checkpoint(trainer, tmp_path)
    assert read_progress(tmp_path) == trainer.progress
