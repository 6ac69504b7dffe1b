"""Embedding MLP: a rating from a small network over a user's and an item's vector.

    x_ui = w . ReLU(W [e_u ; e_i] + b) + c

Loss: the mean squared error of the ratings, and beside each that of a pair whose item the user did
not take and whose target is 0, times a weight. Where nobody rated anything, what was taken counts
1. With a weight of 0 it learns how much users like what they take, and not what they take. Users
and items that training has not seen have no vector: users fall back to the popular items, and items
are not recommended. Vectors begin at 0.01 times a normal number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, known_rows, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.embeddings import of_items, table
from visrec.models.inputs import JaggedTensor, RatingBatch

_ITEMS = 512  # of a tile at a time: 8 MB of hidden values of 128 users


@dataclass(frozen=True, kw_only=True)
class EmbeddingMlpConfig:
    """The sizes of vectors and network.

    Attributes:
        width: of the vectors of users and items.
        hidden: width of the hidden layer.
        untaken: weight of the error on items that were not taken.
    """

    width: int = 10
    hidden: int = 32
    untaken: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "model", width=WIDTHS, hidden=WIDTHS, untaken="[0, 1000000]")


class EmbeddingMlp(nn.Module):
    """See the module's docstring."""

    Config = EmbeddingMlpConfig
    needs = Needs(ratings=True, supports_new_items=False, supports_new_users=False)
    default_overrides: ClassVar[Mapping[str, Any]] = {"train.learning_rate": 1e-2}
    trains_on: Literal["ratings"] = "ratings"

    def __init__(self, config: EmbeddingMlpConfig, sizes: Sizes) -> None:
        super().__init__()
        self._untaken = config.untaken
        self.users = table(sizes.users, config.width, spread=0.01)
        self.items = table(sizes.items, config.width, spread=0.01)
        # One layer over both vectors, as two that are added.
        self.of_user = nn.Linear(config.width, config.hidden)
        self.of_item = nn.Linear(config.width, config.hidden, bias=False)
        self.rating = nn.Linear(config.hidden, 1)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """There is nothing to take."""

    def forward(self, batch: RatingBatch) -> Tensor:
        """The mean of B ratings' squared errors and of those of what was not taken."""
        user_Bh = self.of_user(self.users(batch.user_B))
        rated_B = self._rate(user_Bh, self.of_item(self.items(batch.item_B)))
        other_B = self._rate(user_Bh, self.of_item(self.items(batch.other_B)))
        wrong: Tensor = ((rated_B - batch.rating_B) ** 2 + self._untaken * other_B**2).mean()
        return wrong

    def _rate(self, user_Xh: Tensor, item_Xh: Tensor) -> Tensor:
        rating_X: Tensor = self.rating(torch.relu(user_Xh + item_Xh)).squeeze(-1)
        return rating_X

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`vectors`: (N, width) float32; zeros for unseen items."""
        return {"vectors": of_items(self.items.weight, catalogue)}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> "_MlpScorer":
        return _MlpScorer(self, zero_copy_tensor(arrays["vectors"]).to(self.items.weight.device))


class _MlpScorer:
    """The network over a tile: each user's hidden values and each item's, added."""

    def __init__(self, model: EmbeddingMlp, vectors_Nd: Tensor) -> None:
        self._model, self.space_Nd = model, vectors_Nd
        self.num_items, self.device = len(vectors_Nd), vectors_Nd.device

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        del profiles
        user_Bh: Tensor = self._model.of_user(known_rows(self._model.users.weight, user_B))
        return user_Bh

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        item_Th = self._model.of_item(self.space_Nd[start:stop])
        parts = [self._model._rate(state[:, None], part_th) for part_th in item_Th.split(_ITEMS)]
        return torch.cat(parts, dim=1)
