"""What all workers of a step need of its candidates is computed by one of them each.

The candidates stand against the examples of all workers, and the network that sees their features
is most of a step: run by everybody, two workers were no faster than one. So each worker runs it for
its share, and for what its own examples have besides; the vectors are gathered, and on the way back
a vector's gradients are summed over the workers and go on where it was made. Averaged over the
workers, as DDP does, the weights' gradients are those of each having run it for all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from visrec.models.inputs import TripleBatch


def encoded(batch: TripleBatch, encode: Callable[[TripleBatch], Tensor]) -> Tensor:
    """(M, d) vectors of a batch's items, as `encode` has them.

    Args:
        batch: of this worker, with the candidates of all of them.
        encode: from a batch to the vectors of its items, each of which depends on its item alone.
    """
    candidates = len(batch.candidates) if batch.candidates else 0
    workers = distributed.get_world_size() if distributed.is_initialized() else 1
    if workers == 1 or not candidates:
        return encode(batch)
    row_M = torch.arange(len(batch.item_M), device=batch.item_M.device)
    share = -(-candidates // workers)
    # Shares are of one size: behind the last candidate stands the last one again.
    mine_S = (row_M[:share] + distributed.get_rank() * share).clamp(max=candidates - 1)
    some = torch.cat([mine_S, row_M[candidates:]])
    vector_Ed = encode(_items(batch, some))
    # Not every backend adds up numbers of 16 bits.
    vector_Ed = vector_Ed.to(torch.promote_types(vector_Ed.dtype, torch.float32))
    shared_Cd: Tensor = _Gathered.apply(vector_Ed[:share])  # type: ignore[no-untyped-call]
    return torch.cat([shared_Cd[:candidates], vector_Ed[share:]])


def _items(batch: TripleBatch, rows: Tensor) -> TripleBatch:
    """The batch with some of its items, for what looks at nothing else."""
    return dataclasses.replace(
        batch,
        item_M=batch.item_M[rows],
        feature_MD=batch.feature_MD[rows],
        category_M=batch.category_M[rows],
    )


class _Gathered(torch.autograd.Function):
    """(W S, d) the vectors of all workers, from each one's (S, d)."""

    @staticmethod
    def forward(ctx: Any, mine_Sd: Tensor) -> Tensor:
        mine_Sd = mine_Sd.detach().contiguous()
        parts = [torch.empty_like(mine_Sd) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, mine_Sd)
        ctx.share = len(mine_Sd)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed_Cd = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed_Cd)
        return summed_Cd[distributed.get_rank() * ctx.share :][: ctx.share]
