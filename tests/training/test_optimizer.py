"""Rows that train alone: Adam and the running average, against the same over whole tables."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visrec.training.optimizer import Average, RowAdam

ROWS, WIDTH = 7, 3
SETTINGS = {"lr": 0.05, "betas": (0.8, 0.95)}


def _sparse(rows: list[int], value_Rd: Tensor) -> Tensor:
    """A gradient as a table gives it: rows in any order, some of them twice."""
    row_R, shape = torch.tensor([rows], dtype=torch.int64), (ROWS, WIDTH)
    return torch.sparse_coo_tensor(row_R, value_Rd, shape, check_invariants=True)


def _pair() -> tuple[nn.Parameter, nn.Parameter]:
    start = torch.randn(
        ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    return nn.Parameter(start.clone()), nn.Parameter(start.clone())


def _gradients(steps: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=random) for _ in range(steps)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_rows_that_are_touched_at_each_step_move_as_adam_moves_them(
    decay: float, fused: bool
) -> None:
    table, whole = _pair()
    own = RowAdam([table], weight_decay=decay, fused=fused, **SETTINGS)
    adams = torch.optim.Adam([whole], weight_decay=decay, **SETTINGS)
    order = np.random.default_rng(0)
    for step, gradient in enumerate(_gradients(25)):
        rows = order.permutation(ROWS).tolist()
        # Half of row 3 twice, as when a batch reads it twice.
        part = gradient[rows]
        part[rows.index(3)] /= 2
        table.grad = _sparse([*rows, 3], torch.cat([part, gradient[3:4] / 2]))
        whole.grad = gradient
        for optimizer in (own, adams):
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + step // 10)  # as the schedule lowers it
            optimizer.step()
        torch.testing.assert_close(table, whole, rtol=1e-11, atol=1e-12)


def test_rows_without_a_gradient_stay_as_they_are_and_so_do_their_moments() -> None:
    table, _ = _pair()
    optimizer = RowAdam([table], weight_decay=0.3, **SETTINGS)
    random = np.random.default_rng(0)
    for gradient in _gradients(20):
        touched = sorted(set(random.integers(0, ROWS, 3).tolist()))
        others = [row for row in range(ROWS) if row not in touched]
        before, moments = table.detach().clone(), copy.deepcopy(optimizer.state[table])
        table.grad = _sparse(touched, gradient[touched])
        optimizer.step()
        assert torch.equal(table[others], before[others])
        assert (table[touched] != before[touched]).all()
        for name in ("exp_avg", "exp_avg_sq") if moments else ():
            assert torch.equal(optimizer.state[table][name][others], moments[name][others])
            assert (optimizer.state[table][name][touched] != moments[name][touched]).all()


def test_without_decay_it_is_sparse_adam() -> None:
    table, other = _pair()
    # They add epsilon on either side of the correction of the second moment: next to none of it.
    own = RowAdam([table], eps=1e-15, **SETTINGS)
    adams = torch.optim.SparseAdam([other], eps=1e-15, **SETTINGS)
    random = np.random.default_rng(0)
    for gradient in _gradients(40):
        rows = random.integers(0, ROWS, 4).tolist()
        for optimizer, parameter in ((own, table), (adams, other)):
            parameter.grad = _sparse(rows, gradient[rows])
            optimizer.step()
        torch.testing.assert_close(table, other, rtol=1e-10, atol=1e-11)


def test_row_decays_by_its_own_weight_when_it_is_touched() -> None:
    # One step of Adam is lr times the sign of gradient + decay * weight.
    table = nn.Parameter(torch.tensor([[2.0], [-2.0], [2.0]]))
    step = torch.sparse_coo_tensor([[0, 1]], [[-0.5], [-0.5]], (3, 1), check_invariants=True)
    table.grad = step
    RowAdam([table], lr=0.1, weight_decay=1.0).step()
    assert table.flatten().tolist() == pytest.approx([1.9, -1.9, 2.0])


def test_step_in_which_no_row_is_read_moves_none() -> None:
    table, _ = _pair()
    before = table.detach().clone()
    table.grad = _sparse([], torch.zeros(0, WIDTH, dtype=torch.float64))
    RowAdam([table], **SETTINGS).step()
    assert torch.equal(table, before)


@pytest.mark.parametrize("fused", [False, True])
def test_dense_parameters_beside_a_table_move_as_adam_moves_them(fused: bool) -> None:
    table, _ = _pair()
    dense, alone = _pair()
    own = RowAdam([table, dense], weight_decay=0.3, fused=fused, **SETTINGS)
    adams = torch.optim.Adam([alone], weight_decay=0.3, fused=fused, **SETTINGS)
    for gradient in _gradients(10):
        table.grad = _sparse([1, 4], gradient[[1, 4]])
        dense.grad, alone.grad = gradient.clone(), gradient.clone()
        own.step()
        adams.step()
        assert torch.equal(dense, alone)


class Both(nn.Module):
    """A table and a layer, which a batch of rows reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, sparse=True)
        self.layer = nn.Linear(WIDTH, 1)

    def forward(self, rows: Tensor) -> Tensor:
        loss: Tensor = self.layer(self.table(rows)).square().sum() + self.table(rows).sum()
        return loss


def _step(model: Both, optimizer: RowAdam, average: Average, rows: list[int], step: int) -> None:
    """As the training loop has it."""
    optimizer.zero_grad(set_to_none=True)
    model(torch.tensor(rows, dtype=torch.int64)).backward()
    average.before()
    optimizer.step()
    average.after(step)


def _made(share: float) -> tuple[Both, RowAdam, Average]:
    torch.manual_seed(0)
    model = Both()
    return model, RowAdam(model.parameters(), lr=0.05, weight_decay=0.1), Average(model, share)


def _state(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().double().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("seed", [0, 1])
def test_average_is_the_plain_one_wherever_it_is_settled(share: float, seed: int) -> None:
    model, optimizer, average = _made(share)
    expected, random = _state(model), np.random.default_rng(seed)
    settled = 0
    for step in range(120):
        # Rows 0 to 2 often, 3 to 5 seldom, row 6 never; at times none at all.
        rows = random.integers(0, 6 if step % 25 == 0 else 3, random.integers(0, 4)).tolist()
        _step(model, optimizer, average, rows, step)
        keep = min(share, (step + 1) / (step + 10))
        for name, now in _state(model).items():
            expected[name] = keep * expected[name] + (1 - keep) * now
        if random.random() < 0.1:
            average.settle()
            settled += 1
            for name, mean in _state(average.judged).items():
                torch.testing.assert_close(mean, expected[name], rtol=1e-6, atol=1e-6)
    assert settled > 5
    # And it is neither the weights nor what they were.
    assert not torch.allclose(average.judged.table.weight, model.table.weight, atol=1e-4)


def test_settled_twice_is_settled_once() -> None:
    model, optimizer, average = _made(0.9)
    for step in range(9):
        _step(model, optimizer, average, [step % 3, 5], step)
    average.settle()
    once = _state(average.judged)
    average.settle()
    assert all(torch.equal(once[name], mean) for name, mean in _state(average.judged).items())


def test_weights_that_move_leave_those_that_are_judged_alone() -> None:
    model, optimizer, average = _made(0.9)
    _step(model, optimizer, average, [1, 2], 0)
    average.settle()
    before = _state(average.judged)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], mean) for name, mean in _state(average.judged).items())


def test_share_of_zero_is_the_model_itself() -> None:
    model, optimizer, average = _made(0.0)
    assert average.judged is model
    for step in range(3):
        before = _state(model)
        _step(model, optimizer, average, [1, 4], step)
        now = _state(model)
        average.settle()
        assert all(torch.equal(now[name], value) for name, value in _state(model).items())
        assert not torch.equal(now["table.weight"], before["table.weight"])
