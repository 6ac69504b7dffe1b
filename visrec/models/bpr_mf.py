"""BPR-MF (Rendle et al. 2009, arXiv 1205.2618): a vector for each user and item, an item bias.

    x_ui = b_i + p_u . q_i

with a ranking loss over it; the paper's is bpr. Users and items that training has not seen have no
vector, so users fall back to the popular items, and items are not recommended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.embeddings import (
    EMBEDDING_DEFAULTS,
    append_bias_column,
    embedding_user_encoder,
    of_items,
    table,
)
from visrec.models.inputs import TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.scorers import DotScorer


@dataclass(frozen=True, kw_only=True)
class BprMfConfig(RankingConfig):
    """The size of the vectors.

    Attributes:
        loss: softmax, bpr (the paper's), bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; the paper has 1.
        score_penalty: lambda of bpr_max.
        width: of the vectors of users and items.
    """

    temperature: float = 7.0
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "model", width=WIDTHS)


class BprMf(nn.Module):
    """See the module's docstring."""

    Config = BprMfConfig
    needs = Needs(supports_new_items=False, supports_new_users=False)
    default_overrides: ClassVar[Mapping[str, Any]] = EMBEDDING_DEFAULTS
    trains_on: Literal["triples"] = "triples"

    def __init__(self, config: BprMfConfig, sizes: Sizes) -> None:
        super().__init__()
        self._config = config
        self.users = table(sizes.users, config.width)
        self.items = table(sizes.items, config.width)
        self.item_bias = table(sizes.items, 1, spread=0.0)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """There is nothing to take."""

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples."""
        item_Md = torch.cat([self.items(batch.item_M), self.item_bias(batch.item_M)], dim=1)
        return ranking_loss(
            append_bias_column(self.users(batch.user_B)), item_Md, batch, self._config
        )

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`vectors`: (N, width + 1) float32, the bias last; zeros for unseen items."""
        item_Id = torch.cat([self.items.weight, self.item_bias.weight], dim=1)
        return {"vectors": of_items(item_Id, catalogue)}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.users.weight.device)
        users = embedding_user_encoder(self.users)
        return DotScorer(vectors_Nd, lambda *of: append_bias_column(users(*of)), vectors_Nd[:, :-1])
