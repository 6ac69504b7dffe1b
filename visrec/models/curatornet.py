"""CuratorNet (Messina et al. 2020, arXiv 2009.04426): a user is what the pooled items say.

Item tower phi, shared by profile items, positives and negatives (section 4):

    phi(i) = SELU(W2 SELU(W1 z_i + b1) + b2)          D -> 200 -> 200, z_i the z-scored feature

User tower over the items P of a profile:

    u = tower([max_{i in P} phi(i) ; mean_{i in P} phi(i)])      400 -> 300 -> 300 -> 200, SELU each

Score x_ui = u . phi(i); loss -log sigmoid(x_ui - x_uj) over triples (equation 7). There is no
parameter of a user or of an item, so new users and new items are scored without retraining.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from visrec.models.contract import (
    Arrays,
    Bags,
    Catalogue,
    DotScorer,
    Needs,
    Sizes,
    TripleBatch,
    in_blocks,
    pool,
)
from visrec.models.statistics import FeatureScale
from visrec.ragged import Ragged


@dataclass(frozen=True, kw_only=True)
class CuratorNetConfig:
    """Widths of the towers; the defaults are the paper's.

    Attributes:
        item_width: width of both layers of the item tower, and so of the vectors.
        user_width: width of the two hidden layers of the user tower.
    """

    item_width: int = 200
    user_width: int = 300


class CuratorNet(nn.Module):
    """See the module's docstring."""

    Config = CuratorNetConfig
    needs = Needs(features=True)
    trains_on: Literal["triples"] = "triples"

    def __init__(self, config: CuratorNetConfig, sizes: Sizes) -> None:
        super().__init__()
        d, hidden = config.item_width, config.user_width
        self.feature_scale = FeatureScale(sizes.feature_dim)
        self.item_tower = _selu_tower(sizes.feature_dim, d, d)
        self.user_tower = _selu_tower(2 * d, hidden, hidden, d)

    def fit(self, catalogue: Catalogue, train: Ragged) -> None:
        """Takes mean and scale of the features of the items that training can draw."""
        del train
        self.feature_scale.fit(catalogue.feature_ND)

    def encode_items(self, feature_MD: Tensor) -> Tensor:
        """(M, d) vectors of M items from their raw (M, D) features."""
        vectors: Tensor = self.item_tower(self.feature_scale(feature_MD))
        return vectors

    def encode_users(self, vector_Md: Tensor, profiles: Bags) -> Tensor:
        """(B, d) vectors of B users from the (M, d) vectors that their profiles point into."""
        pools = [pool(vector_Md, profiles, "max"), pool(vector_Md, profiles, "mean")]
        pooled = torch.cat(pools, dim=1)
        vectors: Tensor = self.user_tower(pooled)
        return vectors

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B triples; the item tower runs once per distinct item."""
        item_Md = self.encode_items(batch.feature_MD)
        user_Bd = self.encode_users(item_Md, batch.profiles)
        difference_Bd = item_Md[batch.positive_B] - item_Md[batch.negative_B]
        return functional.softplus(-(user_Bd * difference_Bd).sum(dim=1)).mean()

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`vectors`: (N, d) float32."""
        device = next(self.parameters()).device
        encode = lambda block: self.encode_items(block.to(device))
        return {"vectors": in_blocks(catalogue.feature_ND, encode)}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        vectors_Nd = torch.from_numpy(np.asarray(arrays["vectors"]))
        users = lambda bags, _: self.encode_users(vectors_Nd, bags)
        return DotScorer(vectors_Nd, users)


def _selu_tower(*widths: int) -> nn.Sequential:
    """Linear and SELU from each width to the next; Xavier-uniform weights, zero biases."""
    layers: list[nn.Module] = []
    for wide_in, wide_out in zip(widths[:-1], widths[1:], strict=True):
        linear = nn.Linear(wide_in, wide_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU()]
    return nn.Sequential(*layers)
