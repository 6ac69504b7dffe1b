"""What goes with a model about its features: z-score, or whitening, kept as its buffers."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_ROWS = 16384  # rows added up at a time: two blocks of 168 MB of float64 at D = 1280


class FeatureScale(nn.Module):
    """z = (x - mean) / scale per dimension; a dimension that never varies becomes zero.

    Args:
        dim: D.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("scale_D", torch.ones(dim))

    def fit(self, feature_ND: npt.NDArray[Any]) -> None:
        """Takes the mean and the population standard deviation, both added up in float64."""
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


class Whitening(nn.Module):
    """The first principal components of z-scored features, each of variance one.

    With V the eigenvectors and s the eigenvalues of the z-scores' covariance, y = z V / sqrt(s):
    directions in which pictures seldom differ count as much as those in which they often do.

    Args:
        dim: D.
        components: K, the eigenvectors of largest eigenvalues that are kept.
    """

    projection_DK: Tensor

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.scale = FeatureScale(dim)
        self.register_buffer("projection_DK", torch.zeros(dim, components))

    def fit(self, feature_ND: npt.NDArray[Any]) -> None:
        """Takes the z-score, and the covariance added up in float64: D x D numbers."""
        self.scale.fit(feature_ND)
        blocks = (
            self.scale(torch.from_numpy(np.array(feature_ND[i : i + _ROWS], np.float32))).double()
            for i in range(0, len(feature_ND), _ROWS)
        )
        covariance_DD = sum(z_BD.T @ z_BD for z_BD in blocks) / len(feature_ND)
        value_D, vector_DD = np.linalg.eigh(np.asarray(covariance_DD))
        kept = slice(-1, -1 - self.projection_DK.shape[1], -1)
        value_K, vector_DK = value_D[kept], vector_DD[:, kept]
        # Fewer items than dimensions leave directions without any variance: they become zero.
        scale_K = np.sqrt(np.where(value_K > 1e-6 * value_D[-1], value_K, np.inf))
        self.projection_DK.copy_(torch.from_numpy(vector_DK / scale_K))

    def forward(self, feature_MD: Tensor) -> Tensor:
        """(M, K) whitened features."""
        whitened: Tensor = self.scale(feature_MD) @ self.projection_DK
        return whitened
