"""A scorer whose scores are a table, so that the right list is known; and choosing a kernel."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import TiledScorer
from visrec.retrieval import kernel

KERNELS = pytest.mark.parametrize("compiled", [True, False])


def select_kernel(patch: pytest.MonkeyPatch, compiled: bool) -> None:
    """The compiled kernel, for which the test is skipped where it is not available, or torch."""
    if compiled and kernel.load_kernel() is None:
        pytest.skip(f"no compiled kernel here: {kernel.kernel_unavailable_reason()}")
    if not compiled:
        patch.setattr(kernel, "load_kernel", lambda: None)


class TableScorer(TiledScorer):
    """(B, N) scores; a user's row in training is the row of the table."""

    def __init__(self, score_BN: npt.NDArray[np.float32]) -> None:
        self._score_BN = torch.from_numpy(score_BN)
        self.num_items, self.device, self.space_Nd = score_BN.shape[1], torch.device("cpu"), None

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        del profiles
        return self._score_BN[user_B.clamp(min=0)]

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        return state[:, start:stop].clone()
