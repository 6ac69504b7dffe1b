"""Dropout (Srivastava et al. 2014) of items' features, by a hash of seed, item and feature.

A mask that is a function of these is the same whichever worker computes an item, so that one worker
and two follow the same loss. A byte is drawn for each value, where torch's own draws a double.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from visrec.models.feature_scale import FeatureScale
from visrec.models.splitmix import splitmix64
from visrec.native import compiled, pointers

SOURCE = Path(__file__).with_name("batch.cpp")
_LEVELS = 256


def levels(share: float) -> int:
    """How many of 256 values of a byte drop a value: a share from 0 to below 1, rounded."""
    return min(round(share * _LEVELS), _LEVELS - 1)


def dropped(values_MD: Tensor, item_M: Tensor, seed: int, zeroed: int) -> Tensor:
    """(M, D) values with a share of them zero and the rest scaled, so that means stay.

    Args:
        values_MD: of M items.
        item_M: which items these are.
        seed: of the step.
        zeroed: see `levels`.
    """
    if not zeroed:
        return values_MD
    _m, d = values_MD.shape
    own_M1 = splitmix64((item_M + 1) ^ seed)[:, None]
    word_MW = splitmix64(own_M1 + torch.arange(-(-d // 8), device=item_M.device))
    kept_MD = word_MW.view(torch.uint8)[:, :d] >= zeroed
    return values_MD * kept_MD * (_LEVELS / (_LEVELS - zeroed))


def dropped_entries(
    value_V: Tensor, row_V: Tensor, column_V: Tensor, seed: int, share: float
) -> Tensor:
    """(V,) entries of a sparse matrix, a share of them zero and the rest scaled.

    Args:
        value_V: the entries.
        row_V: of each.
        column_V: of each.
        seed: of the step.
        share: from 0 to below 1.
    """
    word_V = splitmix64(splitmix64(row_V + seed) ^ (column_V + 1))
    uniform_V = ((word_V >> 11) & ((1 << 53) - 1)).double() / (1 << 53)
    return value_V * (uniform_V >= share) / (1 - share)


def scaled_and_dropped(
    feature_MD: Tensor, scale: FeatureScale, item_M: Tensor, seed: int, zeroed: int
) -> Tensor:
    """(M, D) float32, `dropped` of z-scored features, in one pass where there is a compiler.

    A fifth of a training step went into reading and writing these numbers once for each operation.

    Args:
        feature_MD: float16 as they are stored, or float32.
        scale: the z-score.
        item_M: which items these are.
        seed: of the step.
        zeroed: see `levels`.
    """
    kernel, _ = compiled(SOURCE)
    if kernel is None or feature_MD.device.type != "cpu" or feature_MD.dtype != torch.float16:
        return dropped(scale(feature_MD), item_M, seed, zeroed)
    m, d = feature_MD.shape
    factor_D = (_LEVELS / (_LEVELS - zeroed)) / scale.scale_D
    scaled_MD = torch.empty(m, d)
    arrays = (feature_MD.contiguous(), scale.mean_D, factor_D, item_M)
    kernel.visrec_scaled(
        *pointers(arrays[0].numpy()),
        *map(ctypes.c_int64, (m, d)),
        *pointers(*(array.numpy() for array in arrays[1:])),
        ctypes.c_uint64(seed),
        *map(ctypes.c_int64, (zeroed, torch.get_num_threads())),
        *pointers(scaled_MD.numpy()),
    )
    return scaled_MD
