"""AdamW and the weight average that touch single rows, compared with plain versions of both."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training import checkerboard
from visrec.models import MODELS
from visrec.models.base import ModelConfig, Sizes
from visrec.sampling.triples import SamplingConfig
from visrec.training.fit import TrainingRecipe, build_trainer
from visrec.training.loop import TrainConfig
from visrec.training.optimizer import RowAdamW, WeightEma, has_weight_decay, sparse_tables

ROWS, WIDTH = 7, 3
SIZES = Sizes(items=5, users=4, feature_dim=3, categories=2)
SETTINGS: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.95)}


def _table(sparse: bool = True) -> nn.Embedding:
    table = nn.Embedding(ROWS, WIDTH, sparse=sparse, dtype=torch.float64)
    initial = torch.randn(
        ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        table.weight.copy_(initial)
    return table


def _gradients(steps: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=random) for _ in range(steps)]


def _step(table: nn.Embedding, optimizer: RowAdamW, rows: list[int], value_Rd: Tensor) -> Tensor:
    """A step with the given gradient of the rows that are read; returns these rows as read."""
    optimizer.zero_grad(set_to_none=True)
    read: Tensor = table(torch.tensor(rows, dtype=torch.int64))
    (read * value_Rd).sum().backward()
    optimizer.step()
    return read.detach()


def _weights(table: nn.Embedding, optimizer: RowAdamW) -> Tensor:
    """The weights of a table, whether or not they are flushed."""
    return (table.weight * optimizer.scale[table.weight]).detach()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3, 15.0, 20.0, 25.0])  # at 20, nothing is left
def test_rows_that_are_read_in_every_step_move_as_with_adamw(decay: float, fused: bool) -> None:
    table, reference = _table(), _table(sparse=False)
    row_adamw = RowAdamW(table, weight_decay=decay, fused=fused, **SETTINGS)
    adamw = torch.optim.AdamW([reference.weight], weight_decay=decay, **SETTINGS)
    order = np.random.default_rng(0)
    for step, gradient in enumerate(_gradients(25)):
        rows = order.permutation(ROWS).tolist()
        for optimizer in (row_adamw, adamw):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 / (1 + step // 10)  # like a schedule
        # Row 3 is read twice, each time with half of its gradient.
        part = gradient[rows]
        part[rows.index(3)] /= 2
        _step(table, row_adamw, [*rows, 3], torch.cat([part, gradient[3:4] / 2]))
        reference.weight.grad = gradient
        adamw.step()
        torch.testing.assert_close(
            _weights(table, row_adamw), reference.weight, rtol=1e-11, atol=1e-12
        )
        if row_adamw.needs_flush:
            row_adamw.flush()
    row_adamw.flush()
    torch.testing.assert_close(table.weight, reference.weight, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("often", [0.0, 0.3])
@pytest.mark.parametrize("decay", [0.02, 3.0])
def test_every_row_decays_in_every_step_however_rarely_it_is_read(
    decay: float, often: float
) -> None:
    """Compared with a plain update of the table: all rows decay, then SparseAdam moves some."""
    table, reference = _table(), _table()
    row_adamw = RowAdamW(table, weight_decay=decay, eps=1e-15, **SETTINGS)
    sparse_adam = torch.optim.SparseAdam([reference.weight], eps=1e-15, **SETTINGS)
    random = np.random.default_rng(0)
    for step, gradient in enumerate(_gradients(200)):
        rate = 0.05 / (1 + step // 50)
        for optimizer in (row_adamw, sparse_adam):
            for group in optimizer.param_groups:
                group["lr"] = rate
        # Rows 0 to 2 are read often, 3 to 5 rarely, row 6 never; some steps read no row.
        most = 6 if step % 40 == 0 else 3
        rows = random.integers(0, most, random.integers(0, 4)).tolist()
        reference.weight.grad = torch.sparse_coo_tensor(
            torch.tensor([rows], dtype=torch.int64),
            gradient[rows],
            (ROWS, WIDTH),
            check_invariants=True,
        )
        expected = reference.weight[rows].detach().clone()
        read = _step(table, row_adamw, rows, gradient[rows])
        # The rows as read have the decay of all steps before.
        torch.testing.assert_close(read, expected, rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            reference.weight.mul_(1 - rate * decay)
        sparse_adam.step()
        if random.random() < often:
            row_adamw.flush()
        torch.testing.assert_close(
            _weights(table, row_adamw), reference.weight, rtol=1e-9, atol=1e-12
        )
    assert row_adamw.scale[table.weight] < 1 or often


def test_moments_of_rows_without_a_gradient_do_not_change() -> None:
    table = _table()
    optimizer = RowAdamW(table, weight_decay=0.3, **SETTINGS)
    random = np.random.default_rng(0)
    for gradient in _gradients(20):
        touched = sorted(set(random.integers(0, ROWS, 3).tolist()))
        others = [row for row in range(ROWS) if row not in touched]
        stored, moments = (
            table.weight.detach().clone(),
            copy.deepcopy(optimizer.state[table.weight]),
        )
        _step(table, optimizer, touched, gradient[touched])
        # Decay is in the scale: only rows that are read are written.
        assert torch.equal(table.weight[others], stored[others])
        assert (table.weight[touched] != stored[touched]).all()
        for name in ("exp_avg", "exp_avg_sq") if moments else ():
            now = optimizer.state[table.weight][name]
            assert torch.equal(now[others], moments[name][others])
            assert (now[touched] != moments[name][touched]).all()


def test_decay_does_not_depend_on_the_size_of_the_gradient() -> None:
    # The first step of Adam is lr times the sign of the gradient, however large that is.
    for size in (1e-3, 1e3):
        table = nn.Embedding.from_pretrained(
            torch.tensor([[2.0, 2.0], [-2.0, 2.0], [2.0, 4.0]]), freeze=False, sparse=True
        )
        optimizer = RowAdamW(table, lr=0.1, weight_decay=1.0)
        _step(table, optimizer, [0, 1], torch.full((2, 2), -size))
        optimizer.flush()
        found = table.weight.flatten().tolist()
        assert found == pytest.approx([1.9, 1.9, -1.7, 1.9, 1.8, 3.6], rel=1e-4)


def test_small_scale_needs_a_flush() -> None:
    table, reference = _table(), _table()
    row_adamw, flushed = (RowAdamW(t, weight_decay=15.0, **SETTINGS) for t in (table, reference))
    flushes = 0
    for gradient in _gradients(120):
        _step(table, row_adamw, [0, 1], gradient[:2])
        _step(reference, flushed, [0, 1], gradient[:2])
        flushed.flush()
        if row_adamw.needs_flush:
            flushes += 1
            row_adamw.flush()
            assert not row_adamw.needs_flush
    assert flushes == 8  # 0.25 to the power of 15 is the first below 1e-9
    torch.testing.assert_close(_weights(table, row_adamw), reference.weight, rtol=1e-9, atol=1e-30)


def test_step_that_reads_no_row_decays_all_and_moves_none() -> None:
    table = _table()
    before = table.weight.detach().clone()
    optimizer = RowAdamW(table, weight_decay=2.0, **SETTINGS)
    _step(table, optimizer, [], torch.zeros(0, WIDTH, dtype=torch.float64))
    optimizer.flush()
    torch.testing.assert_close(table.weight, 0.9 * before)


@pytest.mark.parametrize("fused", [False, True])
def test_dense_parameters_beside_a_table_move_as_with_adamw(fused: bool) -> None:
    dense, reference = nn.Parameter(torch.ones(ROWS, WIDTH)), nn.Parameter(torch.ones(ROWS, WIDTH))
    both = nn.ParameterList([dense])
    both.table = _table()
    row_adamw = RowAdamW(both, weight_decay=0.3, fused=fused, **SETTINGS)
    adamw = torch.optim.AdamW([reference], weight_decay=0.3, fused=fused, **SETTINGS)
    for gradient in _gradients(10):
        row_adamw.zero_grad()
        (both.table(torch.tensor([1, 4])) * gradient[[1, 4]]).sum().backward()
        dense.grad, reference.grad = gradient.float(), gradient.float()
        row_adamw.step()
        adamw.step()
        assert torch.equal(dense, reference)


def test_weights_and_embeddings_decay_and_biases_do_not() -> None:
    model = nn.ModuleDict(
        {
            "layer": nn.Linear(4, 1),
            "convolution": nn.Conv2d(1, 3, 2),
            "vectors": nn.Embedding(5, 2),
            "item_bias": nn.Embedding(5, 1),
        }
    )
    found = {name for name, parameter in model.named_parameters() if has_weight_decay(parameter)}
    assert found == {"layer.weight", "convolution.weight", "vectors.weight"}
    optimizer = RowAdamW(model, lr=0.1, weight_decay=0.5)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name] * (0.95 if name in found else 1.0))


MODELS_WITH_TABLES = [
    name
    for name, model in MODELS.items()
    if model.trains_on != "nothing" and sparse_tables(model(model.Config(), SIZES))
]


def _small_config(name: str) -> ModelConfig:
    sizes = {"item_width": 4, "user_width": 4} if name == "hybrid" else {"width": 4}
    return MODELS[name].Config(**sizes)


@pytest.mark.parametrize("name", MODELS_WITH_TABLES)
def test_models_train_as_if_every_step_were_flushed(name: str) -> None:
    """All models read their tables through `forward`, which applies the decay of unread rows."""
    config = TrainConfig(
        epochs=1, triples_per_epoch=640, batch_size=16, learning_rate=0.02, weight_decay=10.0
    )
    found = []
    for each_step in (False, True):
        recipe = TrainingRecipe(name, _small_config(name), config, SamplingConfig())
        trainer = build_trainer(recipe, checkerboard(dim=4))
        trainer.model.double()
        trainer.eval_model.double()
        if each_step:
            after_step = trainer.ema.after_step

            def flush_after(*args: Any, after: Any = after_step, trainer: Any = trainer) -> None:
                after(*args)
                trainer._flush()

            trainer.ema.after_step = flush_after  # type: ignore[method-assign]
        trainer._train_steps(0)
        found.append([*trainer.model.parameters(), *trainer.eval_model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


class Both(nn.Module):
    """A model with a sparse table and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, sparse=True)
        self.layer = nn.Linear(WIDTH, 1)

    def forward(self, rows: Tensor) -> Tensor:
        loss: Tensor = self.layer(self.table(rows)).square().sum() + self.table(rows).sum()
        return loss


def _step_with_average(
    model: Both, optimizer: RowAdamW, average: WeightEma[Both], rows: list[int], step: int
) -> None:
    """A step as in the training loop."""
    optimizer.zero_grad(set_to_none=True)
    model(torch.tensor(rows, dtype=torch.int64)).backward()
    average.before_step()
    optimizer.step()
    average.after_step(step, optimizer.scale)


def _build(ema_decay: float, decay: float = 0.1) -> tuple[Both, RowAdamW, WeightEma[Both]]:
    torch.manual_seed(0)
    model = Both()
    average = WeightEma(model, ema_decay)
    return model, RowAdamW(model, lr=0.05, weight_decay=decay), average


def _state(model: Any, scale: dict[Tensor, float] | None = None) -> dict[str, Tensor]:
    return {
        name: value.detach().double() * (scale or {}).get(value, 1.0)
        for name, value in model.named_parameters()
    }


@pytest.mark.parametrize("ema_decay", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("decay", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("flushes_optimizer", [False, True])
def test_average_is_the_plain_one_after_every_flush(
    ema_decay: float, decay: float, flushes_optimizer: bool
) -> None:
    model, optimizer, average = _build(ema_decay, decay)
    expected, random = _state(model), np.random.default_rng(0)
    flushes = 0
    for step in range(120):
        # Rows 0 to 2 are read often, 3 to 5 rarely, row 6 never; some steps read no row.
        rows = random.integers(0, 6 if step % 25 == 0 else 3, random.integers(0, 4)).tolist()
        _step_with_average(model, optimizer, average, rows, step)
        keep = min(ema_decay, (step + 1) / (step + 10))
        for name, now in _state(model, optimizer.scale).items():
            expected[name] = keep * expected[name] + (1 - keep) * now
        if random.random() < 0.1:
            average.flush()
            flushes += 1
            if flushes_optimizer:
                optimizer.flush()
            for name, mean in _state(average.eval_model).items():
                torch.testing.assert_close(mean, expected[name], rtol=1e-6, atol=1e-6)
    assert flushes > 5
    # The average is not simply the weights.
    assert not torch.allclose(average.eval_model.table.weight, model.table.weight, atol=1e-4)


def test_second_flush_changes_nothing() -> None:
    model, optimizer, average = _build(0.9)
    for step in range(9):
        _step_with_average(model, optimizer, average, [step % 3, 5], step)
    average.flush()
    once = _state(average.eval_model)
    average.flush()
    assert all(torch.equal(once[name], mean) for name, mean in _state(average.eval_model).items())


def test_averaged_weights_share_no_memory_with_the_trained_ones() -> None:
    model, optimizer, average = _build(0.9)
    _step_with_average(model, optimizer, average, [1, 2], 0)
    average.flush()
    before = _state(average.eval_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], mean) for name, mean in _state(average.eval_model).items())


def test_decay_of_zero_validates_the_model_itself() -> None:
    model, optimizer, average = _build(0.0)
    assert average.eval_model is model
    for step in range(3):
        before = _state(model)
        _step_with_average(model, optimizer, average, [1, 4], step)
        now = _state(model)
        average.flush()
        assert all(torch.equal(now[name], value) for name, value in _state(model).items())
        assert not torch.equal(now["table.weight"], before["table.weight"])
