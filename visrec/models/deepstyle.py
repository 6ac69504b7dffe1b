"""DeepStyle (Liu, Wu & Wang 2017, SIGIR, equation 3): style is appearance less category.

    x_ui = p_u . (E z_i - l_cat(i) + q_i)

with p_u of each user, q_i of each item, l of each category, E (D -> width) of all; z_i the z-scored
feature, of length 1 as in `visrec.models.vbpr`. A new item has q of zero, and one of no known
category l of zero. New users have no vector and fall back to the popular items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn.functional import normalize

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, encode_in_fixed_batches, known_rows, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.embeddings import EMBEDDING_DEFAULTS, embedding_user_encoder, of_items, table
from visrec.models.feature_scale import FeatureScale
from visrec.models.inputs import TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.scorers import DotScorer
from visrec.models.sharded_encoding import encoded


@dataclass(frozen=True, kw_only=True)
class DeepStyleConfig(RankingConfig):
    """The size of the vectors.

    Attributes:
        loss: softmax, bpr (the paper's), bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; the paper has 1.
        score_penalty: lambda of bpr_max.
        width: of the vectors of users, items, categories and appearance.
    """

    temperature: float = 7.0
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "model", width=WIDTHS)


class DeepStyle(nn.Module):
    """See the module's docstring."""

    Config = DeepStyleConfig
    needs = Needs(features=True, categories=True, supports_new_users=False)
    default_overrides: ClassVar[Mapping[str, Any]] = EMBEDDING_DEFAULTS
    trains_on: Literal["triples"] = "triples"

    def __init__(self, config: DeepStyleConfig, sizes: Sizes) -> None:
        super().__init__()
        self._config = config
        self.feature_scale = FeatureScale(sizes.feature_dim)
        self.users = table(sizes.users, config.width)
        self.items = table(sizes.items, config.width)
        # At least one row: an embedding of none cannot be looked up in.
        self.categories = table(max(1, sizes.categories), config.width)
        self.visual = nn.Linear(sizes.feature_dim, config.width, bias=False)
        nn.init.xavier_uniform_(self.visual.weight)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Takes mean and scale of the features."""
        del train
        self.feature_scale.fit(catalogue.feature_ND)

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples."""
        code_M = batch.category_M
        category_Md = self.categories(code_M.clamp(min=0)) * (code_M >= 0)[:, None]
        appearance_Md = encoded(batch, lambda some: self._appearance(some.feature_MD))
        item_Md = appearance_Md - category_Md + self.items(batch.item_M)
        return ranking_loss(self.users(batch.user_B), item_Md, batch, self._config)

    def _appearance(self, feature_MD: Tensor) -> Tensor:
        appearance_Md: Tensor = self.visual(normalize(self.feature_scale(feature_MD)))
        return appearance_Md

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`vectors`: (N, width) float32."""
        vectors_Nd = encode_in_fixed_batches(
            catalogue.feature_ND, self._appearance, self.users.weight.device
        )
        vectors_Nd += of_items(self.items.weight, catalogue)
        none_N = np.full(len(catalogue), -1)
        code_N = none_N if catalogue.category_N is None else catalogue.category_N
        vectors_Nd -= known_rows(self.categories.weight.detach().cpu(), code_N).numpy()
        return {"vectors": vectors_Nd}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.users.weight.device)
        return DotScorer(vectors_Nd, embedding_user_encoder(self.users), vectors_Nd)
