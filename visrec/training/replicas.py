"""Data-parallel workers: each has all weights, and gradients are averaged over the workers.

DDP averages dense gradients. Those of embedding tables are sparse, and NCCL reduces no sparse
tensor. Their rows are gathered here instead, which is what gloo's sparse reduction does too, and
takes nothing but dense collectives, which every backend has.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def replicate(model: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A module whose backward pass leaves the mean of all workers' gradients.

    Args:
        model: the same on every worker of the default process group.
        wrap: makes a DDP module.
    """
    tables = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.sparse
    }
    for table in tables.values():
        table.register_post_accumulate_grad_hook(average_rows)  # type: ignore[no-untyped-call]
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, list(tables))  # type: ignore[no-untyped-call]
    # DDP refuses a model without a parameter of its own to average.
    return wrap(model) if len(tables) < len(list(model.parameters())) else model


def average_rows(table_RD: Tensor) -> None:
    """Replaces a table's sparse gradient by the mean of all workers' gradients."""
    own = cast(Tensor, table_RD.grad).coalesce()
    counts = [int(count) for count in _gathered(own.indices().new_tensor([own._nnz()]))]
    rows = _gathered(_padded(own.indices()[0], max(counts)))
    values = _gathered(_padded(own.values(), max(counts)))
    row_G = torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])
    value_GD = torch.cat([part[:count] for part, count in zip(values, counts, strict=True)])
    table_RD.grad = torch.sparse_coo_tensor(
        row_G[None], value_GD / len(counts), table_RD.shape, check_invariants=False
    ).coalesce()


def _padded(part: Tensor, rows: int) -> Tensor:
    """The part with zeros behind it: collectives want tensors of one shape."""
    return torch.cat([part, part.new_zeros(rows - len(part), *part.shape[1:])])


def _gathered(part: Tensor) -> list[Tensor]:
    """The tensors of all workers, in the order of their ranks."""
    parts = [torch.empty_like(part) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, part)
    return parts
