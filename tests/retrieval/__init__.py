"""A scorer whose scores are a table, so that the right list is known."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.models.inputs import JaggedTensor


class TableScorer:
    """(B, N) scores; a user's row of training is the row of the table."""

    space_Nd = None
    device = torch.device("cpu")

    def __init__(self, score_BN: npt.NDArray[np.float32]) -> None:
        self._score_BN = torch.from_numpy(score_BN)
        self.num_items = score_BN.shape[1]

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        del profiles
        return self._score_BN[user_B.clamp(min=0)]

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        return state[:, start:stop].clone()
