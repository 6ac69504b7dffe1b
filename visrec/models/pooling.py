"""Pools of the vectors that lists point into, read in place: no (V, d) copy of them is made."""

import ctypes
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from visrec.models.dropout import SOURCE
from visrec.models.inputs import JaggedTensor
from visrec.native import compiled, pointers


def pool(vector_Md: Tensor, bags: JaggedTensor, how: Literal["max", "mean", "sum"]) -> Tensor:
    """(B, d) maxima, means or sums of the vectors at each list's rows; zeros for an empty list."""
    return functional.embedding_bag(
        bags.values, vector_Md, bags.offsets, mode=how, include_last_offset=True
    )


def max_and_mean(vector_Md: Tensor, bags: JaggedTensor) -> Tensor:
    """(B, 2 d) maxima and behind them means; zeros for an empty list.

    In one pass where there is a compiler: torch's two pools, and the way back through them, were a
    fifth of a training step.
    """
    kernel, _ = compiled(SOURCE)
    if kernel is None or vector_Md.device.type != "cpu" or vector_Md.dtype != torch.float32:
        return torch.cat([pool(vector_Md, bags, "max"), pool(vector_Md, bags, "mean")], dim=1)
    pooled: Tensor = _MaxAndMean.apply(vector_Md, bags.values, bags.offsets)  # type: ignore[no-untyped-call]
    return pooled


class _MaxAndMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector_Md: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        lists = (np.ascontiguousarray(offsets.numpy()), np.ascontiguousarray(values.numpy()))
        vector_Md = vector_Md.detach().contiguous()
        b, (m, d) = len(offsets) - 1, vector_Md.shape
        pooled_BE, best_Bd = torch.empty(b, 2 * d), torch.empty(b, d, dtype=torch.int32)
        _kernel().visrec_pool(
            *pointers(vector_Md.numpy()),
            ctypes.c_int64(d),
            *pointers(*lists),
            *map(ctypes.c_int64, (b, torch.get_num_threads())),
            *pointers(pooled_BE.numpy(), best_Bd.numpy()),
        )
        ctx.lists, ctx.best, ctx.shape = lists, best_Bd, (m, d)
        return pooled_BE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        of_pooled_BE, gradient_Md = gradients[0].contiguous(), torch.zeros(ctx.shape)
        _kernel().visrec_pool_back(
            *pointers(of_pooled_BE.numpy(), ctx.best.numpy(), *ctx.lists),
            *map(ctypes.c_int64, (len(of_pooled_BE), ctx.shape[1], torch.get_num_threads())),
            *pointers(gradient_Md.numpy()),
        )
        return gradient_Md, None, None


def _kernel() -> ctypes.CDLL:
    kernel, why = compiled(SOURCE)
    assert kernel, why
    return kernel
