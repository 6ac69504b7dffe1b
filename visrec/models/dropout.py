"""Dropout (Srivastava et al. 2014) of item features, decided by a hash of step, item and feature.

A hashed mask does not depend on which worker encodes an item, so one worker and two have the same
losses. It takes one random byte for a value, whereas torch's own dropout draws a double.

Shapes: M items, D feature width, W 64-bit words of a mask (8 values each), V entries of a sparse
matrix.
"""

import ctypes

import torch
from torch import Tensor

from visrec.models.arrays import BATCH_KERNEL
from visrec.models.feature_scale import FeatureScale
from visrec.models.splitmix import splitmix64, uniform
from visrec.native import compile_and_load, pointers

_BYTE_VALUES = 256


def dropout_threshold(rate: float) -> int:
    """The number of byte values (of 256) that drop a feature, for a rate from 0 to below 1."""
    return min(round(rate * _BYTE_VALUES), _BYTE_VALUES - 1)


def drop_features(values_MD: Tensor, item_M: Tensor, seed: int, threshold: int) -> Tensor:
    """(M, D) values of which some are set to zero; the others are scaled up, to keep the mean.

    Args:
        values_MD: the values of M items.
        item_M: the rows of these items.
        seed: the seed of the step.
        threshold: see `dropout_threshold`.
    """
    if not threshold:
        return values_MD
    _m, d = values_MD.shape
    item_hash_M1 = splitmix64((item_M + 1) ^ seed)[:, None]
    word_MW = splitmix64(item_hash_M1 + torch.arange(-(-d // 8), device=item_M.device))
    kept_MD = word_MW.view(torch.uint8)[:, :d] >= threshold
    return values_MD * kept_MD * (_BYTE_VALUES / (_BYTE_VALUES - threshold))


def keep_items(item_M: Tensor, seed: int, rate: float) -> Tensor:
    """(M,) 1 for the items that a step keeps whole, 0 for the others; the same on all workers.

    Args:
        item_M: the rows of M items.
        seed: the seed of the step, and of what is dropped.
        rate: the share that is dropped, from 0 to 1.
    """
    return (uniform(splitmix64(splitmix64(item_M + 1) ^ seed)) >= rate).float()


def dropout_entries(
    value_V: Tensor, row_V: Tensor, column_V: Tensor, seed: int, rate: float
) -> Tensor:
    """(V,) entries of a sparse matrix of which some are set to zero; the others are scaled up.

    Args:
        value_V: the entries.
        row_V: each entry's row.
        column_V: each entry's column.
        seed: the seed of the step.
        rate: the share that is dropped, from 0 to below 1.
    """
    uniform_V = uniform(splitmix64(splitmix64(row_V + seed) ^ (column_V + 1)))
    return value_V * (uniform_V >= rate) / (1 - rate)


def scale_and_drop(
    feature_MD: Tensor, scale: FeatureScale, item_M: Tensor, seed: int, threshold: int
) -> Tensor:
    """(M, D) float32 z-scored features after `drop_features`.

    The compiled version computes both in one pass. With torch, reading and writing the values for
    each operation would take a fifth of a training step.

    Args:
        feature_MD: the raw features, float16 as stored, or float32.
        scale: the z-score.
        item_M: the rows of these items.
        seed: the seed of the step.
        threshold: see `dropout_threshold`.
    """
    kernel, _ = compile_and_load(BATCH_KERNEL)
    if kernel is None or feature_MD.device.type != "cpu" or feature_MD.dtype != torch.float16:
        return drop_features(scale(feature_MD), item_M, seed, threshold)
    m, d = feature_MD.shape
    factor_D = (_BYTE_VALUES / (_BYTE_VALUES - threshold)) / scale.scale_D
    scaled_MD = torch.empty(m, d)
    arrays = (feature_MD.contiguous(), scale.mean_D, factor_D, item_M)
    kernel.visrec_scaled(
        *pointers(arrays[0].numpy()),
        *map(ctypes.c_int64, (m, d)),
        *pointers(*(array.numpy() for array in arrays[1:])),
        ctypes.c_uint64(seed),
        *map(ctypes.c_int64, (threshold, torch.get_num_threads())),
        *pointers(scaled_MD.numpy()),
    )
    return scaled_MD
