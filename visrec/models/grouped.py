"""Products of rows with the matrix of each one's group.

Shapes: B rows, G groups, C columns, K width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def grouped_products(row_BK: Tensor, matrix_GCK: Tensor, group_B: Tensor) -> Tensor:
    """(B, C) the product of each row with the rows of its group's matrix.

    Neither it nor its gradient holds the (B, C, K) matrices of all rows. There is no gradient of
    the matrices.

    Args:
        row_BK: B rows.
        matrix_GCK: the matrices of the groups.
        group_B: (B,) each row's group.
    """
    products_BC: Tensor = _GroupedProducts.apply(row_BK, matrix_GCK, group_B)  # type: ignore[no-untyped-call]
    return products_BC


class _GroupedProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row_BK: Tensor, matrix_GCK: Tensor, group_B: Tensor) -> Tensor:
        ctx.save_for_backward(matrix_GCK, group_B)
        return _multiply(row_BK, matrix_GCK.transpose(1, 2), group_B)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads_BC: Tensor) -> tuple[Tensor, None, None]:
        matrix_GCK, group_B = ctx.saved_tensors  # type: ignore[attr-defined]
        return _multiply(grads_BC[0], matrix_GCK, group_B), None, None


def _multiply(row_BX: Tensor, matrix_GXY: Tensor, group_B: Tensor) -> Tensor:
    """(B, Y) each row times its group's matrix: one product for each group."""
    order_B = group_B.argsort(stable=True)
    sorted_BX = row_BX[order_B].to(matrix_GXY.dtype)
    sorted_BY = sorted_BX.new_empty(len(row_BX), matrix_GXY.shape[2])
    for group, rows in _runs(group_B[order_B]):
        torch.mm(sorted_BX[rows], matrix_GXY[group], out=sorted_BY[rows])
    product_BY = torch.empty_like(sorted_BY)
    product_BY[order_B] = sorted_BY
    return product_BY


def _runs(group_B: Tensor) -> Iterator[tuple[int, slice]]:
    """Each group of sorted (B,) groups, and where its rows are."""
    groups, counts = torch.unique_consecutive(group_B, return_counts=True)
    stops = counts.cumsum(0)
    for group, start, stop in zip(
        groups.tolist(), (stops - counts).tolist(), stops.tolist(), strict=True
    ):
        yield group, slice(start, stop)
