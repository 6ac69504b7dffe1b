"""VBPR (He & McAuley 2016, arXiv 1510.01784, equation 4): matrix factorization with pictures.

    x_ui = b_i + p_u . q_i + theta_u . (E z_i) + beta . z_i

p_u and theta_u are vectors of each user, q_i and b_i a vector and a bias of each item; E
(D -> visual width) and beta (D) are shared by all. z_i is the z-scored feature, scaled to length 1.
Without this scaling the visual part dominates p and q in training and overfits (movies: validation
AUC 0.79 instead of 0.87). q and b are zero for a new item, so that its score comes from its picture
alone. New users have no vector and get fallback lists.

Shapes: B examples, M distinct items of a batch, I items of training, N items of the catalogue, D
feature width, d width of a vector, v visual width + 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays, encode_in_fixed_batches, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelTraits, Sizes
from visrec.models.embeddings import (
    EMBEDDING_DEFAULTS,
    append_bias_column,
    embedding_user_encoder,
    embeddings_for,
    make_embedding,
)
from visrec.models.feature_scale import FeatureScale
from visrec.models.inputs import TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.scorers import DotScorer
from visrec.models.sliced_encoding import encode_sliced
from visrec.scratch import scratch_array


@dataclass(frozen=True, kw_only=True)
class VbprConfig(RankingConfig):
    """The widths of the vectors, and the loss.

    Attributes:
        loss: softmax, bpr (the paper's), bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; 1 in the paper.
        score_penalty: lambda of bpr_max.
        width: the width of p and q, which do not depend on pictures; 0 leaves them out.
        visual_width: the width of theta and E z.
    """

    temperature: float = 7.0
    width: int = 64
    visual_width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "model", width="[0, 65536]", visual_width=WIDTHS)


class Vbpr(Model):
    """See the module's docstring."""

    Config = VbprConfig
    traits = ModelTraits(requires_features=True, supports_new_users=False)
    default_overrides = EMBEDDING_DEFAULTS
    trains_on = "triples"
    item_tables = ("items.weight", "item_bias.weight")

    def __init__(self, config: VbprConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self._config = config
        self.feature_scale = FeatureScale(sizes.feature_dim)
        self.users = make_embedding(sizes.users, config.width + config.visual_width)
        self.items = make_embedding(sizes.items, config.width)
        self.item_bias = make_embedding(sizes.items, 1, std=0.0)
        self.visual = nn.Linear(sizes.feature_dim, config.visual_width, bias=False)
        self.visual_bias = nn.Linear(sizes.feature_dim, 1, bias=False)
        nn.init.xavier_uniform_(self.visual.weight)
        nn.init.zeros_(self.visual_bias.weight)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Computes the mean and the scale of the features."""
        del train
        self.feature_scale.fit(catalogue.feature_ND)

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples."""
        items, bias = self.items(batch.item_M), self.item_bias(batch.item_M)
        visual_Mv = encode_sliced(batch, lambda part: self._visual_part(part.feature_MD))
        item_Md = torch.cat([items, visual_Mv[:, :-1], bias + visual_Mv[:, -1:]], dim=1)
        return ranking_loss(
            append_bias_column(self.users(batch.user_B)), item_Md, batch, self._config
        )

    def _visual_part(self, feature_MD: Tensor) -> Tensor:
        """(M, visual width + 1) E z, followed by beta . z."""
        z_MD = normalize(self.feature_scale(feature_MD))
        return torch.cat([self.visual(z_MD), self.visual_bias(z_MD)], dim=1)

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`vectors`: (N, width + visual width + 1) float32, the bias last."""
        item_Id = torch.cat([self.items.weight, self.item_bias.weight], dim=1)
        item_Nd = embeddings_for(catalogue, item_Id)
        visual_Nv = encode_in_fixed_batches(
            catalogue.feature_ND, self._visual_part, self.users.weight.device
        )
        parts = [item_Nd[:, :-1], visual_Nv[:, :-1], item_Nd[:, -1:] + visual_Nv[:, -1:]]
        vectors_Nd = scratch_array((len(catalogue), sum(p.shape[1] for p in parts)), np.float32)
        return {"vectors": np.concatenate(parts, axis=1, out=vectors_Nd)}

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.users.weight.device)
        users = embedding_user_encoder(self.users, with_bias=True)
        return DotScorer(vectors_Nd, users, vectors_Nd[:, :-1])
