"""DeepStyle (Liu, Wu & Wang 2017, SIGIR, equation 3): style is appearance minus category.

    x_ui = p_u . (E z_i - l_cat(i) + q_i)

p_u, q_i and l are vectors of each user, item and category; E (D -> width) is shared; z_i is the
z-scored feature scaled to length 1, as in `visrec.models.vbpr`. q is zero for a new item, and l is
zero for an item without a known category. New users have no vector and get fallback lists.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import normalize

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import (
    ItemArrays,
    encode_in_fixed_batches,
    zero_copy_tensor,
)
from visrec.models.base import Catalogue, Model, ModelTraits, Sizes
from visrec.models.embeddings import (
    EMBEDDING_DEFAULTS,
    embedding_rows,
    embedding_user_encoder,
    embeddings_for,
    make_embedding,
)
from visrec.models.feature_scale import FeatureScale
from visrec.models.inputs import TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.scorers import DotScorer
from visrec.models.sliced_encoding import encode_sliced


@dataclass(frozen=True, kw_only=True)
class DeepStyleConfig(RankingConfig):
    """The width of the vectors, and the loss.

    Attributes:
        loss: softmax, bpr (the paper's), bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; 1 in the paper.
        score_penalty: lambda of bpr_max.
        width: the width of the vectors of users, items, categories and appearance.
    """

    temperature: float = 7.0
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "model", width=WIDTHS)


class DeepStyle(Model):
    """See the module's docstring."""

    Config = DeepStyleConfig
    traits = ModelTraits(requires_features=True, requires_categories=True, supports_new_users=False)
    default_overrides = EMBEDDING_DEFAULTS
    trains_on = "triples"
    item_tables = ("items.weight",)

    def __init__(self, config: DeepStyleConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self._config = config
        self.feature_scale = FeatureScale(sizes.feature_dim)
        self.users = make_embedding(sizes.users, config.width)
        self.items = make_embedding(sizes.items, config.width)
        # At least one row, because `forward` looks up row 0 for an item without a category.
        self.categories = make_embedding(max(1, sizes.categories), config.width)
        self.visual = nn.Linear(sizes.feature_dim, config.width, bias=False)
        nn.init.xavier_uniform_(self.visual.weight)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Computes the mean and the scale of the features."""
        del train
        self.feature_scale.fit(catalogue.feature_ND)

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples."""
        code_M = batch.category_M
        category_Md = self.categories(code_M.clamp(min=0)) * (code_M >= 0)[:, None]
        appearance_Md = encode_sliced(batch, lambda part: self._appearance(part.feature_MD))
        item_Md = appearance_Md - category_Md + self.items(batch.item_M)
        return ranking_loss(self.users(batch.user_B), item_Md, batch, self._config)

    def _appearance(self, feature_MD: Tensor) -> Tensor:
        """(M, width) E z."""
        appearance_Md: Tensor = self.visual(normalize(self.feature_scale(feature_MD)))
        return appearance_Md

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`vectors`: (N, width) float32."""
        vectors_Nd = encode_in_fixed_batches(
            catalogue.feature_ND, self._appearance, self.users.weight.device
        )
        vectors_Nd += embeddings_for(catalogue, self.items.weight)
        none_N = np.full(len(catalogue), -1)
        code_N = none_N if catalogue.category_N is None else catalogue.category_N
        vectors_Nd -= embedding_rows(self.categories.weight, code_N)
        return {"vectors": vectors_Nd}

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.users.weight.device)
        return DotScorer(vectors_Nd, embedding_user_encoder(self.users), vectors_Nd)
