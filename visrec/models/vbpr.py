"""VBPR (He & McAuley 2016, arXiv 1510.01784, equation 4): matrix factorisation that sees pictures.

    x_ui = b_i + p_u . q_i + theta_u . (E z_i) + beta . z_i

with p_u, theta_u of each user, q_i, b_i of each item, and E (D -> visual width) and beta (D) of
all; z_i the z-scored feature, of length 1: at their own length pictures outrun p and q in training
and are learned by heart (movies, validation AUC .79 instead of .87). A new item has q and b of
zero: its picture alone speaks. New users have no vector and fall back to the popular items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, encode_in_fixed_batches, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.embeddings import (
    EMBEDDING_DEFAULTS,
    append_bias_column,
    embedding_user_encoder,
    of_items,
    table,
)
from visrec.models.feature_scale import FeatureScale
from visrec.models.inputs import TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.scorers import DotScorer
from visrec.models.sharded_encoding import encoded


@dataclass(frozen=True, kw_only=True)
class VbprConfig(RankingConfig):
    """The sizes of the vectors.

    Attributes:
        loss: softmax, bpr (the paper's), bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; the paper has 1.
        score_penalty: lambda of bpr_max.
        width: of the vectors that pictures say nothing of, p and q; 0 leaves them out.
        visual_width: of theta and E z.
    """

    temperature: float = 7.0
    width: int = 64
    visual_width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "model", width="[0, 65536]", visual_width=WIDTHS)


class Vbpr(nn.Module):
    """See the module's docstring."""

    Config = VbprConfig
    needs = Needs(features=True, supports_new_users=False)
    default_overrides: ClassVar[Mapping[str, Any]] = EMBEDDING_DEFAULTS
    trains_on: Literal["triples"] = "triples"

    def __init__(self, config: VbprConfig, sizes: Sizes) -> None:
        super().__init__()
        self._config = config
        self.feature_scale = FeatureScale(sizes.feature_dim)
        self.users = table(sizes.users, config.width + config.visual_width)
        self.items = table(sizes.items, config.width)
        self.item_bias = table(sizes.items, 1, spread=0.0)
        self.visual = nn.Linear(sizes.feature_dim, config.visual_width, bias=False)
        self.visual_bias = nn.Linear(sizes.feature_dim, 1, bias=False)
        nn.init.xavier_uniform_(self.visual.weight)
        nn.init.zeros_(self.visual_bias.weight)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Takes mean and scale of the features."""
        del train
        self.feature_scale.fit(catalogue.feature_ND)

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples."""
        items, bias = self.items(batch.item_M), self.item_bias(batch.item_M)
        seen_Mv = encoded(batch, lambda some: self._seen(some.feature_MD))
        item_Md = torch.cat([items, seen_Mv[:, :-1], bias + seen_Mv[:, -1:]], dim=1)
        return ranking_loss(
            append_bias_column(self.users(batch.user_B)), item_Md, batch, self._config
        )

    def _seen(self, feature_MD: Tensor) -> Tensor:
        """(M, visual width + 1) what the pictures say: E z, and beta . z last."""
        z_MD = normalize(self.feature_scale(feature_MD))
        return torch.cat([self.visual(z_MD), self.visual_bias(z_MD)], dim=1)

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`vectors`: (N, width + visual width + 1) float32, biases last."""
        own_Nd = of_items(torch.cat([self.items.weight, self.item_bias.weight], dim=1), catalogue)
        seen_Nv = encode_in_fixed_batches(
            catalogue.feature_ND, self._seen, self.users.weight.device
        )
        bias_N1 = own_Nd[:, -1:] + seen_Nv[:, -1:]
        return {"vectors": np.concatenate([own_Nd[:, :-1], seen_Nv[:, :-1], bias_N1], axis=1)}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.users.weight.device)
        users = embedding_user_encoder(self.users)
        return DotScorer(vectors_Nd, lambda *of: append_bias_column(users(*of)), vectors_Nd[:, :-1])
