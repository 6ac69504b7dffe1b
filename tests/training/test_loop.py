"""The training loop: it learns, is reproducible, and gives the same on one worker and on two."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.training import checkerboard, held_baskets, jagged_lists
from visrec.errors import InputError, VisrecError
from visrec.models.arrays import ItemArrays
from visrec.models.base import Catalogue, ModelTraits
from visrec.models.convncf import ConvNcf, ConvNcfConfig
from visrec.models.curatornet import CuratorNet, CuratorNetConfig
from visrec.models.inputs import TripleBatch
from visrec.models.random import Random, RandomConfig
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import rank_targets
from visrec.sampling.triples import SamplingConfig, Triples
from visrec.training import loop
from visrec.training.batches import make_batch
from visrec.training.data import TrainingData
from visrec.training.distributed import WorkerContext
from visrec.training.loop import TrainConfig, Trainer, steps_per_epoch
from visrec.training.validation import validation_auc
from visrec.tuning.groups import history_with_outcome

DATA = checkerboard()
TRAIN = TrainConfig(epochs=3, triples_per_epoch=1280, batch_size=64, ema_decay=0)


def _trainer(
    config: TrainConfig = TRAIN,
    data: TrainingData = DATA,
    context: WorkerContext | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    dropout: float = 0.0,
) -> Trainer:
    torch.manual_seed(config.seed)
    settings = CuratorNetConfig(
        item_width=16, user_width=24, feature_dropout=dropout, temperature=4.0
    )
    model = CuratorNet(settings, data.sizes)
    model.fit(data.catalogue, data.train)
    return Trainer(model, data, config, SamplingConfig(), context or WorkerContext(), wrap)


def _trained(*args: Any, **kwargs: Any) -> Trainer:
    trainer = _trainer(*args, **kwargs)
    trainer.run(lambda _: None)
    return trainer


def _with(**changes: Any) -> TrainConfig:
    return dataclasses.replace(TRAIN, **changes)


def _history(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.progress.history]


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_loop_learns_the_planted_taste() -> None:
    trainer = _trained(_with(epochs=5))
    # A model that knows only the clusters cannot tell a positive from 15 other items: log 16.
    excess = [loss - math.log(16) for loss in _history(trainer, "loss")]
    assert 0 < excess[-1] < 0.5 * excess[0]
    assert max(_history(trainer, "val_auc")) > 0.95


def test_same_seed_gives_the_same_weights_to_the_bit() -> None:
    one, other = _trained(dropout=0.5), _trained(dropout=0.5)
    assert _equal(_weights(one), _weights(other))
    assert _history(one, "loss") == _history(other, "loss")


def test_other_seed_gives_other_triples() -> None:
    losses = []
    for seed in (0, 1):
        trainer = _trainer(_with(seed=seed, epochs=1))
        trainer.model.load_state_dict(_trainer().model.state_dict())  # the same initial weights
        trainer.run(lambda _: None)
        losses.append(_history(trainer, "loss"))
    assert losses[0] != losses[1]


def test_each_epoch_samples_new_triples() -> None:
    one, other = _history(_trained(_with(epochs=2, learning_rate=1e-12)), "loss")
    assert abs(one - other) > 1e-4


def test_each_step_of_each_epoch_has_its_own_dropout() -> None:
    trainer, seeds = _trainer(_with(epochs=2), dropout=0.5), set()
    for epoch in range(2):
        trainer.source.start_epoch(epoch, 640)
        batches = [trainer.source.batch(step, 64, 0, 1, torch.device("cpu")) for step in range(9)]
        seeds |= {batch.seed for batch in batches}
    assert len(seeds) == 18
    model = trainer.model.train()
    one, other = (float(model(dataclasses.replace(batches[0], seed=s)).detach()) for s in (1, 2))
    assert one != other


def test_first_step_is_that_of_adamw_on_the_summed_loss() -> None:
    # Adam ignores the scale of the loss except for its epsilon, and decay ignores the gradient.
    config = _with(epochs=1, triples_per_epoch=64, weight_decay=3.0)
    trainer, reference = _trainer(config), _trainer(config).model
    trainer.run(lambda _: None)
    reference.train()
    source = _trainer(config).source
    source.start_epoch(0, 64)
    loss = reference(source.batch(0, 64, 0, 1, torch.device("cpu")))
    (64 * loss).backward()
    for name, parameter in reference.named_parameters():
        gradient, kept = parameter.grad, 1 - 3.0 * 1e-3 * (parameter.ndim > 1)
        expected = kept * parameter.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)
        found = trainer.model.get_parameter(name).detach()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [16, 64])
def test_decay_of_a_step_depends_on_the_learning_rate_and_not_on_the_batch_size(
    batch_size: int,
) -> None:
    """With gradients of zero, each step multiplies a weight by 1 - learning rate * decay."""
    steps = {"epochs": 3, "triples_per_epoch": 4 * batch_size, "batch_size": batch_size}
    trainer = _trainer(_with(weight_decay=100.0, learning_rate=1e-3, lr_factor=0.5, **steps))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.requires_grad_(False)
    weight = nn.Parameter(torch.ones(2, 2))
    trainer.optimizer.param_groups[0]["params"] = [weight]
    trainer.optimizer.param_groups[1]["params"] = []
    trainer.replica = lambda _: 0.0 * weight.sum()  # type: ignore[assignment]
    for rate, left in ((1e-3, 0.9**4), (5e-4, 0.9**4 * 0.95**4)):
        trainer._set_learning_rate(rate)
        trainer._train_steps(0)
        torch.testing.assert_close(weight.detach(), torch.full((2, 2), left))


def test_bfloat16_learns() -> None:
    trainer = _trained(_with(precision="bfloat16", epochs=5))
    assert max(_history(trainer, "val_auc")) > 0.95
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_best_weights_are_those_of_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    # The gain of the fifth is below the threshold of 1e-4.
    aucs = [0.5, 0.7, 0.6, 0.9, 0.90005, 0.8]
    remaining = iter(aucs)
    monkeypatch.setattr(loop, "validation_auc", lambda *_: next(remaining))
    seen: list[dict[str, Tensor]] = []
    trainer = _trainer(_with(epochs=6, triples_per_epoch=128))
    trainer.run(lambda t: seen.append(_weights(t)))
    assert _history(trainer, "val_auc") == aucs
    assert _equal(trainer.best_weights, seen[3])
    assert not _equal(seen[3], seen[5])
    assert (trainer.progress.best_auc, trainer.progress.epochs_without_improvement) == (0.9, 2)


class Plateau(Random):
    """A model whose training does not change its scores, so that the AUC never improves."""

    trains_on = "triples"

    def __init__(self) -> None:
        super().__init__(RandomConfig(), DATA.sizes)
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, batch: TripleBatch) -> Tensor:
        del batch
        return (self.weight**2).mean()


def _train_plateau(config: TrainConfig, data: TrainingData = DATA) -> Trainer:
    trainer = Trainer(Plateau(), data, config, SamplingConfig(), WorkerContext())
    trainer.run(lambda _: None)
    return trainer


def test_training_stops_when_the_auc_does_not_improve() -> None:
    trainer = _train_plateau(_with(epochs=50, stop_patience=4))
    assert trainer.progress.epoch == len(trainer.progress.history) == 1 + 4


def test_learning_rate_falls_when_the_auc_does_not_improve() -> None:
    config = _with(epochs=7, stop_patience=50, lr_patience=1, lr_factor=0.5, learning_rate=0.01)
    rates = _history(_train_plateau(config), "learning_rate")
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025])


def test_learning_rate_rises_linearly_in_the_warm_up() -> None:
    one_step = {"triples_per_epoch": 64, "batch_size": 64, "stop_patience": 50, "lr_patience": 50}
    config = _with(epochs=6, warmup_steps=4, learning_rate=0.01, **one_step)
    rates = _history(_train_plateau(config), "learning_rate")
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_validated_weights_are_the_moving_average_of_the_trained_ones() -> None:
    config = _with(epochs=30, triples_per_epoch=64, stop_patience=50, ema_decay=0.6)
    weights, averages = [], []
    trainer = Trainer(Plateau(), DATA, config, SamplingConfig(), WorkerContext())

    def record(t: Trainer) -> None:
        weights.append(t.model.weight.double().tolist()[0])
        averages.append(t.eval_model.weight.double().tolist()[0])

    trainer.run(record)
    expected, average = [], 1.0  # the initial weights
    for step, weight in enumerate(weights):
        decay = min(0.6, (step + 1) / (step + 10))
        average = decay * average + (1 - decay) * weight
        expected.append(average)
    assert averages == pytest.approx(expected, rel=1e-5)
    assert weights[-1] < averages[-1] < 1


def test_training_that_diverges_at_once_is_an_error() -> None:
    with pytest.raises(VisrecError, match=r"diverged.*--train\.learning_rate"):
        _trained(_with(learning_rate=1e30))


def test_training_that_diverges_later_ends_with_the_best_weights_before() -> None:
    trainer, seen = _trainer(_with(epochs=5, stop_patience=3)), []

    def spoil(t: Trainer) -> None:
        seen.append(_weights(t))
        if t.progress.epoch == 2:
            with torch.no_grad():
                next(t.model.parameters()).fill_(math.inf)

    trainer.run(spoil)
    assert trainer.progress.epoch == 3
    assert math.isnan(_history(trainer, "val_auc")[2])
    assert trainer.progress.best_auc == max(_history(trainer, "val_auc")[:2])
    assert _equal(trainer.best_weights, seen[0]) or _equal(trainer.best_weights, seen[1])


class NoRoom(Plateau):
    """A model whose item vectors do not fit on the disk."""

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        raise InputError(f"Found no room for {len(catalogue)} items")


def test_input_error_in_the_validation_is_not_taken_for_divergence() -> None:
    trainer = Trainer(NoRoom(), DATA, _with(epochs=1), SamplingConfig(), WorkerContext())
    with pytest.raises(InputError, match="no room"):
        trainer.run(lambda _: None)


def test_training_with_scores_beyond_float32_ends_with_the_best_weights_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = _trainer(_with(epochs=5, stop_patience=3))
    real_auc = loop.validation_auc
    reranker = ConvNcf(ConvNcfConfig(width=4, channels=4), DATA.sizes)
    with torch.no_grad():
        for weight in reranker.parameters():
            weight.fill_(1e30)

    def auc_of_reranker_in_epoch_3(model: Any, *others: Any) -> float:
        return real_auc(reranker if trainer.progress.epoch == 2 else model, *others)

    monkeypatch.setattr(loop, "validation_auc", auc_of_reranker_in_epoch_3)
    trainer.run(lambda _: None)
    assert trainer.progress.epoch == 3
    assert not history_with_outcome(trainer)[-1]["is_finite"]
    assert trainer.progress.best_auc == max(_history(trainer, "val_auc")[:2])


def test_last_weights_are_kept_without_validation_users() -> None:
    nobody = held_baskets(
        np.zeros(0, np.int64), jagged_lists([]), jagged_lists([]), np.zeros(0, np.int64)
    )
    trainer = _trained(
        _with(stop_patience=1, lr_patience=0), dataclasses.replace(DATA, validation=nobody)
    )
    assert len(trainer.progress.history) == TRAIN.epochs
    assert all(math.isnan(auc) for auc in _history(trainer, "val_auc"))
    assert set(_history(trainer, "learning_rate")) == {TRAIN.learning_rate}
    assert _equal(trainer.best_weights, _weights(trainer))


def test_validation_auc_is_the_mean_auc_of_the_metrics() -> None:
    trainer, held = _trainer(), DATA.validation
    model = trainer.model.eval()
    scorer = model.scorer(model.item_arrays(DATA.catalogue))
    auc_E = per_user(rank_targets(scorer, held.profiles, held.user_E, held.targets))["auc"]
    assert validation_auc(trainer.model, DATA, held, WorkerContext()) == pytest.approx(auc_E.mean())


def test_validation_users_are_limited_and_sampled_by_seed() -> None:
    sampled = [
        _trainer(_with(validation_users=9, seed=seed)).validation.user_E.tolist()
        for seed in (0, 0, 1)
    ]
    assert len(set(sampled[0])) == 9
    assert sampled[0] == sampled[1] != sampled[2]


def test_batch_positions_are_those_of_the_items_of_its_triples() -> None:
    triples = Triples(
        user_B=np.array([4, 5]),
        profiles=jagged_lists([[30, 7, 9], [7]]),
        positive_B=np.array([9, 30]),
        negative_BK=np.array([[50], [8]]),
    )
    batch = make_batch(
        triples, None, DATA, ModelTraits(requires_features=True), torch.device("cpu")
    )
    assert batch.item_M.tolist() == [7, 8, 9, 30, 50]
    np.testing.assert_array_equal(batch.feature_MD, DATA.feature_ND[[7, 8, 9, 30, 50]])
    assert batch.item_M[batch.profiles.values].tolist() == [30, 7, 9, 7]
    assert batch.profiles.lengths.tolist() == [3, 1]
    assert batch.item_M[batch.positive_B].tolist() == [9, 30]
    assert batch.item_M[batch.negative_BK].tolist() == [[50], [8]]
    assert batch.user_B.tolist() == [4, 5]


@pytest.mark.parametrize(("batch_size", "workers"), [(65, 2), (64, 3), (12, 8)])
def test_batch_size_that_workers_cannot_share_equally_is_refused(
    batch_size: int, workers: int
) -> None:
    with pytest.raises(
        InputError, match=f"batch_size {batch_size}.*multiple of the {workers} work"
    ):
        _trainer(_with(batch_size=batch_size), context=WorkerContext(0, workers))


@pytest.mark.parametrize(("configured", "sampled"), [(100, 64), (1280, 1280), (10, 64)])
def test_history_counts_the_triples_that_were_sampled(configured: int, sampled: int) -> None:
    assert _history(_trained(_with(epochs=1, triples_per_epoch=configured)), "triples") == [sampled]


@pytest.mark.parametrize(("rows", "steps"), [(None, 80), (3_700, 21), (100, 20), (1_000_000, 80)])
def test_epoch_has_at_most_three_passes_over_rows_that_come_in_turn(
    rows: int | None, steps: int
) -> None:
    assert steps_per_epoch(TrainConfig(), rows) == steps


def _train_as_one_of_two(rank: int, folder: str) -> None:
    """Runs in a process of its own: trains with DDP and writes its history and weights."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    # 39 validation users: shares of 20 and 19.
    data = _odd_users()
    trainer = _trainer(TRAIN, data, WorkerContext(rank, 2), DistributedDataParallel, dropout=0.5)
    before = validation_auc(trainer.model, data, trainer.validation, trainer.context)
    trainer.run(lambda _: None)
    found = {"before": before, "history": trainer.progress.history}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    save_file(_weights(trainer), Path(folder, f"{rank}.safetensors"))
    torch.distributed.destroy_process_group()


def _odd_users() -> TrainingData:
    return dataclasses.replace(DATA, validation=DATA.validation.take(np.arange(39)))


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the history and the weights of each of two workers."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_train_as_one_of_two, (str(folder),), nprocs=2)
    return folder


def _found(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{rank}.json").read_text())
    return found


def test_two_workers_train_as_one(two_workers: Path) -> None:
    alone = _trained(data=_odd_users(), dropout=0.5)
    for rank in range(2):
        history = _found(two_workers, rank)["history"]
        for key in ("loss", "val_auc", "learning_rate"):
            found = [entry[key] for entry in history]
            assert found == pytest.approx(_history(alone, key), rel=1e-4)
        for name, value in load_file(two_workers / f"{rank}.safetensors").items():
            torch.testing.assert_close(value, _weights(alone)[name], rtol=1e-3, atol=1e-4)


def test_two_workers_end_with_the_same_weights(two_workers: Path) -> None:
    one, other = (load_file(two_workers / f"{rank}.safetensors") for rank in range(2))
    assert _equal(one, other)


def test_validation_auc_of_two_workers_is_the_mean_over_the_users_of_both(
    two_workers: Path,
) -> None:
    data = _odd_users()
    alone = validation_auc(_trainer(data=data).model, data, data.validation, WorkerContext())
    for rank in range(2):
        assert _found(two_workers, rank)["before"] == pytest.approx(alone, rel=1e-12)
