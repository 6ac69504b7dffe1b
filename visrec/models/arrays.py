"""Arrays as tensors, and rows that are encoded in blocks of one size."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Arrays = dict[str, npt.NDArray[Any]]

# Item rows are encoded in blocks of one size, the last one padded, so that a vector never depends
# on how many others are computed beside it: a matrix product may add up in another order for
# another shape.
ENCODE_ROWS = 4096


def known_rows(weight_Rd: Tensor, row_X: npt.NDArray[np.int64] | Tensor) -> Tensor:
    """(X, d) rows of a table of what training has seen; zeros for -1, which it has not.

    Args:
        weight_Rd: the table.
        row_X: (X,) its rows.
    """
    rows = torch.as_tensor(row_X, device=weight_Rd.device)
    return weight_Rd[rows.clamp(min=0)] * (rows >= 0)[:, None]


def zero_copy_tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor over an array of the object store, not copied, which nobody may write to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


def encode_in_fixed_batches(
    rows: npt.NDArray[Any], encode: Callable[[Tensor], Tensor], device: str | torch.device = "cpu"
) -> npt.NDArray[np.float32]:
    """(N, d) float32 of (N, ...) rows, `ENCODE_ROWS` at a time, each block of that size exactly.

    Args:
        rows: the catalogue's rows.
        encode: from a (ENCODE_ROWS, ...) float32 tensor to (ENCODE_ROWS, d).
        device: where it computes.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), ENCODE_ROWS):
            block = torch.from_numpy(np.array(rows[start : start + ENCODE_ROWS], np.float32))
            padding = ENCODE_ROWS - len(block)
            padded = torch.cat([block, block.new_zeros(padding, *block.shape[1:])])
            parts.append(encode(padded.to(device))[: len(block)].float().cpu().numpy())
    return np.concatenate(parts)
