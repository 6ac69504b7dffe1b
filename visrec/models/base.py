"""What every model is to the jobs: how it is built, what it trains on, how it scores.

A model is a `torch.nn.Module` with a `Config` dataclass in its own file, and an entry in
`visrec.models.MODELS`. The jobs know nothing else about it:

    needs       which facts it wants beside the interactions, and whether it can score what it has
                not seen
    suggests    keys of jobs/train.py whose defaults are others for this model
    trains_on   which kind of batch `forward` takes, a key of `visrec.training.batches.SOURCES`,
                or "nothing" for a model that is fitted by `fit` alone
    fit         takes what can be computed in closed form (feature statistics, counts)
    forward     the mean loss of one batch
    item_arrays what scoring needs about the items, computed once and shared by every worker
    scorer      a scorer over those arrays: vectors for a dot product, or any tile of scores
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from visrec.jagged import Jagged
from visrec.models.arrays import Arrays
from visrec.models.scorers import Scorer


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a model wants of the data, and what it can do without.

    Args:
        interactions: what was taken by whom, for its training.
        features: visual features of the items.
        categories: the category of each item.
        ratings: what users thought of the items they took, where that is known.
        supports_new_items: it scores items that training has not seen; otherwise these are not
            recommended.
        supports_new_users: it scores users that training has not seen, from their profile.
        personal: its scores differ between users.
    """

    interactions: bool = True
    features: bool = False
    categories: bool = False
    ratings: bool = False
    supports_new_items: bool = True
    supports_new_users: bool = True
    personal: bool = True


@dataclass(frozen=True)
class Catalogue:
    """The items to train on or to score.

    Args:
        feature_ND: (N, D) visual features, float16 or float32.
        trained_N: (N,) each item's row in the model's own items, -1 for one it has not seen.
        category_N: (N,) the code of each item's category among those of training, -1 for none and
            for others; None for a model that does not ask.
    """

    feature_ND: npt.NDArray[Any]
    trained_N: npt.NDArray[np.int64]
    category_N: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.feature_ND)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model's parameters are sized by: counts of what training saw, and D."""

    items: int
    users: int
    feature_dim: int
    categories: int = 0


class Model(Protocol):
    """See the module's docstring. Constructed as `Model(config, sizes)`."""

    needs: Needs
    default_overrides: Mapping[str, Any]
    trains_on: str

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Takes from the catalogue and each user's training items what needs no gradient."""

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """What scoring needs about the N items; first axis N, computed once."""

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Scorer: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
