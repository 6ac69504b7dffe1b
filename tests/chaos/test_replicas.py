"""Promise 25: every model trains the same with one worker and with several.

For every model, loss and kind of negatives, the float64 gradients of the first step are compared:
those of several workers, each with a share of the batch, and those of one worker with all of it.
The process group of the workers is gloo, except that it refuses sparse tensors, as NCCL does.
"""

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tests.chaos.harness import amount, measured
from tests.training import checkerboard
from visrec.models import MODELS
from visrec.models.convncf import ConvNcfConfig
from visrec.models.losses import LossName
from visrec.sampling.triples import SamplingConfig
from visrec.training.batch_sources import SOURCES
from visrec.training.batches import BatchSource
from visrec.training.data import TrainingData
from visrec.training.distributed import WorkerContext, replicate
from visrec.training.loop import TrainConfig, Trainer

SIZE = 24  # examples of a step, all workers together
TRAINED_MODELS = sorted(name for name, model in MODELS.items() if model.trains_on != "nothing")
NEGATIVES = {
    "catalogue": SamplingConfig(),
    "drawn candidates": SamplingConfig(candidates=20, popularity=0.5),
    "in batch": SamplingConfig(negatives="in_batch"),
    "drawn": SamplingConfig(negatives="drawn"),
}
# By kind of batch; other kinds have no choice of negatives.
NEGATIVES_BY_BATCH = {"triples": tuple(NEGATIVES), "drawn_triples": ("drawn",)}

# The weights with sparse gradients.
TWO = ("users.weight", "items.weight")
SPARSE = {
    "bpr_mf": (*TWO, "item_bias.weight"),
    "convncf": TWO,
    "cooccurrence": (),
    "curatornet": (),
    "deepstyle": (*TWO, "categories.weight"),
    "embedding_mlp": TWO,
    "hybrid": ("items.weight",),
    "multivae": (),
    "vbpr": (*TWO, "item_bias.weight"),
    "youtube_dnn": ("taken.weight", "items.weight"),
}


class Case(NamedTuple):
    model: str
    loss: str
    negatives: str


def cases() -> Iterator[Case]:
    for model in TRAINED_MODELS:
        for negatives in NEGATIVES_BY_BATCH.get(MODELS[model].trains_on, ("catalogue",)):
            ranks = model not in ("cooccurrence", "embedding_mlp", "multivae")
            for loss in get_args(LossName) if ranks else ("its own",):
                yield Case(model, loss, negatives)


class DenseOnly(distributed.ProcessGroup):
    """gloo without sparse tensors, which NCCL does not support."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self._gloo = distributed.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:
        return "dense"

    def allreduce(self, tensors: list[Tensor], options: Any = None) -> Any:
        _refuse_sparse(tensors)
        return self._gloo.allreduce(tensors, options or distributed.AllreduceOptions())

    def allgather(self, outputs: Any, tensors: list[Tensor], options: Any = None) -> Any:
        _refuse_sparse(tensors)
        return self._gloo.allgather(outputs, tensors, options or distributed.AllgatherOptions())

    def broadcast(self, tensors: list[Tensor], options: Any = None) -> Any:
        _refuse_sparse(tensors)
        return self._gloo.broadcast(tensors, options or distributed.BroadcastOptions())


def _refuse_sparse(tensors: list[Tensor]) -> None:
    if any(tensor.is_sparse for tensor in tensors):
        raise RuntimeError("Tensors must be dense")


@cache
def _data() -> TrainingData:
    """Items in two visual clusters, with categories and ratings."""
    data = checkerboard(items=40, users=18)
    random = np.random.default_rng(3)
    return dataclasses.replace(
        data,
        category_N=random.integers(-1, 3, len(data.item_ids)),
        categories=("one", "three", "two"),
        rating_R=random.integers(1, 6, len(data.train.values)).astype(np.float32),
    )


def _model(case: Case) -> Any:
    kind = MODELS[case.model]
    config = ConvNcfConfig(width=8, channels=4) if case.model == "convncf" else kind.Config()
    if hasattr(config, "loss"):
        config = dataclasses.replace(config, loss=case.loss)
    torch.manual_seed(0)
    model = kind(config, _data().sizes)
    model.fit(_data().catalogue, _data().train)
    return model.double().train()


def _gradients(
    case: Case, rank: int = 0, workers: int = 1, *, halved: bool = False
) -> dict[str, Tensor]:
    """The gradient of each parameter after the backward pass of the first step.

    Args:
        case: model, loss and negatives.
        rank: rank of the worker.
        workers: number of workers.
        halved: divide each sparse gradient by 2, in place, as soon as it is accumulated.
    """
    model, data = _model(case), _data()
    if halved:
        for weight in model.parameters():
            weight.register_post_accumulate_grad_hook(_halve_sparse)
    source = SOURCES[model.trains_on](data, NEGATIVES[case.negatives], 0, model.traits)
    source.start_epoch(0, SIZE)
    batch = _wide(source.batch(0, SIZE, rank, workers, torch.device("cpu")))
    module: nn.Module = replicate(model, DistributedDataParallel) if workers > 1 else model
    module(batch).backward()
    return {name: _dense(weight.grad) for name, weight in model.named_parameters()}


def _halve_sparse(weight: Tensor) -> None:
    if weight.grad is not None and weight.grad.is_sparse:
        weight.grad.div_(2)


def _dense(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return (gradient.to_dense() if gradient.is_sparse else gradient).contiguous()


class _InFloat64:
    """Batches whose features are float64, as the weights are."""

    def __init__(self, source: BatchSource) -> None:
        self._source, self.rows = source, source.rows
        self.start_epoch = source.start_epoch

    def batch(self, *args: Any) -> Any:
        return _wide(self._source.batch(*args))


def _wide(batch: Any) -> Any:
    if not hasattr(batch, "feature_MD"):
        return batch
    return dataclasses.replace(batch, feature_MD=batch.feature_MD.double())


def _losses(name: str, rank: int = 0, workers: int = 1) -> list[float]:
    """The loss of each of three epochs, trained as in the jobs, but in float64.

    In float32, sums over other shares are rounded otherwise, and Adam makes these differences
    larger: after 30 steps with three workers, the hybrid's loss differs by 3e-4 of itself.
    """
    case = Case(name, "softmax", "catalogue")
    overrides = MODELS[name].default_overrides.to_dict()
    train = TrainConfig(epochs=3, triples_per_epoch=10 * SIZE, batch_size=SIZE, **overrides)
    context = WorkerContext(rank, workers)
    data, sampling = _data(), NEGATIVES[case.negatives]
    data = dataclasses.replace(data, validation=data.validation.take(np.arange(0)))
    trainer = Trainer(_model(case), data, train, sampling, context, DistributedDataParallel)
    trainer.source = _InFloat64(trainer.source)
    trainer.run(lambda _: None)
    return [entry["loss"] for entry in trainer.progress.history]


def _work(rank: int, folder: str, workers: int) -> None:
    """Runs in a process of its own: all cases, one after another."""
    torch.set_num_threads(1)
    distributed.Backend.register_backend("dense", DenseOnly, devices=["cpu"])
    distributed.init_process_group(
        "dense", init_method=f"file://{folder}/meet", rank=rank, world_size=workers
    )
    gradients = {
        f"{case} {name}": gradient
        for case in cases()
        for name, gradient in _gradients(case, rank, workers).items()
    }
    save_file(gradients, Path(folder, f"{rank}.safetensors"))
    losses = {name: _losses(name, rank, workers) for name in TRAINED_MODELS}
    Path(folder, f"{rank}.json").write_text(json.dumps(losses))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """For each group of workers, the files of each of them, without the suffix."""
    groups = []
    for workers in (2, 3, 4)[: amount(1, 3)]:
        folder = tmp_path_factory.mktemp("replicas")
        torch.multiprocessing.spawn(_work, (str(folder), workers), nprocs=workers)
        groups.append([folder / str(rank) for rank in range(workers)])
    return groups


@pytest.mark.parametrize("model", TRAINED_MODELS)
def test_several_workers_have_the_gradients_of_one(model: str, groups: list[list[Path]]) -> None:
    workers = [load_file(path.with_suffix(".safetensors")) for group in groups for path in group]
    compared = 0
    for case in (case for case in cases() if case.model == model):
        alone = _gradients(case)
        assert any(gradient.any() for gradient in alone.values()), case
        for name, gradient in alone.items():
            for found in workers:
                key = f"{case} {name}"
                torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-12, msg=key)
                compared += 1
    measured(25, gradients_compared=compared)


@pytest.mark.parametrize("model", TRAINED_MODELS)
def test_several_workers_have_the_losses_of_one(model: str, groups: list[list[Path]]) -> None:
    alone = _losses(model)
    assert abs(alone[-1] - alone[0]) > 1e-3 * abs(alone[0])  # the loss changes
    for path in (path for group in groups for path in group):
        found = json.loads(path.with_suffix(".json").read_text())[model]
        assert found == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("model", TRAINED_MODELS)
def test_sparse_gradient_divided_in_place_changes_no_other_gradient(model: str) -> None:
    """DDP divides a gradient as soon as it is accumulated, before those of other weights are."""
    for case in cases():
        if case.model == model:
            expected, found = _gradients(case), _gradients(case, halved=True)
            for name, gradient in expected.items():
                factor = 0.5 if name in SPARSE[model] else 1
                torch.testing.assert_close(found[name], gradient * factor, msg=f"{case} {name}")
