"""CuratorNet (Messina et al. 2020, arXiv 2009.04426): a user is represented by the items they took.

The item tower phi is shared by profile items, positives and negatives (section 4):

    phi(i) = SELU(W2 SELU(W1 z_i + b1) + b2)          D -> 200 -> 200, z_i the z-scored feature

The user tower reads the items P of a profile:

    u = tower([max_{i in P} phi(i) ; mean_{i in P} phi(i)])      400 -> 300 -> 300 -> 200, SELU each

The score is x_ui = u . phi(i); the paper's loss is -log sigmoid(x_ui - x_uj) over triples
(equation 7). There are no parameters per user or per item, so new users and new items are scored
without retraining.

Shapes: B examples, M distinct items of a batch, N items of the catalogue, D feature width, d width
of a vector.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays, encode_in_fixed_batches, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelTraits, Sizes
from visrec.models.dropout import dropout_threshold, scale_and_drop
from visrec.models.feature_scale import FeatureScale
from visrec.models.inputs import JaggedTensor, TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.pooling import max_and_mean
from visrec.models.scorers import DotScorer
from visrec.models.sliced_encoding import encode_sliced


@dataclass(frozen=True, kw_only=True)
class CuratorNetConfig(RankingConfig):
    """Widths of the towers (by default the paper's), the loss, and regularization.

    Attributes:
        loss: softmax, bpr (the paper's), bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; 1 in the paper.
        score_penalty: lambda of bpr_max.
        item_width: width of both layers of the item tower, and so of the vectors.
        user_width: width of the two hidden layers of the user tower.
        feature_dropout: share of the features that is set to zero in training, in steps of 1/256;
            0 in the paper.
    """

    item_width: int = 200
    user_width: int = 300
    # Measured on three data sets (docs/decisions.md). SELU towers of width 200 start with logits of
    # about 14 = sqrt(200). A softmax that is this confident from the start overfits.
    temperature: float = 30.0
    feature_dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "model", item_width=WIDTHS, user_width=WIDTHS, feature_dropout="[0, 1)")


class CuratorNet(Model):
    """See the module's docstring."""

    Config = CuratorNetConfig
    traits = ModelTraits(requires_features=True)
    trains_on = "triples"

    def __init__(self, config: CuratorNetConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        d, hidden = config.item_width, config.user_width
        self._config = config
        self._dropout_threshold = dropout_threshold(config.feature_dropout)
        self.feature_scale = FeatureScale(sizes.feature_dim)
        self.item_tower = selu_tower(sizes.feature_dim, d, d)
        self.user_tower = selu_tower(2 * d, hidden, hidden, d)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Computes the mean and the scale of the features."""
        del train
        self.feature_scale.fit(catalogue.feature_ND)

    def encode_items(self, feature_MD: Tensor) -> Tensor:
        """(M, d) vectors of M items from their raw (M, D) features."""
        vectors: Tensor = self.item_tower(self.feature_scale(feature_MD))
        return vectors

    def encode_users(self, vector_Md: Tensor, profiles: JaggedTensor) -> Tensor:
        """(B, d) vectors of B users from the (M, d) vectors that their profiles point into."""
        vectors: Tensor = self.user_tower(max_and_mean(vector_Md, profiles))
        return vectors

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples; the item tower runs once for each distinct item."""
        item_Md = encode_sliced(batch, self._encode_batch)
        user_Bd = self.encode_users(item_Md, batch.profiles)
        return ranking_loss(user_Bd, item_Md, batch, self._config)

    def _encode_batch(self, batch: TripleBatch) -> Tensor:
        """(M, d) vectors of a batch's items, with feature dropout in training."""
        threshold = self._dropout_threshold if self.training else 0
        input_MD = scale_and_drop(
            batch.feature_MD, self.feature_scale, batch.item_M, batch.seed, threshold
        )
        vectors: Tensor = self.item_tower(input_MD)
        return vectors

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`vectors`: (N, d) float32."""
        device = next(self.parameters()).device
        return {"vectors": encode_in_fixed_batches(catalogue.feature_ND, self.encode_items, device)}

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        device = next(self.parameters()).device
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(device)
        return DotScorer(
            vectors_Nd, lambda profiles, _: self.encode_users(vectors_Nd, profiles), vectors_Nd
        )


def selu_tower(*widths: int) -> nn.Sequential:
    """Linear and SELU from each width to the next; Xavier-uniform weights, zero biases."""
    layers: list[nn.Module] = []
    for wide_in, wide_out in pairwise(widths):
        linear = nn.Linear(wide_in, wide_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU()]
    return nn.Sequential(*layers)
