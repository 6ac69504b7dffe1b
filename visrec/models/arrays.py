"""NumPy arrays as tensors, and encoding of item rows in batches of one size."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.scratch import row_blocks, scratch_array

ItemArrays = dict[str, npt.NDArray[Any]]  # of any type: what one model's scorer takes

BATCH_KERNEL = Path(__file__).with_name("batch.cpp")  # of dropout and pooling

ACTIVITY = "activity"  # the array of a model that reads activity: (N, A), of one moment

# Every batch has exactly this many rows; the last one is padded. A matrix product of another shape
# may sum in another order, and then a vector would depend on how many are computed with it.
ENCODE_ROWS = 4096


def rows_or_zeros(weight_Rd: Tensor, row_X: npt.NDArray[np.int64] | Tensor) -> Tensor:
    """(X, d) rows of an embedding matrix; zeros for a row of -1, which training has not seen.

    Args:
        weight_Rd: the embedding matrix.
        row_X: (X,) its rows.
    """
    rows = torch.as_tensor(row_X, device=weight_Rd.device)
    return weight_Rd[rows.clamp(min=0)] * (rows >= 0)[:, None]


def zero_copy_tensor(array: npt.NDArray[Any]) -> Tensor:
    """A read-only tensor that shares the memory of an array in the object store."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


def encode_in_fixed_batches(
    rows: npt.NDArray[Any], encode: Callable[[Tensor], Tensor], device: str | torch.device = "cpu"
) -> npt.NDArray[np.float32]:
    """(N, d) float32 encodings of (N, ...) rows, as `encoded_batches` computes them.

    Args:
        rows: the rows of the catalogue.
        encode: maps a (ENCODE_ROWS, ...) float32 tensor to (ENCODE_ROWS, d).
        device: where `encode` runs.
    """
    encoded_Nd = np.empty((len(rows), 0), np.float32)
    for batch, encoded_Bd in encoded_batches(rows, encode, device):
        if not batch.start:  # now the width is known, and nothing is in memory twice
            encoded_Nd = scratch_array((len(rows), *encoded_Bd.shape[1:]), np.float32)
        encoded_Nd[batch] = encoded_Bd
    return encoded_Nd


def encoded_batches(
    rows: npt.NDArray[Any], encode: Callable[[Tensor], Tensor], device: str | torch.device = "cpu"
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yields some rows of the catalogue at a time, and their (B, d) float32 encodings.

    Args:
        rows: as in `encode_in_fixed_batches`.
        encode: as there.
        device: as there.
    """
    for batch in row_blocks(len(rows), ENCODE_ROWS):
        part = torch.from_numpy(np.array(rows[batch], np.float32))
        size = len(part)
        padded = torch.cat([part, part.new_zeros(ENCODE_ROWS - size, *part.shape[1:])])
        with torch.inference_mode():
            encoded_Bd = encode(padded.to(device))[:size].float().cpu().numpy()
        yield batch, encoded_Bd
