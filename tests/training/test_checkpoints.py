"""A run that stops and goes on ends where the run that never stopped does, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import checkerboard
from visrec.models.bpr_mf import BprMf, BprMfConfig
from visrec.models.curatornet import CuratorNet, CuratorNetConfig
from visrec.sampling.triples import SamplingConfig
from visrec.training.checkpoints import restore_checkpoint, save_checkpoint
from visrec.training.loop import TrainConfig, Trainer, WorkerContext

DATA = checkerboard()


class Stopped(Exception):
    """The machine is taken away."""


def _trainer(start: int = 0) -> Trainer:
    """Dropout, and a learning rate that falls on the way: all the state there is."""
    torch.manual_seed(start)
    model = CuratorNet(CuratorNetConfig(item_width=12, user_width=10), DATA.sizes)
    model.fit(DATA.catalogue, DATA.train)
    config = TrainConfig(
        epochs=4,
        triples_per_epoch=320,
        batch_size=64,
        learning_rate=0.3,
        lr_patience=0,
        stop_patience=10,
    )
    return Trainer(model, DATA, config, SamplingConfig(), WorkerContext())


def _facts(trainer: Trainer) -> dict[str, Any]:
    """Everything but the clock."""
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
    assert _facts(one) == _facts(other)
    for left, right in (
        (one.model.state_dict(), other.model.state_dict()),
        (one.eval_model.state_dict(), other.eval_model.state_dict()),
        (one.best, other.best),
    ):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    moments = [trainer.optimizer.state_dict()["state"] for trainer in (one, other)]
    assert moments[0].keys() == moments[1].keys()
    for index, state in moments[0].items():
        assert all(torch.equal(state[key], moments[1][index][key]) for key in state)


def _sparse_trainer(start: int = 0) -> Trainer:
    """Tables of whose rows each step moves a few: steps of 8 among 40 users."""
    torch.manual_seed(start)
    config = TrainConfig(
        epochs=4, triples_per_epoch=24, batch_size=8, learning_rate=0.1, stop_patience=10
    )
    sampling = SamplingConfig(negatives="drawn")
    return Trainer(BprMf(BprMfConfig(width=6), DATA.sizes), DATA, config, sampling, WorkerContext())


@pytest.mark.parametrize("after", [1, 2, 3])
def test_stopped_and_resumed_ends_where_the_straight_run_does(after: int, tmp_path: Path) -> None:
    straight = _trainer()
    straight.run(lambda _: None)
    assert len({entry["learning_rate"] for entry in straight.progress.history}) > 1

    def stop(trainer: Trainer) -> None:
        if trainer.progress.epoch == after:
            save_checkpoint(trainer, tmp_path)
            raise Stopped

    stopped = _trainer()
    with pytest.raises(Stopped):
        stopped.run(stop)
    resumed = _trainer(start=1)  # other weights, which the checkpoint replaces
    restore_checkpoint(resumed, tmp_path)
    _assert_same(resumed, stopped)
    resumed.run(lambda _: None)
    _assert_same(resumed, straight)


@pytest.mark.parametrize("after", [1, 3])
def test_rows_that_train_alone_go_on_from_where_each_of_them_stood(
    after: int, tmp_path: Path
) -> None:
    straight, stopped, resumed = _sparse_trainer(), _sparse_trainer(), _sparse_trainer(start=1)
    straight.run(lambda _: None)
    while stopped.progress.epoch < after:
        stopped.epoch()
    # Some rows have moments by then and some have none, and the average is not the weights.
    moved = (stopped.optimizer.state[stopped.model.users.weight]["exp_avg"] != 0).any(dim=1)
    assert 0 < int(moved.sum()) < len(moved)
    assert not torch.equal(stopped.eval_model.users.weight, stopped.model.users.weight)
    save_checkpoint(stopped, tmp_path)
    restore_checkpoint(resumed, tmp_path)
    _assert_same(resumed, stopped)
    resumed.run(lambda _: None)
    _assert_same(resumed, straight)


def test_restored_state_shares_no_memory_with_the_best_weights(tmp_path: Path) -> None:
    trainer, restored = _trainer(), _trainer(start=1)
    trainer.run(lambda _: None)
    save_checkpoint(trainer, tmp_path)
    restore_checkpoint(restored, tmp_path)
    with torch.no_grad():
        for parameter in restored.model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(restored.best[key], trainer.best[key]) for key in trainer.best)


def test_finished_run_stays_finished(tmp_path: Path) -> None:
    trainer, restored = _trainer(), _trainer(start=1)
    trainer.run(lambda _: None)
    save_checkpoint(trainer, tmp_path)
    restore_checkpoint(restored, tmp_path)
    assert restored.finished
    restored.run(lambda _: pytest.fail("trained on"))


def test_files_are_tensors_and_json(tmp_path: Path) -> None:
    trainer = _trainer()
    trainer.run(lambda _: None)
    save_checkpoint(trainer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    assert json.loads((tmp_path / "state.json").read_text())["progress"]["epoch"] == 4
