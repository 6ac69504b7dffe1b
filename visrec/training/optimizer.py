"""AdamW and a moving average of the weights, at the cost of the rows that a step reads.

An embedding table has a row for each user, and the plain versions of both read and write the whole
table in every step: with a million users and a width of 100, each such pass touches 400 MB, and a
step makes five. Here a step reads and writes only the rows of its batch. All other rows change in
the same way, so the change is kept as a few numbers per table, and is applied to a row when the row
is next read.

Shapes: R rows of a table, r rows with a gradient, D its width, X any batch shape.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

# Below this scale a table is flushed, so that gradients times the scale do not become subnormal.
_MIN_SCALE = 1e-9
# Replaces a decay factor of 0, because values are divided by the scale.
_MIN_FACTOR = 1e-30

ModelT = TypeVar("ModelT", bound=nn.Module)


class RowAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) that also takes sparse gradients.

    A step multiplies every weight that decays by 1 - learning rate * weight decay, and then moves
    it as Adam does. In a table with sparse gradients, all rows decay at every step, but only rows
    with a gradient move, and only their moments change, as in `torch.optim.SparseAdam`. The decay
    of a table is kept as one number, its scale: the weights are the stored rows times the scale,
    and `forward` of the table's module returns these weights. `flush` multiplies the scale into the
    stored rows.

    Args:
        model: the model. Until it is flushed, its sparse `nn.Embedding`s may be read only through
            their `forward`.
        lr: learning rate.
        weight_decay: the weight decay of the parameters for which `has_weight_decay` is true.
        settings: the settings of `torch.optim.AdamW`.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, **settings: Any) -> None:
        parameters = list(model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if has_weight_decay(p)]},
            {"params": [p for p in parameters if not has_weight_decay(p)], "weight_decay": 0.0},
        ]
        super().__init__(groups, lr=lr, weight_decay=weight_decay, **settings)
        self.scale: dict[Tensor, float] = {}
        for table in sparse_tables(model):
            self.scale[table.weight] = 1.0
            table.register_forward_hook(self._scale_output)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # as torch declares it
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    self._step_rows(table, group)
                    table.grad = None  # AdamW's own step skips parameters without a gradient
        return super().step(closure)

    @property
    def needs_flush(self) -> bool:
        """Whether a scale is negative, or so small that gradients would lose precision."""
        return any(scale < _MIN_SCALE for scale in self.scale.values())

    @torch.no_grad()
    def flush(self) -> None:
        """Multiplies the scales into the stored rows."""
        for table, scale in self.scale.items():
            if scale != 1:
                table.mul_(scale)
                self.scale[table] = 1.0

    def _scale_output(self, table: nn.Embedding, _: Any, row_Xd: Tensor) -> Tensor:
        scale = self.scale[table.weight]
        return row_Xd if scale == 1 else row_Xd * scale

    def _step_rows(self, table_RD: Tensor, group: dict[str, Any]) -> None:
        rows = rows_with_gradient(table_RD)
        # Backward gives the gradient of the stored rows: that of the weights times the scale.
        gradient = cast(Tensor, table_RD.grad).coalesce().values() / self.scale[table_RD]
        self.scale[table_RD] *= 1 - group["lr"] * group["weight_decay"] or _MIN_FACTOR
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


def has_weight_decay(parameter: Tensor) -> bool:
    """Whether a parameter decays: weights and embeddings do, biases do not.

    A table with one number in a row holds item biases, which do not decay either.
    """
    return math.prod(parameter.shape[1:]) > 1


def sparse_tables(model: nn.Module) -> list[nn.Embedding]:
    """The embedding tables whose gradients hold only the rows that a batch reads."""
    return [m for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse]


def rows_with_gradient(table_RD: Tensor) -> Tensor:
    """(r,) the rows that have a gradient, each once."""
    if not cast(Tensor, table_RD.grad).is_coalesced():
        table_RD.grad = cast(Tensor, table_RD.grad).coalesce()
    return cast(Tensor, table_RD.grad).indices()[0]


class WeightEma(Generic[ModelT]):
    """The exponential moving average of a model's weights.

    A step with decay d updates the average: average = d * average + (1 - d) * weights. A row of a
    sparse table that has no gradient keeps its stored values, and its weights change only with the
    scale of the table. For such a row, let K be the product of all decays since it last moved, and
    let A be the moving average of the scale, A_0 at the time when the row last moved. Then the
    row's average is K times its average at that time, plus the stored row times A - K * A_0. This
    is computed when the row next moves, or by `flush`.

    Args:
        model: the model whose weights are averaged.
        decay: d; in the first steps it is smaller, so that the initial weights are forgotten. With
            0 `eval_model` is the model itself.

    Attributes:
        eval_model: a copy of the model with the averaged weights, up to date after `flush`.
    """

    def __init__(self, model: ModelT, decay: float) -> None:
        self._model, self._decay = model, decay
        self.eval_model = copy.deepcopy(model) if decay else model
        tables = [table.weight for table in sparse_tables(model)] if decay else []
        # Since the last flush: the logarithm of the product of all decays; the moving average of
        # each table's scale, which starts at 0; and both of them at the time when each row was last
        # updated.
        self._log_decay = 0.0
        self._scale = dict.fromkeys(tables, 0.0)
        self._at_update = {t: torch.zeros(2, len(t), dtype=torch.float64) for t in tables}

    @torch.no_grad()
    def before_step(self) -> None:
        """Updates the averages of the rows that the step is about to move."""
        for mean, weight in self._pairs():
            if weight in self._at_update and weight.grad is not None and weight.grad.is_sparse:
                self._update_rows(mean, weight, rows_with_gradient(weight))

    @torch.no_grad()
    def after_step(self, steps: int, scale: Mapping[Tensor, float]) -> None:
        """Adds the weights after a step to the averages.

        Args:
            steps: number of steps before this one.
            scale: the factor of each sparse table's stored rows.
        """
        decay = min(self._decay, (steps + 1) / (steps + 10))
        for mean, weight in self._pairs():
            if weight in self._at_update:
                self._scale[weight] += (1 - decay) * (scale[weight] - self._scale[weight])
            else:
                mean.lerp_(weight, 1 - decay)
        if self._at_update:
            self._log_decay += math.log(decay)

    @torch.no_grad()
    def flush(self) -> None:
        """Updates the averages of all rows, so that the averaged weights are the only state."""
        for mean, weight in self._pairs():
            if weight in self._at_update:
                self._update_rows(mean, weight, torch.arange(len(weight)))
                self._at_update[weight].zero_()
                self._scale[weight] = 0.0
        self._log_decay = 0.0

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        if not self._decay:
            return []
        return list(zip(self.eval_model.parameters(), self._model.parameters(), strict=True))

    def _update_rows(self, mean_RD: Tensor, weight_RD: Tensor, rows: Tensor) -> None:
        at_update, scale, index = self._at_update[weight_RD], self._scale[weight_RD], rows.cpu()
        log_decay_r, scale_r = at_update[:, index]
        decay_r = torch.exp(self._log_decay - log_decay_r)
        gain_r = scale - decay_r * scale_r
        decay_r1, gain_r1 = (values.to(weight_RD)[:, None] for values in (decay_r, gain_r))
        mean_RD[rows] = decay_r1 * mean_RD[rows] + gain_r1 * weight_RD[rows]
        at_update[:, index] = torch.tensor([[self._log_decay], [scale]], dtype=torch.float64)
