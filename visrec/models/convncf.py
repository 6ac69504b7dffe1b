"""ConvNCF (He et al. 2018, arXiv 1808.03912): convolutions over the outer product of two vectors.

    E_0 = p_u q_i^T                                        width x width, one channel
    E_l = ReLU(convolution of E_{l-1}), 2 x 2, stride 2    halves each side, down to 1 x 1
    x_ui = w . E_last + c

p_u and q_i are vectors of each user and item. The width is a power of 2, and there are log2(width)
layers. The paper's loss is bpr.

A score takes about 3 million operations, so only the items with the largest p_u . q_i, the trace of
E_0, are scored and re-ranked. To make these proposals good, the same loss is also applied to
p_u . q_i. The paper gets good proposals by starting from vectors that BPR-MF has learned.

Users and items that training has not seen have no vector, so these users get fallback lists, and
these items are not recommended.

Shapes: B examples or users, K items of an example, P pairs, d width, C items proposed to a user.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visrec.config import COUNTS, check_fields
from visrec.errors import InputError
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelTraits, Sizes, TrainOverrides
from visrec.models.embeddings import embedding_user_encoder, embeddings_for, make_embedding
from visrec.models.inputs import TripleBatch
from visrec.models.losses import RankingConfig, loss_from_scores
from visrec.models.scorers import DotScorer, ReRankScorer

_PAIRS = 64  # scored at once: 8 MB of first-layer values, about one core's share of the cache


@dataclass(frozen=True, kw_only=True)
class ConvNcfConfig(RankingConfig):
    """The sizes of vectors and layers, and the loss.

    Attributes:
        loss: softmax (the same as bpr here, because there is one negative), bpr (the paper's),
            bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; 1 in the paper.
        score_penalty: lambda of bpr_max.
        width: the width of the users' and items' vectors; a power of 2.
        channels: the number of channels of every layer.
        product_weight: weight of the loss of p . q relative to that of the score; 0 in the paper.
        candidates: number of items that p . q proposes for re-ranking; if a list is longer, as
            many as it has entries.
    """

    width: int = 64
    channels: int = 32
    product_weight: float = 1.0
    candidates: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(
            self,
            "model",
            width="[4, 4096]",
            channels="[1, 4096]",
            product_weight="[0, 1000000]",
            candidates=COUNTS,
        )
        if self.width & (self.width - 1):
            raise InputError(f"Found --model.width {self.width}; expected a power of 2.")


class ConvNcf(Model):
    """See the module's docstring."""

    Config = ConvNcfConfig
    traits = ModelTraits(supports_new_items=False, supports_new_users=False)
    default_overrides = TrainOverrides(learning_rate=2e-3)
    trains_on = "drawn_triples"
    item_tables = ("items.weight",)

    def __init__(self, config: ConvNcfConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self._config = config
        self.users = make_embedding(sizes.users, config.width)
        self.items = make_embedding(sizes.items, config.width)
        layers: list[nn.Module] = []
        for layer in range(config.width.bit_length() - 1):
            convolution = nn.Conv2d(config.channels if layer else 1, config.channels, 2, stride=2)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, nn.ReLU()]
        # With channels last, a convolution takes two thirds of the time.
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.score = nn.Linear(config.channels, 1)

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples: that of the scores, plus the weighted one of p . q."""
        user_Bd, item_Md = self.users(batch.user_B), self.items(batch.item_M)
        row_BK = torch.cat([batch.positive_B[:, None], batch.negative_BK], dim=1)
        item_BKd = item_Md[row_BK]
        user_BKd = user_Bd[:, None].expand_as(item_BKd)
        score_P = self._convolve(user_BKd.flatten(0, 1), item_BKd.flatten(0, 1))
        loss = self._loss(score_P.view(row_BK.shape))
        product_BK = (user_BKd * item_BKd).sum(dim=2)
        return loss + self._config.product_weight * self._loss(product_BK)

    def _loss(self, score_BK: Tensor) -> Tensor:
        """The mean loss of the positives in the first column against the negatives."""
        scaled_BK = score_BK / self._config.temperature
        return loss_from_scores(scaled_BK[:, 0], scaled_BK[:, 1:], None, self._config)

    def _convolve(self, user_Pd: Tensor, item_Pd: Tensor) -> Tensor:
        """(P,) scores of P pairs of vectors."""
        parts = zip(torch.split(user_Pd, _PAIRS), torch.split(item_Pd, _PAIRS), strict=True)
        maps = [u[:, None, :, None] * i[:, None, None, :] for u, i in parts]
        score_P: Tensor = self.score(torch.cat([self.layers(m) for m in maps]).flatten(1))
        return score_P.squeeze(1)

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`vectors`: (N, width) float32; zeros for unseen items."""
        return {"vectors": embeddings_for(catalogue, self.items.weight)}

    def scorer(self, arrays: ItemArrays) -> ReRankScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.items.weight.device)

        def score_pairs(user_Bd: Tensor, row_BC: Tensor) -> Tensor:
            # One user at a time: the vectors of all pairs would take B times the memory.
            users = zip(user_Bd, row_BC, strict=True)
            return torch.stack(
                [self._convolve(u.expand(len(r), -1), vectors_Nd[r]) for u, r in users]
            )

        encode_users = embedding_user_encoder(self.users)
        proposer = DotScorer(vectors_Nd, encode_users, vectors_Nd)
        return ReRankScorer(proposer, self._config.candidates, encode_users, score_pairs)
