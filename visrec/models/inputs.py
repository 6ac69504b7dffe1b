"""What a model's `forward` takes: one kind of batch for each way of training."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visrec.jagged import Jagged


@dataclass(frozen=True)
class JaggedTensor:
    """`Jagged` as tensors: B lists of rows, flat."""

    values: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    @staticmethod
    def of(lists: Jagged, device: str | torch.device = "cpu") -> "JaggedTensor":
        return JaggedTensor(
            torch.as_tensor(np.asarray(lists.values, np.int64), device=device),
            torch.as_tensor(np.asarray(lists.offsets, np.int64), device=device),
        )


@dataclass(frozen=True)
class Candidates:
    """The first C items of a batch, which stand against the positives of all B examples.

    They are the same on all workers of a step, and so in the same order.

    Args:
        taken_BC: (B, C) bool, the candidates that are no negative of that example.
        log_q_C: (C,) the logarithm of the chance that a step has the candidate, 0 where it has all.
    """

    taken_BC: Tensor
    log_q_C: Tensor

    def __len__(self) -> int:
        return len(self.log_q_C)


@dataclass(frozen=True)
class TripleBatch:
    """B examples over the M distinct items of the batch; item fields point into those.

    Args:
        item_M: (M,) rows of the catalogue.
        feature_MD: (M, D) their raw features as they are stored; D = 0 for a model that does not
            ask.
        category_M: (M,) codes of their categories, -1 for none.
        user_B: (B,) trained user rows.
        profiles: B lists of positions in M.
        positive_B: (B,) positions in M.
        negative_BK: (B, K) positions in M, each example's own negatives; K = 0 with candidates.
        candidates: what stands against all positives instead, or None.
        seed: of the step, the same on all workers.
    """

    item_M: Tensor
    feature_MD: Tensor
    category_M: Tensor
    user_B: Tensor
    profiles: JaggedTensor
    positive_B: Tensor
    negative_BK: Tensor
    candidates: Candidates | None = None
    seed: int = 0


@dataclass(frozen=True)
class UserBatch:
    """B of the users of a step, each with all training items.

    Args:
        items: B lists of catalogue rows.
        first: the place of the first of them among the step's users, all workers together.
        total: how many users the step has.
        seed: of the step, the same on all workers.
    """

    items: JaggedTensor
    first: int
    total: int
    seed: int = 0


@dataclass(frozen=True)
class RatingBatch:
    """B ratings, and B pairs of the same users with items that they did not take.

    Args:
        user_B: trained user rows.
        item_B: catalogue rows.
        rating_B: what the user thought of the item.
        other_B: (B,) items that the user did not take.
    """

    user_B: Tensor
    item_B: Tensor
    rating_B: Tensor
    other_B: Tensor
