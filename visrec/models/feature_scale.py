"""The z-score of features. Mean and scale are stored with the model's weights."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_ROWS = 16384  # rows summed at a time: two blocks of 168 MB of float64 at D = 1280


class FeatureScale(nn.Module):
    """z = (x - mean) / scale for each dimension; a dimension that does not vary becomes zero.

    Args:
        dim: D, the width of a feature.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("scale_D", torch.ones(dim))

    def fit(self, feature_ND: npt.NDArray[np.floating[Any]]) -> None:
        """Computes the mean and the population standard deviation, both summed in float64."""
        blocks = [feature_ND[i : i + _ROWS] for i in range(0, len(feature_ND), _ROWS)]
        count = len(feature_ND)
        mean_D = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / count
        variance_D = sum(((block - mean_D) ** 2).sum(axis=0) for block in blocks) / count
        scale_D = np.sqrt(variance_D)
        self.mean_D.copy_(torch.from_numpy(mean_D))
        self.scale_D.copy_(torch.from_numpy(np.where(scale_D > 1e-6, scale_D, np.inf)))

    def forward(self, feature_MD: Tensor) -> Tensor:
        """(M, D) z-scored features."""
        return (feature_MD - self.mean_D).div_(self.scale_D)
