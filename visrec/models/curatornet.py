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
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy.typing as npt
from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, encode_in_fixed_batches, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.dropout import dropped, levels, scaled_and_dropped
from visrec.models.feature_scale import FeatureScale, Whitening
from visrec.models.inputs import JaggedTensor, TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.pooling import max_and_mean
from visrec.models.scorers import DotScorer
from visrec.models.sharded_encoding import encoded


@dataclass(frozen=True, kw_only=True)
class CuratorNetConfig(RankingConfig):
    """Widths of the towers, the paper's by default, and what prevents overfitting.

    Attributes:
        loss: softmax, bpr (the paper's), bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; the paper has 1.
        score_penalty: lambda of bpr_max.
        item_width: width of both layers of the item tower, and so of the vectors.
        user_width: width of the two hidden layers of the user tower.
        feature_dropout: share of the features set to zero in training, in steps of 1/256; the paper
            has 0.
        whiten: the towers see this many principal components of the features, each of variance
            one, instead of all features z-scored; 0, as in the paper, is the latter.
    """

    item_width: int = 200
    user_width: int = 300
    # Measured on three data sets (docs/decisions.md). SELU towers of 200 begin with logits of some
    # 14 = sqrt(200), and a softmax that is sure of itself from the start learns by heart.
    temperature: float = 30.0
    feature_dropout: float = 0.5
    whiten: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(
            self,
            "model",
            item_width=WIDTHS,
            user_width=WIDTHS,
            feature_dropout="[0, 1)",
            whiten="[0, 65536]",
        )


class CuratorNet(nn.Module):
    """See the module's docstring."""

    Config = CuratorNetConfig
    needs = Needs(features=True)
    default_overrides: ClassVar[Mapping[str, Any]] = {}
    trains_on: Literal["triples"] = "triples"

    def __init__(self, config: CuratorNetConfig, sizes: Sizes) -> None:
        super().__init__()
        d, hidden = config.item_width, config.user_width
        self._config = config
        self._zeroed = levels(config.feature_dropout)
        seen = config.whiten or sizes.feature_dim
        if seen > sizes.feature_dim:
            raise InputError(
                f"Found --model.whiten {seen}; expected at most the {sizes.feature_dim} dimensions "
                "of the features."
            )
        self.feature_scale = (
            Whitening(sizes.feature_dim, seen) if config.whiten else FeatureScale(seen)
        )
        self.item_tower = _selu_tower(seen, d, d)
        self.user_tower = _selu_tower(2 * d, hidden, hidden, d)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Takes mean and scale of the features of the items that training can draw."""
        del train
        self.feature_scale.fit(catalogue.feature_ND)

    def encode_items(self, feature_MD: Tensor) -> Tensor:
        """(M, d) vectors of M items from their raw (M, D) features."""
        vectors: Tensor = self.item_tower(self.feature_scale(feature_MD))
        return vectors

    def _inputs(self, batch: TripleBatch) -> Tensor:
        """(M, D) what the item tower sees of a batch's items in training."""
        scale, zeroed = self.feature_scale, self._zeroed if self.training else 0
        if isinstance(scale, FeatureScale):
            return scaled_and_dropped(batch.feature_MD, scale, batch.item_M, batch.seed, zeroed)
        return dropped(scale(batch.feature_MD), batch.item_M, batch.seed, zeroed)

    def encode_users(self, vector_Md: Tensor, profiles: JaggedTensor) -> Tensor:
        """(B, d) vectors of B users from the (M, d) vectors that their profiles point into."""
        vectors: Tensor = self.user_tower(max_and_mean(vector_Md, profiles))
        return vectors

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples; the item tower runs once per distinct item."""
        item_Md = encoded(batch, lambda some: self.item_tower(self._inputs(some)))
        user_Bd = self.encode_users(item_Md, batch.profiles)
        return ranking_loss(user_Bd, item_Md, batch, self._config)

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`vectors`: (N, d) float32."""
        device = next(self.parameters()).device
        return {"vectors": encode_in_fixed_batches(catalogue.feature_ND, self.encode_items, device)}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        device = next(self.parameters()).device
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(device)
        users = lambda bags, _: self.encode_users(vectors_Nd, bags)  # noqa: E731
        return DotScorer(vectors_Nd, users, vectors_Nd)


def _selu_tower(*widths: int) -> nn.Sequential:
    """Linear and SELU from each width to the next; Xavier-uniform weights, zero biases."""
    layers: list[nn.Module] = []
    for wide_in, wide_out in pairwise(widths):
        linear = nn.Linear(wide_in, wide_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU()]
    return nn.Sequential(*layers)
