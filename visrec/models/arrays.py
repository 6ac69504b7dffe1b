"""NumPy arrays as tensors, and encoding of item rows in batches of one size."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ItemArrays = dict[str, npt.NDArray[Any]]  # of any type: what one model's scorer takes

ACTIVITY = "activity"  # the array of a model that reads activity: (N, K), of one moment

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
    """(N, d) float32 encodings of (N, ...) rows, computed `ENCODE_ROWS` rows at a time.

    Args:
        rows: the rows of the catalogue.
        encode: maps a (ENCODE_ROWS, ...) float32 tensor to (ENCODE_ROWS, d).
        device: where `encode` runs.
    """
    encoded_Nd = np.empty((len(rows), 0), np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), ENCODE_ROWS):
            batch = torch.from_numpy(np.array(rows[start : start + ENCODE_ROWS], np.float32))
            padding = ENCODE_ROWS - len(batch)
            padded = torch.cat([batch, batch.new_zeros(padding, *batch.shape[1:])])
            encoded_Bd = encode(padded.to(device))[: len(batch)].float().cpu().numpy()
            if not start:  # now the width is known, and nothing is in memory twice
                encoded_Nd = np.empty((len(rows), *encoded_Bd.shape[1:]), np.float32)
            encoded_Nd[start : start + len(batch)] = encoded_Bd
    return encoded_Nd
