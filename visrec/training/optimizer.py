"""AdamW, and the running average of its weights, at the cost of the rows that a step touches.

A table with a row for each user would otherwise be read and written whole at every step: a million
users of 100 numbers are 400 MB, five times over.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

# A table's scale below this is multiplied into its rows, lest gradients times it become subnormal.
_SMALLEST_SCALE = 1e-9
# What is left of the weights where a step's decay is 1: next to nothing, by which one can divide.
_LEFT_AT_LEAST = 1e-30


class RowAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) that takes sparse gradients too.

    A step multiplies every weight that decays by 1 - learning rate * weight decay, and then moves
    it as Adam does. Of a table with sparse gradients all rows decay at every step; Adam moves rows
    with a gradient alone, moments too, as in `torch.optim.SparseAdam`. The decay of a whole table
    is one number, its scale: its weights are scale times the rows that are stored, which is what
    `forward` of its module gives. `flush` multiplies the scale into the rows.

    Args:
        model: its sparse `nn.Embedding`s are read by their `forward` alone in training.
        lr: learning rate.
        weight_decay: of what `decays` says.
        settings: of `torch.optim.AdamW`.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, **settings: Any) -> None:
        parameters = list(model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if decays(p)]},
            {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
        ]
        super().__init__(groups, lr=lr, weight_decay=weight_decay, **settings)
        self.scale: dict[Tensor, float] = {}
        for table in sparse_tables(model):
            self.scale[table.weight] = 1.0
            table.register_forward_hook(self._scaled)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    self._step_rows(table, group)
                    table.grad = None  # AdamW's own step passes over it
        return super().step(closure)

    @property
    def needs_flush(self) -> bool:
        """Whether a scale is so small that gradients lose digits, or below 0."""
        return any(scale < _SMALLEST_SCALE for scale in self.scale.values())

    @torch.no_grad()
    def flush(self) -> None:
        """Makes what the tables store their weights."""
        for table, scale in self.scale.items():
            if scale != 1:
                table.mul_(scale)
                self.scale[table] = 1.0

    def _scaled(self, table: nn.Embedding, _: Any, row_Xd: Tensor) -> Tensor:
        scale = self.scale[table.weight]
        return row_Xd if scale == 1 else row_Xd * scale

    def _step_rows(self, table_RD: Tensor, group: dict[str, Any]) -> None:
        rows = touched(table_RD)
        # The gradient is that of the stored rows: by the scale smaller than that of the weights.
        gradient = cast(Tensor, table_RD.grad).coalesce().values() / self.scale[table_RD]
        self.scale[table_RD] *= 1 - group["lr"] * group["weight_decay"] or _LEFT_AT_LEAST
        state = self.state[table_RD]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(table_RD)
            state["exp_avg_sq"] = torch.zeros_like(table_RD)
        state["step"] += 1
        step, (beta_1, beta_2) = int(state["step"]), group["betas"]
        mean = state["exp_avg"][rows].lerp_(gradient, 1 - beta_1)
        square = state["exp_avg_sq"][rows].lerp_(gradient**2, 1 - beta_2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        spread = (square / (1 - beta_2**step)).sqrt_().add_(group["eps"])
        rate = group["lr"] / (1 - beta_1**step) / self.scale[table_RD]
        table_RD[rows] -= rate * mean / spread


def decays(parameter: Tensor) -> bool:
    """Whether weight decay is for a parameter: for weights and vectors, not for biases.

    A table of one number a row is the items' biases: as a bias of a layer it says how large values
    are, not how they are told apart.
    """
    return math.prod(parameter.shape[1:]) > 1


def sparse_tables(model: nn.Module) -> list[nn.Embedding]:
    """The tables whose gradients are of the rows that a batch reads."""
    return [m for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse]


def touched(table_RD: Tensor) -> Tensor:
    """(r,) the rows that have a gradient, each once."""
    if not cast(Tensor, table_RD.grad).is_coalesced():
        table_RD.grad = cast(Tensor, table_RD.grad).coalesce()
    return cast(Tensor, table_RD.grad).indices()[0]


class WeightEma:
    """The running average of a model's weights, to which each step adds 1 - keep of its own.

    Stored rows without a gradient stand still, and their weights are those times the table's scale.
    With K the product of all keeps since such a row last moved, and A the running average of the
    scale, the row's average is K times what it was then, plus the stored row times A - K A_then. It
    is brought up to date when the row next moves, or with `flush`.

    Args:
        model: whose weights move.
        share: keep; in the beginning it is less, so that the first weights are forgotten. With 0
            the average is the model itself.
    """

    def __init__(self, model: Any, share: float) -> None:
        self._model, self._share = model, share
        self.eval_model = copy.deepcopy(model) if share else model
        tables = [table.weight for table in sparse_tables(model)] if share else []
        # Since all was up to date: the logarithm of the product of all keeps, the average of each
        # table's scale from 0 on, and both when each row last was up to date.
        self._log_kept = 0.0
        self._scale = dict.fromkeys(tables, 0.0)
        self._since = {t: torch.zeros(2, len(t), dtype=torch.float64) for t in tables}

    @torch.no_grad()
    def before(self) -> None:
        """Brings the rows up to date that are about to move."""
        for mean, now in self._pairs():
            if now in self._since and now.grad is not None and now.grad.is_sparse:
                self._catch_up(mean, now, touched(now))

    @torch.no_grad()
    def after(self, steps: int, scale: Mapping[Tensor, float]) -> None:
        """Takes in the weights after a step.

        Args:
            steps: how many were before it.
            scale: of each sparse table, what its stored rows are multiplied by.
        """
        keep = min(self._share, (steps + 1) / (steps + 10))
        for mean, now in self._pairs():
            if now in self._since:
                self._scale[now] += (1 - keep) * (scale[now] - self._scale[now])
            else:
                mean.lerp_(now, 1 - keep)
        if self._since:
            self._log_kept += math.log(keep)

    @torch.no_grad()
    def flush(self) -> None:
        """Brings all up to date, so that nothing but the weights themselves need be kept."""
        for mean, now in self._pairs():
            if now in self._since:
                self._catch_up(mean, now, torch.arange(len(now)))
                self._since[now].zero_()
                self._scale[now] = 0.0
        self._log_kept = 0.0

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        if not self._share:
            return []
        return list(zip(self.eval_model.parameters(), self._model.parameters(), strict=True))

    def _catch_up(self, mean_RD: Tensor, now_RD: Tensor, rows: Tensor) -> None:
        since, scale, at = self._since[now_RD], self._scale[now_RD], rows.cpu()
        log_kept_r, scale_r = since[:, at]
        keep_r = torch.exp(self._log_kept - log_kept_r)
        gained_r = scale - keep_r * scale_r
        keep_r1, gained_r1 = (values.to(now_RD)[:, None] for values in (keep_r, gained_r))
        mean_RD[rows] = keep_r1 * mean_RD[rows] + gained_r1 * now_RD[rows]
        since[:, at] = torch.tensor([[self._log_kept], [scale]], dtype=torch.float64)
