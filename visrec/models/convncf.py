"""ConvNCF (He et al. 2018, arXiv 1808.03912): convolutions over the outer product of two vectors.

    E_0 = p_u q_i^T                                        width x width, one channel
    E_l = ReLU(convolution of E_{l-1}), 2 x 2, stride 2    halves each side, to 1 x 1
    x_ui = w . E_last + c

with p_u of each user and q_i of each item; width is a power of 2, and there are log2(width) layers.
A ranking loss over it; the paper's is bpr. A score takes about 3 million operations, so lists are
the best of candidates that p_u . q_i, the trace of E_0, proposes. So that it can, the same loss is
taken of p_u . q_i as well: the paper starts from vectors that BPR-MF has learned, to the same end.
Users and items that training has not seen have no vector: users fall back to the popular items, and
items are not recommended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn

from visrec.config import COUNTS, check_fields
from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.embeddings import embedding_user_encoder, of_items, table
from visrec.models.inputs import TripleBatch
from visrec.models.losses import RankingConfig, loss_of_scores
from visrec.models.scorers import DotScorer, ReRankScorer

_PAIRS = 64  # scored at once: 8 MB of the first layer's values, about a core's share of a cache


@dataclass(frozen=True, kw_only=True)
class ConvNcfConfig(RankingConfig):
    """The sizes of vectors and layers.

    Attributes:
        loss: softmax, which with one negative is bpr (the paper's), bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training; the paper has 1.
        score_penalty: lambda of bpr_max.
        width: of the vectors of users and items; a power of 2.
        channels: of every layer.
        product_weight: of the loss of p . q beside that of the score; the paper has 0.
        candidates: how many items p . q proposes to a list, at least as many as the list has.
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


class ConvNcf(nn.Module):
    """See the module's docstring."""

    Config = ConvNcfConfig
    needs = Needs(supports_new_items=False, supports_new_users=False)
    default_overrides: ClassVar[Mapping[str, Any]] = {"train.learning_rate": 2e-3}
    trains_on: Literal["drawn_triples"] = "drawn_triples"

    def __init__(self, config: ConvNcfConfig, sizes: Sizes) -> None:
        super().__init__()
        self._config = config
        self.users = table(sizes.users, config.width)
        self.items = table(sizes.items, config.width)
        layers: list[nn.Module] = []
        for layer in range(config.width.bit_length() - 1):
            convolution = nn.Conv2d(config.channels if layer else 1, config.channels, 2, stride=2)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, nn.ReLU()]
        # With the channels last a convolution takes two thirds of the time.
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.score = nn.Linear(config.channels, 1)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """There is nothing to take."""

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples: of the scores, and of the products by their weight."""
        user_Bd, item_Md = self.users(batch.user_B), self.items(batch.item_M)
        both_BK = torch.cat([batch.positive_B[:, None], batch.negative_BK], dim=1)
        item_BKd = item_Md[both_BK]
        user_BKd = user_Bd[:, None].expand_as(item_BKd)
        loss = self._loss(self._convolve(user_BKd.flatten(0, 1), item_BKd.flatten(0, 1)), both_BK)
        product_BK = (user_BKd * item_BKd).sum(dim=2)
        return loss + self._config.product_weight * self._loss(product_BK.flatten(), both_BK)

    def _loss(self, score_P: Tensor, both_BK: Tensor) -> Tensor:
        score_BK = score_P.view(both_BK.shape) / self._config.temperature
        hardest_B1 = score_BK[:, 1:].amax(dim=1, keepdim=True)
        return loss_of_scores(score_BK[:, 0], hardest_B1, None, self._config)

    def _convolve(self, user_Pd: Tensor, item_Pd: Tensor) -> Tensor:
        """(P,) scores of P pairs of vectors."""
        parts = zip(torch.split(user_Pd, _PAIRS), torch.split(item_Pd, _PAIRS), strict=True)
        maps = [u[:, None, :, None] * i[:, None, None, :] for u, i in parts]
        score_P: Tensor = self.score(torch.cat([self.layers(m) for m in maps]).flatten(1))
        return score_P.squeeze(1)

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`vectors`: (N, width) float32; zeros for unseen items."""
        return {"vectors": of_items(self.items.weight, catalogue)}

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> ReRankScorer:
        vectors_Nd = zero_copy_tensor(arrays["vectors"]).to(self.items.weight.device)

        def pairs(user_Bd: Tensor, row_BC: Tensor) -> Tensor:
            # A user at a time: the vectors of all pairs would take as much as the users' tiles.
            both = zip(user_Bd, row_BC, strict=True)
            return torch.stack(
                [self._convolve(u.expand(len(r), -1), vectors_Nd[r]) for u, r in both]
            )

        users = embedding_user_encoder(self.users)
        proposer = DotScorer(vectors_Nd, users, vectors_Nd)
        return ReRankScorer(proposer, self._config.candidates, users, pairs)
