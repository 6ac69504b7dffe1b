"""Pools lists of vectors: each list becomes one vector. The (V, d) entries are never copied.

Shapes: B lists, V entries of all lists, M vectors, d width.
"""

import ctypes
import math
from functools import cache
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from visrec.models.arrays import BATCH_KERNEL
from visrec.models.inputs import JaggedTensor
from visrec.native import compile_and_load, pointers, require_rows

_HALVINGS = 64  # an entry that weighs less than 2^-64 weighs nothing


def pool(vector_Md: Tensor, lists: JaggedTensor, mode: Literal["max", "mean", "sum"]) -> Tensor:
    """(B, d) the maximum, mean or sum of each list's vectors; zeros for an empty list.

    Args:
        vector_Md: the vectors.
        lists: B lists of rows of `vector_Md`.
        mode: which of the three.
    """
    return functional.embedding_bag(
        lists.values, vector_Md, lists.offsets, mode=mode, include_last_offset=True
    )


def max_and_mean(vector_Md: Tensor, lists: JaggedTensor) -> Tensor:
    """(B, 2 d) the maximum of each list's vectors, followed by their mean; zeros for an empty list.

    The compiled version computes both in one pass. With torch, the two pools and their backward
    passes would take a fifth of a training step.
    """
    kernel, _ = compile_and_load(BATCH_KERNEL)
    if kernel is None or vector_Md.device.type != "cpu" or vector_Md.dtype != torch.float32:
        return torch.cat([pool(vector_Md, lists, "max"), pool(vector_Md, lists, "mean")], dim=1)
    pooled: Tensor = _MaxAndMean.apply(vector_Md, lists.values, lists.offsets)  # type: ignore[no-untyped-call]
    return pooled


def recent_mean(vector_Md: Tensor, lists: JaggedTensor, half_life: float) -> Tensor:
    """(B, d) the mean of each list's vectors, in which later entries weigh more.

    An entry with r entries after it in its list weighs 2^(-r / half_life). An empty list has zeros.

    Args:
        vector_Md: the vectors.
        lists: B lists of rows of `vector_Md`, oldest first.
        half_life: in entries.
    """
    weight_R, total_R = (table.to(vector_Md.device) for table in _recency_tables(half_life))
    length_B = lists.lengths
    end_V = torch.repeat_interleave(lists.offsets[1:], length_B)
    newer_V = end_V - 1 - torch.arange(len(lists.values), device=vector_Md.device)
    total_B = total_R[length_B.clamp(max=len(total_R) - 1)]
    weight_V = weight_R[newer_V.clamp(max=len(weight_R) - 1)]
    weight_V = (weight_V / torch.repeat_interleave(total_B, length_B)).to(vector_Md.dtype)
    return functional.embedding_bag(
        lists.values,
        vector_Md,
        lists.offsets,
        mode="sum",
        per_sample_weights=weight_V,
        include_last_offset=True,
    )


@cache
def _recency_tables(half_life: float) -> tuple[Tensor, Tensor]:
    """The weight of an entry by the number of entries after it; the sum of weights by length.

    They are tables, because the last bits of torch's powers depend on where in a tensor a number
    is, and a user's vector must not depend on who else is in the batch.
    """
    count = math.ceil(_HALVINGS * half_life)
    weights = [2 ** (-r / half_life) for r in range(count)]
    return torch.tensor([*weights, 0.0]), torch.tensor([0.0, *accumulate(weights)])


class _MaxAndMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector_Md: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        # ctx is Any because torch's context takes any attribute.
        lists = (np.ascontiguousarray(offsets.numpy()), np.ascontiguousarray(values.numpy()))
        vector_Md = vector_Md.detach().contiguous()
        b, (m, d) = len(offsets) - 1, vector_Md.shape
        require_rows(lists[1], m)
        pooled_BE, argmax_Bd = torch.empty(b, 2 * d), torch.empty(b, d, dtype=torch.int32)
        _kernel().visrec_pool(
            *pointers(vector_Md.numpy()),
            ctypes.c_int64(d),
            *pointers(*lists),
            *map(ctypes.c_int64, (b, torch.get_num_threads())),
            *pointers(pooled_BE.numpy(), argmax_Bd.numpy()),
        )
        ctx.lists, ctx.argmax, ctx.shape = lists, argmax_Bd, (m, d)
        return pooled_BE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        pooled_gradient_BE, gradient_Md = gradients[0].contiguous(), torch.zeros(ctx.shape)
        _kernel().visrec_pool_back(
            *pointers(pooled_gradient_BE.numpy(), ctx.argmax.numpy(), *ctx.lists),
            *map(ctypes.c_int64, (len(pooled_gradient_BE), ctx.shape[1], torch.get_num_threads())),
            *pointers(gradient_Md.numpy()),
        )
        return gradient_Md, None, None


def _kernel() -> ctypes.CDLL:
    kernel, reason = compile_and_load(BATCH_KERNEL)
    assert kernel, reason
    return kernel
