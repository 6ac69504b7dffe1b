"""Similarity of items by cosine: scorers for item-to-item lists, and reasons for list entries.

Shapes: B users, N items, K list length, P items of a profile, X any, d width.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer, Scorer
from visrec.retrieval.kernel import kernel_for, nearest
from visrec.retrieval.topk import ITEM_COLUMNS

Kind = Literal["user_to_item", "item_to_item"]


def similarity_arrays(scorer: Scorer, model_name: str) -> ItemArrays:
    """`unit`: (N, d) float32, item vectors of length 1; zeros for items without a vector.

    Args:
        scorer: has the item vectors.
        model_name: for the error message.

    Raises:
        InputError: the model has no item vectors.
    """
    if scorer.space_Nd is None:
        raise InputError(
            f"{model_name} has no item vectors to compare items by; expected a model that has them "
            "for --kind item_to_item. Choose another one with --model."
        )
    return {"unit": normalize_rows(scorer.space_Nd.detach()).cpu().numpy()}


def cosine_scorer(arrays: ItemArrays, use_gpu: bool) -> DotScorer:
    """A scorer of cosines. The query is an item, and its profile is that item alone."""
    unit_Nd = zero_copy_tensor(arrays["unit"])
    unit_Nd = unit_Nd.cuda() if use_gpu else unit_Nd
    return DotScorer(unit_Nd, lambda profiles, _: pool(unit_Nd, profiles, "mean"))


def normalize_rows(vector_Xd: Tensor) -> Tensor:
    """(X, d) float32 rows of length 1, whatever their magnitude; zeros for rows of zeros.

    In float32, the squares of entries below 1e-19 or above 1e19 do not fit, and
    `torch.nn.functional.normalize` does not rescale rows shorter than 1e-12.
    """
    unit_Xd = torch.empty_like(vector_Xd, dtype=torch.float32)
    for start in range(0, len(vector_Xd), ITEM_COLUMNS):
        part = vector_Xd[start : start + ITEM_COLUMNS]
        wide = part.double()
        length_B1 = wide.norm(dim=1, keepdim=True).clamp(min=1e-300)
        unit_Xd[start : start + ITEM_COLUMNS] = wide / length_B1
    return unit_Xd


@torch.inference_mode()
def nearest_profile_items(
    space_Nd: Tensor, profiles: Jagged, row_BK: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """(B, K) the profile item with the largest cosine to each recommended item; -1 for none.

    Ties go to the item that comes first in the profile.
    """
    if kernel := kernel_for(space_Nd):
        return nearest(space_Nd.numpy(), profiles, row_BK, kernel)
    found_BK = np.full(row_BK.shape, -1, np.int64)
    for b, row_K in enumerate(row_BK):
        row_K, profile = row_K[row_K >= 0], profiles[b]
        if len(row_K) and len(profile):
            profile_Pd, item_Kd = (
                normalize_rows(space_Nd[np.asarray(r, np.int64)]) for r in (profile, row_K)
            )
            nearest_K = profile[(item_Kd @ profile_Pd.T).argmax(dim=1).cpu().numpy()]
            found_BK[b, : len(row_K)] = nearest_K
    return found_BK
