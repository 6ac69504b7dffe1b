"""Embedding MLP: a small network over a user's and an item's vector predicts a rating.

    x_ui = w . ReLU(W [e_u ; e_i] + b) + c

The loss is the mean squared error of the ratings, plus `untaken` times the mean squared error of
other pairs: for each rating, one item that the user did not take, whose target is 0. Without any
ratings, every item that a user took has a rating of 1. If `untaken` is 0, the model learns how
highly users rate what they take, but not which items they take. Users and items that training has
not seen have no vector, so these users get fallback lists, and these items are not recommended.
Vectors are initialized with a standard deviation of 0.01.

Shapes: B users or ratings, T items of a tile, h hidden width, X any.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.models.arrays import ItemArrays, rows_or_zeros, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelConfig, ModelTraits, Sizes, TrainOverrides
from visrec.models.embeddings import embeddings_for, make_embedding
from visrec.models.inputs import JaggedTensor, RatingBatch
from visrec.models.scorers import TiledScorer

_ITEMS = 512  # of a tile at a time: 8 MB of hidden values for 128 users


@dataclass(frozen=True, kw_only=True)
class EmbeddingMlpConfig(ModelConfig):
    """The sizes of vectors and network, and the loss.

    Attributes:
        width: the width of the users' and items' vectors.
        hidden: width of the hidden layer.
        untaken: weight of the squared error on items that the user did not take.
    """

    width: int = 10
    hidden: int = 32
    untaken: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "model", width=WIDTHS, hidden=WIDTHS, untaken="[0, 1000000]")


class EmbeddingMlp(Model):
    """See the module's docstring."""

    Config = EmbeddingMlpConfig
    traits = ModelTraits(requires_ratings=True, supports_new_items=False, supports_new_users=False)
    default_overrides = TrainOverrides(learning_rate=1e-2)
    trains_on = "ratings"
    item_tables = ("items.weight",)

    def __init__(self, config: EmbeddingMlpConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self._untaken_weight = config.untaken
        self.users = make_embedding(sizes.users, config.width, std=0.01)
        self.items = make_embedding(sizes.items, config.width, std=0.01)
        # W [e_u ; e_i] + b as the sum of two layers: scoring computes the first once for each user,
        # the second once for each item.
        self.user_layer = nn.Linear(config.width, config.hidden)
        self.item_layer = nn.Linear(config.width, config.hidden, bias=False)
        self.rating = nn.Linear(config.hidden, 1)

    def forward(self, batch: RatingBatch) -> Tensor:
        """The mean over B ratings of the squared error, plus the weighted one of the other item."""
        user_Bh = self.user_layer(self.users(batch.user_B))
        rated_B = self.rate(user_Bh, self.item_layer(self.items(batch.item_B)))
        other_B = self.rate(user_Bh, self.item_layer(self.items(batch.other_B)))
        loss: Tensor = ((rated_B - batch.rating_B) ** 2 + self._untaken_weight * other_B**2).mean()
        return loss

    def rate(self, user_Xh: Tensor, item_Xh: Tensor) -> Tensor:
        """(X,) ratings from the two layers' outputs, which may broadcast."""
        rating_X: Tensor = self.rating(torch.relu(user_Xh + item_Xh)).squeeze(-1)
        return rating_X

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`vectors`: (N, width) float32; zeros for unseen items."""
        return {"vectors": embeddings_for(catalogue, self.items.weight)}

    def scorer(self, arrays: ItemArrays) -> "_MlpScorer":
        return _MlpScorer(self, zero_copy_tensor(arrays["vectors"]).to(self.items.weight.device))


class _MlpScorer(TiledScorer):
    """The ratings of a tile; the state is the (B, h) output of the user layer."""

    def __init__(self, model: EmbeddingMlp, vectors_Nd: Tensor) -> None:
        self._model, self._vectors_Nd = model, vectors_Nd
        self.num_items, self.device = len(vectors_Nd), vectors_Nd.device
        self.space_Nd = vectors_Nd

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        del profiles
        user_Bh: Tensor = self._model.user_layer(rows_or_zeros(self._model.users.weight, user_B))
        return user_Bh

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        item_Th = self._model.item_layer(self._vectors_Nd[start:stop])
        parts = [self._model.rate(state[:, None], part_th) for part_th in item_Th.split(_ITEMS)]
        return torch.cat(parts, dim=1)
