"""The boundary to the compiled code: rows that it would read outside of an array are refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.training import jagged_lists
from visrec.interactions.activity import Activity
from visrec.models.inputs import JaggedTensor
from visrec.models.pooling import max_and_mean
from visrec.native import require_rows
from visrec.retrieval.kernel import load_kernel, nearest, rank

VECTORS = np.ones((4, 1), np.float32)


def _nearest(row: int) -> object:
    kernel = load_kernel()
    assert kernel
    return nearest(VECTORS, jagged_lists([[row]]), np.array([[0, -1]]), kernel)


def _nearest_to(row: int) -> object:
    kernel = load_kernel()
    assert kernel
    return nearest(VECTORS, jagged_lists([[0]]), np.array([[row, -1]]), kernel)


def _rank(row: int) -> object:
    kernel = load_kernel()
    assert kernel
    profiles, wide_B = jagged_lists([[0]]), np.zeros(1, bool)
    return rank(VECTORS, VECTORS[:1], profiles, jagged_lists([[row]]), wide_B, kernel)


def _pool(row: int) -> object:
    return max_and_mean(torch.ones(4, 1), JaggedTensor.from_jagged(jagged_lists([[row]])))


def _activity(row: int) -> object:
    activity = Activity.from_rows(np.zeros(1, np.int64), np.zeros(1, np.int64), 4)
    return activity.features(np.zeros(1, np.int64), np.array([row]))


@pytest.mark.skipif(load_kernel() is None, reason="there is no compiled code here")
@pytest.mark.parametrize("call", [_nearest, _nearest_to, _rank, _pool, _activity])
def test_row_outside_of_the_array_is_refused(call: Callable[[int], object]) -> None:
    call(3)
    with pytest.raises(IndexError, match="expected rows below 4"):
        call(4)


@pytest.mark.skipif(load_kernel() is None, reason="there is no compiled code here")
def test_only_one_negative_row_stands_for_none() -> None:
    with pytest.raises(IndexError, match="none below -1"):
        _nearest_to(-2)


def test_rows_are_refused_unless_all_are_in_the_array() -> None:
    require_rows(np.zeros(0, np.int64), 0)
    require_rows(np.array([0, 3], np.int32), 4)
    require_rows(np.array([0, 3], np.uint32), 4)
    require_rows(np.array([[-1, 3]]), 4, least=-1)
    for rows, least in (([-1, 2], 0), ([0, 4], 0), ([-2, 2], -1)):
        with pytest.raises(IndexError, match=f"from {rows[0]} to {rows[1]}; .* below {least}"):
            require_rows(np.array(rows), 4, least)
