"""Products by group against the plain formula, values and gradients."""

import pytest
import torch

from visrec.models.grouped import grouped_products


@pytest.mark.parametrize(("rows", "groups"), [(37, 5), (4, 9), (6, 1)])
def test_grouped_products_and_gradients_are_those_of_each_row_alone(rows: int, groups: int) -> None:
    random = torch.Generator().manual_seed(rows)
    matrix_GCK = torch.randn(groups, 11, 3, generator=random, dtype=torch.float64)
    group_B = torch.randint(groups, (rows,), generator=random)
    weight_BC = torch.randn(rows, 11, generator=random, dtype=torch.float64)
    row_BK = torch.randn(rows, 3, generator=random, dtype=torch.float64, requires_grad=True)
    plain_BC = torch.stack([matrix_GCK[g] @ row for g, row in zip(group_B, row_BK, strict=True)])
    (plain,) = torch.autograd.grad((plain_BC * weight_BC).sum(), row_BK)
    found_BC = grouped_products(row_BK, matrix_GCK, group_B)
    (found,) = torch.autograd.grad((found_BC * weight_BC).sum(), row_BK)
    torch.testing.assert_close(found_BC, plain_BC)
    torch.testing.assert_close(found, plain)
