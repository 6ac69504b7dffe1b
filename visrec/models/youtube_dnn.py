"""The retrieval network of Covington et al. (2016, RecSys, section 3): a tower over a user's items.

    u = tower(mean of e_p over the items p of the profile)     ReLU between layers, none at the end
    x_ui = u . v_i

An item has two vectors, as in the paper: e_p where it is in a profile and v_i where it is scored.
The v_i are the weights of a softmax over all items; if the softmax is over sampled candidates, log
Q is subtracted from their scores. There are no parameters per user, so new users are scored without
retraining. New items have no vector and are not recommended.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelTraits, Sizes
from visrec.models.embeddings import EMBEDDING_DEFAULTS, embeddings_for, make_embedding
from visrec.models.inputs import JaggedTensor, TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer


@dataclass(frozen=True, kw_only=True)
class YoutubeDnnConfig(RankingConfig):
    """The sizes of vectors and tower, and the loss.

    Attributes:
        loss: softmax (the paper's), bpr, bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; 1 in the paper.
        score_penalty: lambda of bpr_max.
        width: the width of the items' and users' vectors.
        hidden: width of the tower's hidden layer.
    """

    temperature: float = 7.0
    width: int = 64
    hidden: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "model", width=WIDTHS, hidden=WIDTHS)


class YoutubeDnn(Model):
    """See the module's docstring."""

    Config = YoutubeDnnConfig
    traits = ModelTraits(supports_new_items=False)
    default_overrides = EMBEDDING_DEFAULTS
    trains_on = "triples"
    item_tables = ("taken.weight", "items.weight")

    def __init__(self, config: YoutubeDnnConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self._config = config
        self.taken = make_embedding(sizes.items, config.width)  # e
        self.items = make_embedding(sizes.items, config.width)  # v
        self.tower = nn.Sequential(
            nn.Linear(config.width, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.width),
        )

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples."""
        user_Bd = self._encode_users(self.taken(batch.item_M), batch.profiles)
        return ranking_loss(user_Bd, self.items(batch.item_M), batch, self._config)

    def _encode_users(self, taken_Md: Tensor, profiles: JaggedTensor) -> Tensor:
        """(B, width) vectors of B users from the (M, width) vectors that profiles point into."""
        user_Bd: Tensor = self.tower(pool(taken_Md, profiles, "mean"))
        return user_Bd

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`taken` and `vectors`: (N, width) float32; zeros for unseen items."""
        return {
            "taken": embeddings_for(catalogue, self.taken.weight),
            "vectors": embeddings_for(catalogue, self.items.weight),
        }

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        device = self.items.weight.device
        taken_Nd, vectors_Nd = (
            zero_copy_tensor(arrays[name]).to(device) for name in ("taken", "vectors")
        )
        return DotScorer(
            vectors_Nd, lambda profiles, _: self._encode_users(taken_Nd, profiles), vectors_Nd
        )
