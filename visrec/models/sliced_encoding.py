"""Encodes a step's shared candidates once over all workers, instead of once on each worker.

All workers of a step have the same candidates, and encoding their features takes most of a step. If
every worker encoded all candidates, two workers would be no faster than one. So each worker encodes
a slice of the candidates, and those items of its own examples that are not candidates. Then all
workers exchange the vectors of their slices. In the backward pass, the gradients of a candidate's
vector are summed over the workers, and the worker that computed the vector passes the sum on to its
weights. After DDP has averaged the weights' gradients over the workers, they equal those of
encoding all candidates on every worker.

Shapes: M distinct items of a batch, C candidates, S candidates of a slice, E items that a worker
encodes, d width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from visrec.models.inputs import TripleBatch


def encode_sliced(batch: TripleBatch, encode: Callable[[TripleBatch], Tensor]) -> Tensor:
    """(M, d) vectors of a batch's items.

    Args:
        batch: this worker's batch.
        encode: computes the vectors of a batch's items, each from its item alone.
    """
    candidates = len(batch.candidates) if batch.candidates else 0
    workers = distributed.get_world_size() if distributed.is_initialized() else 1
    if workers == 1 or not candidates:
        return encode(batch)
    position_M = torch.arange(len(batch.item_M), device=batch.item_M.device)
    size = -(-candidates // workers)
    # All slices have the same size; the last candidate is repeated to fill the last slice.
    position_S = (position_M[:size] + distributed.get_rank() * size).clamp(max=candidates - 1)
    position_E = torch.cat([position_S, position_M[candidates:]])
    vector_Ed = encode(_select_items(batch, position_E))
    # Not every backend can sum 16-bit numbers.
    vector_Ed = vector_Ed.to(torch.promote_types(vector_Ed.dtype, torch.float32))
    candidate_Cd: Tensor = _Gather.apply(vector_Ed[:size])  # type: ignore[no-untyped-call]
    return torch.cat([candidate_Cd[:candidates], vector_Ed[size:]])


def _select_items(batch: TripleBatch, position_E: Tensor) -> TripleBatch:
    """The batch with some of its items, to be encoded only: positions of examples do not fit it."""
    return dataclasses.replace(
        batch,
        item_M=batch.item_M[position_E],
        feature_MD=batch.feature_MD[position_E],
        category_M=batch.category_M[position_E],
    )


class _Gather(torch.autograd.Function):
    """From each worker's (S, d) vectors the (W S, d) vectors of all W workers."""

    @staticmethod
    def forward(ctx: Any, slice_Sd: Tensor) -> Tensor:  # Any: torch's context takes any attribute
        slice_Sd = slice_Sd.detach().contiguous()
        parts = [torch.empty_like(slice_Sd) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, slice_Sd)
        ctx.slice_size = len(slice_Sd)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed_Cd = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed_Cd)
        return summed_Cd[distributed.get_rank() * ctx.slice_size :][: ctx.slice_size]
