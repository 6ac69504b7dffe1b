"""The retrieval network of Covington et al. (2016, RecSys, section 3): a tower over items.

    u = tower(mean of e_p over the items p of the profile)     ReLU between layers, none at the end
    x_ui = u . v_i

with e_p the vector of an item that was taken and v_i that of one that may be: two tables, as in the
paper, where the latter are the weights of a softmax over all items; of candidates that were drawn,
log Q is taken off. There is no parameter of a user, so new users are scored without retraining; new
items have no vector and are not recommended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy.typing as npt
from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.embeddings import EMBEDDING_DEFAULTS, of_items, table
from visrec.models.inputs import JaggedTensor, TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer


@dataclass(frozen=True, kw_only=True)
class YoutubeDnnConfig(RankingConfig):
    """The sizes of vectors and tower.

    Attributes:
        loss: softmax (the paper's), bpr, bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; the paper has 1.
        score_penalty: lambda of bpr_max.
        width: of the vectors of items and users.
        hidden: width of the tower's hidden layer.
    """

    temperature: float = 7.0
    width: int = 64
    hidden: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "model", width=WIDTHS, hidden=WIDTHS)


class YoutubeDnn(nn.Module):
    """See the module's docstring."""

    Config = YoutubeDnnConfig
    needs = Needs(supports_new_items=False)
    default_overrides: ClassVar[Mapping[str, Any]] = EMBEDDING_DEFAULTS
    trains_on: Literal["triples"] = "triples"

    def __init__(self, config: YoutubeDnnConfig, sizes: Sizes) -> None:
        super().__init__()
        self._config = config
        self.taken = table(sizes.items, config.width)
        self.items = table(sizes.items, config.width)
        self.tower = nn.Sequential(
            nn.Linear(config.width, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.width),
        )

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """There is nothing to take."""

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples."""
        user_Bd = self._users(self.taken(batch.item_M), batch.profiles)
        return ranking_loss(user_Bd, self.items(batch.item_M), batch, self._config)

    def _users(self, taken_Md: Tensor, profiles: JaggedTensor) -> Tensor:
        """(B, width) vectors of B users from those of the items that their profiles point into."""
        user_Bd: Tensor = self.tower(pool(taken_Md, profiles, "mean"))
        return user_Bd

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`taken` and `vectors`: (N, width) float32; zeros for unseen items."""
        return {
            "taken": of_items(self.taken.weight, catalogue),
            "vectors": of_items(self.items.weight, catalogue),
        }

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        device = self.items.weight.device
        taken_Nd, vectors_Nd = (
            zero_copy_tensor(arrays[name]).to(device) for name in ("taken", "vectors")
        )
        return DotScorer(vectors_Nd, lambda bags, _: self._users(taken_Nd, bags), vectors_Nd)
