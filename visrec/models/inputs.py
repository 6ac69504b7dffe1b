"""The batches that a model's `forward` takes: one type for each kind of training.

Shapes: B examples or users, M distinct items of a batch, K negatives of an example, A features of
activity, C candidates of a step, G moments of a step, D feature width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visrec.jagged import Jagged


@dataclass(frozen=True)
class JaggedTensor:
    """`Jagged` as tensors: B lists of integers, stored one after another.

    Attributes:
        values: the entries of all lists, one list after another.
        offsets: (B + 1,) list b is `values[offsets[b]:offsets[b + 1]]`.
    """

    values: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    @staticmethod
    def from_jagged(lists: Jagged, device: str | torch.device = "cpu") -> "JaggedTensor":
        return JaggedTensor(
            torch.as_tensor(np.asarray(lists.values, np.int64), device=device),
            torch.as_tensor(np.asarray(lists.offsets, np.int64), device=device),
        )


@dataclass(frozen=True)
class Candidates:
    """Negatives that all examples of a step share. They are the first C items of each batch.

    All workers have the same candidates in the same order.

    Attributes:
        invalid_BC: (B, C) bool, the candidates that are not valid negatives of the example: items
            of its user, its positive, and items that are near-identical to the positive.
        log_q_C: (C,) the logarithm of the probability that a step has the candidate; 0 if every
            step has it.
    """

    invalid_BC: Tensor
    log_q_C: Tensor

    def __len__(self) -> int:
        return len(self.log_q_C)


@dataclass(frozen=True)
class ActivityBatch:
    """What was known of the items at the moments of B examples.

    Attributes:
        group_B: (B,) each example's moment, as a row of `candidate_GCA`.
        candidate_GCA: (G, C, A) float32, the candidates at each of G moments.
        positive_BA: (B, A) float32, the positives at their own moments.
    """

    group_B: Tensor
    candidate_GCA: Tensor
    positive_BA: Tensor


@dataclass(frozen=True)
class TripleBatch:
    """B examples with M distinct items. An item is given by its position among these M.

    Attributes:
        item_M: (M,) rows of the catalogue.
        feature_MD: (M, D) the items' raw features as stored; D = 0 for a model that does not
            require features.
        category_M: (M,) codes of the items' categories, -1 for none.
        user_B: (B,) rows of the users in training.
        profiles: B lists of positions in M.
        positive_B: (B,) positions in M.
        negative_BK: (B, K) positions in M, each example's own negatives; K = 0 if the examples
            share candidates.
        candidates: negatives that all examples share; None if each example has its own.
        activity: for a model that reads it.
        ordered_profiles: whether a profile is what its user had taken before the positive, oldest
            first.
        seed: the seed of the step, the same on all workers.
    """

    item_M: Tensor
    feature_MD: Tensor
    category_M: Tensor
    user_B: Tensor
    profiles: JaggedTensor
    positive_B: Tensor
    negative_BK: Tensor
    candidates: Candidates | None = None
    activity: ActivityBatch | None = None
    ordered_profiles: bool = False
    seed: int = 0


@dataclass(frozen=True)
class UserBatch:
    """One worker's B users of a step, each with all training items.

    Attributes:
        items: B lists of rows of the catalogue.
        first: the position of the first of these users among the users of all workers.
        total: the number of users of the step.
        seed: the seed of the step, the same on all workers.
    """

    items: JaggedTensor
    first: int
    total: int
    seed: int = 0


@dataclass(frozen=True)
class RatingBatch:
    """B ratings, and for each one an item that the same user did not take.

    Attributes:
        user_B: (B,) rows of the users in training.
        item_B: (B,) rows of the catalogue.
        rating_B: (B,) the user's rating of the item.
        other_B: (B,) rows of the items that the user did not take.
    """

    user_B: Tensor
    item_B: Tensor
    rating_B: Tensor
    other_B: Tensor
