"""Planted training data, whose structure every model that learns, or sees pictures, must find."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from visrec.features.table import Identity
from visrec.interactions.activity import DAY
from visrec.interactions.split import HeldOut, SplitConfig
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.models.provenance import DataProvenance, InteractionsProvenance, Provenance
from visrec.storage.schemas import HELD_OUT
from visrec.training.data import TrainingData

# Threads slow such small networks down, above all on shared cores.
torch.set_num_threads(1)


def held_baskets(
    user_E: npt.NDArray[np.int64], profiles: Jagged, targets: Jagged, time_E: npt.NDArray[np.int64]
) -> HeldOut:
    """One held-out basket of each user."""
    times = Jagged(np.repeat(time_E, targets.lengths), targets.offsets)
    return HeldOut(user_E, profiles, targets, time_E, times)


def jagged_lists(lists: list[list[int]]) -> Jagged:
    """The lists as a `Jagged`."""
    flat = [value for values in lists for value in values]
    return Jagged(
        np.array(flat, np.int64), offsets_from_lengths(np.array([len(v) for v in lists], np.int64))
    )


def data_provenance(**changes: Any) -> DataProvenance:
    """The inputs of a training that never happened."""
    identity = Identity(
        backbone="b", weights_digest="w", preprocessing={}, precision="float32", dim=8
    )
    fields: dict[str, Any] = {
        "features_digest": "f",
        "features_identity": identity,
        "interactions": InteractionsProvenance(),
        "items_digest": None,
        "split": SplitConfig(),
    }
    return DataProvenance(**{**fields, **changes})


def provenance(
    data: DataProvenance | None = None, train: Mapping[str, Any] | None = None, **changes: Any
) -> Provenance:
    """The provenance of a model that no job trained.

    Args:
        data: its inputs.
        train: its training configuration.
        changes: fields of `data_provenance` with other values, where `data` is not given.
    """
    return Provenance(
        data=data or data_provenance(**changes),
        train=train or {},
        sampling={},
        settings_digest="s",
    )


def checkerboard(
    items: int = 60, users: int = 40, dim: int = 8, noise: float = 1.0, seed: int = 0
) -> TrainingData:
    """Items with even and odd rows are two visual clusters, and each user takes items of one.

    Half of the user's cluster is for training, the other half is held out: the right ranking has an
    AUC of 1.
    """
    random = np.random.default_rng(seed)
    direction_D = random.normal(size=dim)
    side_N = np.where(np.arange(items) % 2, 1.0, -1.0)
    feature_ND = 3 + side_N[:, None] * direction_D + noise * random.normal(size=(items, dim))
    train, held = [], []
    for user in range(users):
        taken = random.permutation(np.arange(user % 2, items, 2))
        train.append(sorted(taken[: len(taken) // 2].tolist()))
        held.append(sorted(taken[len(taken) // 2 :].tolist()))
    parts = list(zip(train, held, strict=True))
    return TrainingData(
        item_ids=pa.array([f"i{n:04}" for n in range(items)]),
        user_ids=pa.array([f"u{n:04}" for n in range(users)]),
        feature_ND=feature_ND.astype(np.float16),
        train=jagged_lists(train),
        basket_R=np.concatenate([np.arange(len(items)) for items in train]),
        time_R=DAY * np.concatenate([np.arange(len(items)) for items in train]),
        validation=held_baskets(
            np.arange(users),
            jagged_lists(train),
            jagged_lists(held),
            DAY * np.array([len(items) for items in train]),
        ),
        validation_basket_V=np.concatenate([len(t) + np.arange(len(h)) for t, h in parts]),
        test_pairs=HELD_OUT.empty_table(),
        # All items are ranked, so that the right ranking is known.
        provenance=data_provenance(split=SplitConfig(by="basket")),
    )
