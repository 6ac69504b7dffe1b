"""Adam, and the running average of its weights, at the cost of the rows that a step touches.

A table with a row for each user would otherwise be read and written whole at every step: a million
users of 100 numbers are 400 MB, five times over.
"""

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn


class RowAdam(torch.optim.Adam):
    """Adam that takes sparse gradients too: moments, decay and weights of their rows alone move.

    For a row with a gradient in every step it is Adam (Kingma & Ba 2015, algorithm 1). One without
    stays as it is, moments too, and is not decayed, as in `torch.optim.SparseAdam`.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    self._step_rows(table, group)
                    table.grad = None  # Adam's own step passes over it
        return super().step(closure)

    def _step_rows(self, table_RD: Tensor, group: dict[str, Any]) -> None:
        rows = touched(table_RD)
        gradient = cast(Tensor, table_RD.grad).coalesce().values()
        gradient = gradient.add(table_RD[rows], alpha=group["weight_decay"])
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
        table_RD[rows] -= group["lr"] / (1 - beta_1**step) * mean / spread


def touched(table_RD: Tensor) -> Tensor:
    """(r,) the rows that have a gradient, each once."""
    if not cast(Tensor, table_RD.grad).is_coalesced():
        table_RD.grad = cast(Tensor, table_RD.grad).coalesce()
    return cast(Tensor, table_RD.grad).indices()[0]


class Average:
    """The running average of a model's weights, to which each step adds 1 - keep of its own.

    Rows without a gradient stand still, so their average comes nearer to them by the product of all
    keeps: it is brought up to date when they next move, or with `settle`.

    Args:
        model: whose weights move.
        share: keep; in the beginning it is less, so that the first weights are forgotten. With 0
            the average is the model itself.
    """

    def __init__(self, model: Any, share: float) -> None:
        self._model, self._share = model, share
        self.judged = copy.deepcopy(model) if share else model
        self._log_kept = 0.0  # the logarithm of the product of all keeps since all was up to date
        self._since: dict[Tensor, Tensor] = {}  # the same when each row last was
        for module in model.modules() if share else ():
            if isinstance(module, nn.Embedding) and module.sparse:
                rows = module.num_embeddings
                self._since[module.weight] = torch.zeros(rows, dtype=torch.float64)

    @torch.no_grad()
    def before(self) -> None:
        """Brings the rows up to date that are about to move."""
        for mean, now in self._pairs():
            if now in self._since and now.grad is not None and now.grad.is_sparse:
                self._catch_up(mean, now, touched(now))

    @torch.no_grad()
    def after(self, steps: int) -> None:
        """Takes in the weights after a step, `steps` of which were before it."""
        keep = min(self._share, (steps + 1) / (steps + 10))
        for mean, now in self._pairs():
            if now not in self._since:
                mean.lerp_(now, 1 - keep)
        if self._since:
            self._log_kept += math.log(keep)

    @torch.no_grad()
    def settle(self) -> None:
        """Brings all up to date, so that nothing but the weights themselves need be kept."""
        for mean, now in self._pairs():
            if now in self._since:
                self._catch_up(mean, now, torch.arange(len(now)))
                self._since[now].zero_()
        self._log_kept = 0.0

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        if not self._share:
            return []
        return list(zip(self.judged.parameters(), self._model.parameters(), strict=True))

    def _catch_up(self, mean_RD: Tensor, now_RD: Tensor, rows: Tensor) -> None:
        since = self._since[now_RD]
        keep = torch.exp(self._log_kept - since[rows.cpu()]).to(now_RD)[:, None]
        mean_RD[rows] = now_RD[rows].lerp(mean_RD[rows], keep)
        since[rows.cpu()] = self._log_kept
