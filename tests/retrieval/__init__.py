"""A scorer whose scores are a table, so that the right list is known; and choosing a kernel."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from visrec.isas import of_machine
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import TiledScorer
from visrec.native import ISA_VARIABLE, processor_flags
from visrec.retrieval import kernel

COMPILED = tuple(isa.name for isa in of_machine(processor_flags())) or ("none",)
KERNELS = pytest.mark.parametrize("isa", [*COMPILED, TORCH := "torch"])


def select_kernel(patch: pytest.MonkeyPatch, isa: str) -> None:
    """The kernel for an instruction set, or torch; the test is skipped if it does not compile."""
    patch.setenv(ISA_VARIABLE, isa)
    if isa != TORCH and kernel.load_kernel() is None:
        pytest.skip(f"no compiled kernel here: {kernel.kernel_unavailable_reason()}")


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
