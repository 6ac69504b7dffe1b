"""Lists of items for items: by the cosine of the vectors in which the model tells items apart."""

from typing import Literal

from visrec.errors import InputError
from visrec.models.arrays import Arrays, zero_copy_tensor
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer, Scorer
from visrec.retrieval.topk import unit_rows

Kind = Literal["user_to_item", "item_to_item"]


def similarity(scorer: Scorer, whose: str) -> Arrays:
    """`unit`: (N, d) float32, item vectors of length 1; zeros for items without one.

    Raises:
        InputError: the model has no item vectors.
    """
    if scorer.space_Nd is None:
        raise InputError(
            f"{whose} has no vectors of items, by which one would be near another; expected one "
            "that has for --kind item_to_item. Name another with --model."
        )
    return {"unit": unit_rows(scorer.space_Nd.detach()).cpu().numpy()}


def neighbours(arrays: Arrays, use_gpu: bool) -> DotScorer:
    """A scorer of cosines, to which the one item of a profile is the user."""
    unit_Nd = zero_copy_tensor(arrays["unit"])
    unit_Nd = unit_Nd.cuda() if use_gpu else unit_Nd
    return DotScorer(unit_Nd, lambda bags, _: pool(unit_Nd, bags, "mean"))
