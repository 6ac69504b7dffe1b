"""BPR-MF (Rendle et al. 2009, arXiv 1205.2618): matrix factorization with a ranking loss.

    x_ui = b_i + p_u . q_i

p_u and q_i are vectors of each user and item, b_i is the item's bias. The paper's loss is bpr.
Users and items that training has not seen have no vector, so these users get fallback lists, and
these items are not recommended.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from visrec.config import WIDTHS, check_fields
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelTraits, Sizes
from visrec.models.embeddings import (
    EMBEDDING_DEFAULTS,
    append_bias_column,
    embedding_user_encoder,
    embeddings_for,
    make_embedding,
)
from visrec.models.inputs import TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.scorers import DotScorer


@dataclass(frozen=True, kw_only=True)
class BprMfConfig(RankingConfig):
    """The width of the vectors, and the loss.

    Attributes:
        loss: softmax, bpr (the paper's), bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; 1 in the paper.
        score_penalty: lambda of bpr_max.
        width: the width of the users' and items' vectors.
    """

    temperature: float = 7.0
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "model", width=WIDTHS)


class BprMf(Model):
    """See the module's docstring."""

    Config = BprMfConfig
    traits = ModelTraits(supports_new_items=False, supports_new_users=False)
    default_overrides = EMBEDDING_DEFAULTS
    trains_on = "triples"
    item_tables = ("items.weight", "item_bias.weight")

    def __init__(self, config: BprMfConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self._config = config
        self.users = make_embedding(sizes.users, config.width)
        self.items = make_embedding(sizes.items, config.width)
        self.item_bias = make_embedding(sizes.items, 1, std=0.0)

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples."""
        item_Md = torch.cat([self.items(batch.item_M), self.item_bias(batch.item_M)], dim=1)
        user_Bd = append_bias_column(self.users(batch.user_B))
        return ranking_loss(user_Bd, item_Md, batch, self._config)

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`vectors`: (N, width + 1) float32, the bias last; zeros for unseen items."""
        item_Id = torch.cat([self.items.weight, self.item_bias.weight], dim=1)
        return {"vectors": embeddings_for(catalogue, item_Id)}

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.users.weight.device)
        users = embedding_user_encoder(self.users, with_bias=True)
        return DotScorer(vectors_Nd, users, vectors_Nd[:, :-1])
