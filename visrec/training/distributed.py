"""Data-parallel workers: each has a copy of all weights, and gradients are averaged over workers.

DistributedDataParallel (DDP) averages dense gradients. The gradients of embedding tables are
sparse, and NCCL cannot reduce sparse tensors. Instead, their rows are gathered here and averaged.
This is what gloo does for sparse tensors, but with dense collectives, which every backend has.

Shapes: R rows of a table, D its width, G gathered rows of all workers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class WorkerContext:
    """Which worker this process is, of how many, and on which device it computes."""

    rank: int = 0
    workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def mean_over_workers(value: Tensor, context: WorkerContext) -> Tensor:
    """The mean of a tensor over all workers. With several workers, `value` becomes their sum."""
    if context.workers > 1:
        distributed.all_reduce(value)
    return value / context.workers


def replicate(model: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A module whose backward pass gives every worker the mean of all workers' gradients.

    Args:
        model: identical on every worker of the default process group.
        wrap: makes a DDP module.
    """
    tables = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.sparse
    }
    for table in tables.values():
        table.register_post_accumulate_grad_hook(average_sparse_gradient)  # type: ignore[no-untyped-call]
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, list(tables))  # type: ignore[no-untyped-call]
    # DDP refuses a model in which it has no parameter to average.
    return wrap(model) if len(tables) < len(list(model.parameters())) else model


def average_sparse_gradient(table_RD: Tensor) -> None:
    """Replaces the sparse gradient of a table by the mean of all workers' gradients."""
    gradient = cast(Tensor, table_RD.grad).coalesce()
    counts = [int(count) for count in _all_gather(gradient.indices().new_tensor([gradient._nnz()]))]
    rows = _all_gather(_pad_rows(gradient.indices()[0], max(counts)))
    values = _all_gather(_pad_rows(gradient.values(), max(counts)))
    row_G = torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])
    value_GD = torch.cat([part[:count] for part, count in zip(values, counts, strict=True)])
    table_RD.grad = torch.sparse_coo_tensor(
        row_G[None], value_GD / len(counts), table_RD.shape, check_invariants=False
    ).coalesce()


def _pad_rows(part: Tensor, rows: int) -> Tensor:
    """The tensor with zeros appended: a collective takes tensors of the same shape."""
    return torch.cat([part, part.new_zeros(rows - len(part), *part.shape[1:])])


def _all_gather(part: Tensor) -> list[Tensor]:
    """The tensors of all workers, in the order of their ranks."""
    parts = [torch.empty_like(part) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, part)
    return parts
