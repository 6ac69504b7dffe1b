"""Planted training data: what every model that sees pictures, or learns, must find."""

import numpy as np
import pyarrow as pa
import torch

from visrec.interactions.split import HeldOut
from visrec.jagged import Jagged, offsets_of
from visrec.storage.schemas import HELD_OUT
from visrec.training.data import TrainingData

# These networks are so small that threads cost more than they give, on shared cores much more.
torch.set_num_threads(1)


def ragged(lists: list[list[int]]) -> Jagged:
    """Lists as `Jagged`."""
    flat = [value for values in lists for value in values]
    return Jagged(np.array(flat, np.int64), offsets_of(np.array([len(v) for v in lists], np.int64)))


def checkerboard(
    items: int = 60, users: int = 40, dim: int = 8, noise: float = 1.0, seed: int = 0
) -> TrainingData:
    """Items of even and odd rows are two visual clusters, and each user sticks to one of them.

    Half of a user's cluster is training, the other half held out: the right ranking has AUC 1.
    """
    random = np.random.default_rng(seed)
    direction_D = random.normal(size=dim)
    side_N = np.where(np.arange(items) % 2, 1.0, -1.0)
    feature_ND = 3 + side_N[:, None] * direction_D + noise * random.normal(size=(items, dim))
    train, held = [], []
    for user in range(users):
        own = random.permutation(np.arange(user % 2, items, 2))
        train.append(sorted(own[: len(own) // 2].tolist()))
        held.append(sorted(own[len(own) // 2 :].tolist()))
    parts = list(zip(train, held, strict=True))
    return TrainingData(
        item_ids=pa.array([f"i{n:04}" for n in range(items)]),
        user_ids=pa.array([f"u{n:04}" for n in range(users)]),
        feature_ND=feature_ND.astype(np.float16),
        train=ragged(train),
        basket_R=np.concatenate([np.arange(len(items)) for items in train]),
        validation=HeldOut(np.arange(users), ragged(train), ragged(held)),
        validation_basket_V=np.concatenate([len(t) + np.arange(len(h)) for t, h in parts]),
        test_pairs=HELD_OUT.empty_table(),
        provenance={"features": {}, "split": {}},
    )
