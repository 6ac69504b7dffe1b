"""Pools of jagged lists and their gradients against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.training import jagged_lists
from visrec.models import pooling
from visrec.models.arrays import BATCH_KERNEL
from visrec.models.inputs import JaggedTensor
from visrec.models.pooling import max_and_mean, pool
from visrec.native import compile_and_load
from visrec.threads import torch_threads

KERNEL, WHY = compile_and_load(BATCH_KERNEL)
lists_of_rows = st.lists(st.lists(st.integers(0, 7), max_size=9), min_size=1, max_size=6)


def _loop(vectors: Tensor, lists: list[list[int]]) -> Tensor:
    """Maxima and means, summed in float64."""
    wide, rows = vectors.double(), []
    for items in lists:
        part = wide[items] if items else wide[:1] * 0
        rows.append(torch.cat([part.amax(dim=0), part.mean(dim=0)]))
    return torch.stack(rows)


@given(lists_of_rows, st.integers(1, 20), st.integers(0, 99))
def test_maxima_and_means_equal_plain_loops(lists: list[list[int]], width: int, seed: int) -> None:
    vectors = torch.randn(8, width, generator=torch.Generator().manual_seed(seed))
    found = max_and_mean(vectors, JaggedTensor.from_jagged(jagged_lists(lists)))
    torch.testing.assert_close(found, _loop(vectors, lists).float(), rtol=1e-5, atol=1e-6)


@given(lists_of_rows, st.integers(1, 20), st.integers(0, 99))
def test_gradient_equals_that_of_plain_loops(lists: list[list[int]], width: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(8, width, generator=random)
    weights = torch.randn(len(lists), 2 * width, generator=random)
    one, other = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    (max_and_mean(one, JaggedTensor.from_jagged(jagged_lists(lists))) * weights).sum().backward()
    (_loop(other, lists) * weights).sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pools_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    vectors = torch.randn(8, 33, requires_grad=True)
    lists = JaggedTensor.from_jagged(jagged_lists([[1, 2, 3], [], [7, 7, 0, 5], [2]]))
    found = []
    for count in (1, threads):
        with torch_threads(count):
            vectors.grad = None
            pooled = max_and_mean(vectors, lists)
            (pooled**3).sum().backward()
            assert vectors.grad is not None
            found.append((pooled.detach().clone(), vectors.grad.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_torch_pools_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, lists = torch.randn(8, 5), JaggedTensor.from_jagged(jagged_lists([[1, 2, 3], [], [7]]))
    compiled = max_and_mean(vectors, lists)
    monkeypatch.setattr(pooling, "compile_and_load", lambda _: (None, "not here"))
    torch.testing.assert_close(max_and_mean(vectors, lists), compiled)


def test_sums_of_each_list() -> None:
    vectors = torch.arange(6.0).view(3, 2)
    assert pool(
        vectors, JaggedTensor.from_jagged(jagged_lists([[0, 2, 2], []])), "sum"
    ).tolist() == [
        [8, 11],
        [0, 0],
    ]
