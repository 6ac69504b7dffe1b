"""Item co-occurrence: two items have similar vectors if the same users took both.

The items' vectors v minimize, over all pairs of different items,

    sum over i != j of (v_i . v_j - X_ij)^2       X = S^T S, the number of users who took both

where S has a row of zeros and ones for each user. X is never built. With s_u, the sum of the
vectors of the items that user u took, the sum above is, up to a constant,

    |V^T V|^2 - sum_i |v_i|^4 - 2 sum_u (|s_u|^2 - sum over i of u of |v_i|^2)

The first two terms take N d^2 operations. The last term is a sum over users, which each training
step estimates from some of them. A user's score of item i is the mean of v . v_i over the items of
the profile. New users are scored by their profile; new items have no vector and are not
recommended.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelConfig, ModelTraits, Sizes, TrainOverrides
from visrec.models.embeddings import embeddings_for
from visrec.models.inputs import UserBatch
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer


@dataclass(frozen=True, kw_only=True)
class CooccurrenceConfig(ModelConfig):
    """The width of the vectors.

    Attributes:
        width: the width of the items' vectors.
    """

    width: int = 64

    def __post_init__(self) -> None:
        check_fields(self, "model", width=WIDTHS)


class Cooccurrence(Model):
    """See the module's docstring."""

    Config = CooccurrenceConfig
    traits = ModelTraits(supports_new_items=False)
    default_overrides = TrainOverrides(learning_rate=1e-2, weight_decay=1e-2)
    trains_on = "users"
    item_tables = ("vectors",)
    num_users: Tensor

    def __init__(self, config: CooccurrenceConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.vectors = nn.Parameter(torch.empty(sizes.items, config.width))
        nn.init.normal_(self.vectors, std=0.1)
        self.register_buffer("num_users", torch.zeros(()))

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Counts the users with a training item."""
        del catalogue
        self.num_users.fill_(float((train.lengths > 0).sum()))

    def forward(self, batch: UserBatch) -> Tensor:
        """An unbiased estimate of the sum, divided by the number of users."""
        square_I = (self.vectors**2).sum(dim=1)
        all_pairs = (self.vectors.T @ self.vectors).square().sum() - square_I.square().sum()
        items = batch.items
        sum_Bd = pool(self.vectors, items, "sum")
        user_pairs = (sum_Bd**2).sum() - square_I[items.values].sum()
        return all_pairs / self.num_users - 2 * user_pairs / len(items)

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`vectors`: (N, width) float32; zeros for unseen items."""
        return {"vectors": embeddings_for(catalogue, self.vectors)}

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.vectors.device)
        return DotScorer(
            vectors_Nd, lambda profiles, _: pool(vectors_Nd, profiles, "mean"), vectors_Nd
        )
