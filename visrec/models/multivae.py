"""MultiVAE (Liang et al. 2018, arXiv 1802.05814): a variational autoencoder of a user's row.

With x the row of zeros and ones of what a user took:

    h = tanh(W1 dropout(x / |x|) + b1)                     N -> 600
    m, log s^2 = W2 h + b2                                 600 -> 2 x 200
    z = m + s e, e normal, in training; z = m in scoring
    logits = W4 tanh(W3 z + b3) + b4                       200 -> 600 -> N

and the loss -sum over i taken of log softmax(logits)_i + beta KL(N(m, s^2) | N(0, 1)), where beta
rises linearly from 0 to `kl_weight` over `kl_steps` (section 2.2.2). Rows are lists of items: no
row of N numbers is ever read. New users are scored by their profile; new items are not recommended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from visrec.config import COUNTS, WIDTHS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import Arrays, zero_copy_tensor
from visrec.models.base import Catalogue, Needs, Sizes
from visrec.models.dropout import dropped_entries
from visrec.models.embeddings import append_bias_column, of_items
from visrec.models.inputs import JaggedTensor, UserBatch
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer


@dataclass(frozen=True, kw_only=True)
class MultiVaeConfig:
    """Widths of the layers, the paper's by default.

    Attributes:
        width: of the latent z.
        hidden: of the layers between z and the row.
        dropout: share of a row's items left out of the encoder's input in training.
        kl_weight: beta at its highest.
        kl_steps: of training until it is.
    """

    width: int = 200
    hidden: int = 600
    dropout: float = 0.5
    kl_weight: float = 0.2
    kl_steps: int = 1000

    def __post_init__(self) -> None:
        check_fields(
            self,
            "model",
            width=WIDTHS,
            hidden=WIDTHS,
            dropout="[0, 1)",
            kl_weight="[0, 1000000]",
            kl_steps=COUNTS,
        )


class MultiVae(nn.Module):
    """See the module's docstring."""

    Config = MultiVaeConfig
    needs = Needs(supports_new_items=False)
    default_overrides: ClassVar[Mapping[str, Any]] = {}
    trains_on: Literal["users"] = "users"
    steps: Tensor

    def __init__(self, config: MultiVaeConfig, sizes: Sizes) -> None:
        super().__init__()
        self._config = config
        self.encoder = nn.Parameter(torch.empty(sizes.items, config.hidden))  # W1 transposed
        self.encoder_bias = nn.Parameter(torch.zeros(config.hidden))
        self.latent = nn.Linear(config.hidden, 2 * config.width)
        self.hidden = nn.Linear(config.width, config.hidden)
        self.decoder = nn.Linear(config.hidden, sizes.items)
        for weight in (self.encoder, *(m.weight for m in self.children())):
            nn.init.xavier_uniform_(weight)  # type: ignore[arg-type]
        for bias in (self.latent.bias, self.hidden.bias, self.decoder.bias):
            nn.init.zeros_(bias)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """There is nothing to take."""

    def forward(self, batch: UserBatch) -> Tensor:
        """The mean loss of B users."""
        config, items = self._config, batch.items
        device = items.values.device
        owner_V = torch.repeat_interleave(torch.arange(len(items), device=device), items.lengths)
        value_V = self._row(items, items.lengths)
        if self.training:
            user_V = owner_V + batch.first
            value_V = dropped_entries(value_V, user_V, items.values, batch.seed, config.dropout)
        mean_Bz, log_variance_Bz = self._encode(self.encoder, items, value_V).chunk(2, dim=1)
        # Drawn for all users of the step: one worker and two draw the same.
        random = torch.Generator(device).manual_seed(batch.seed)
        noise = torch.randn(batch.total, config.width, generator=random, device=device)
        noise_Bz = noise[batch.first : batch.first + len(items)]
        logit_BN = self._decode(mean_Bz + noise_Bz * torch.exp(log_variance_Bz / 2))
        taken = logit_BN[owner_V, items.values].sum()
        every = (items.lengths * torch.logsumexp(logit_BN, dim=1)).sum()
        kl = (mean_Bz**2 + log_variance_Bz.exp() - 1 - log_variance_Bz).sum() / 2
        if self.training:
            self.steps += 1
        beta = config.kl_weight * (self.steps / config.kl_steps).clamp(max=1)
        return (every - taken + beta * kl) / len(items)

    def _row(self, items: JaggedTensor, count_B: Tensor) -> Tensor:
        """(V,) what is not zero in x / |x| of B users who took so many items that are known."""
        value_V = 1 / count_B.clamp(min=1).sqrt().repeat_interleave(items.lengths)
        return value_V.to(self.encoder.dtype)

    def _encode(self, encoder_Nh: Tensor, items: JaggedTensor, value_V: Tensor) -> Tensor:
        """(B, 2 width) mean and log variance from lists of rows of the encoder's first weights."""
        hidden_Bh = functional.embedding_bag(
            items.values,
            encoder_Nh,
            items.offsets,
            mode="sum",
            include_last_offset=True,
            per_sample_weights=value_V,
        )
        latent_Bz: Tensor = self.latent(torch.tanh(hidden_Bh + self.encoder_bias))
        return latent_Bz

    def _decode(self, latent_Bz: Tensor) -> Tensor:
        logit_BN: Tensor = self.decoder(torch.tanh(self.hidden(latent_Bz)))
        return logit_BN

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """`taken`: (N, hidden) of the encoder; `vectors`: (N, hidden + 1) of the decoder, its bias
        last; float32, zeros for unseen items."""
        decoder_Ih = torch.cat([self.decoder.weight, self.decoder.bias[:, None]], dim=1)
        return {
            "taken": of_items(self.encoder, catalogue),
            "vectors": of_items(decoder_Ih, catalogue),
        }

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        device = self.encoder.device
        taken_Nh, vectors_Nh = (
            zero_copy_tensor(arrays[name]).to(device) for name in ("taken", "vectors")
        )

        known_N1 = taken_Nh.any(dim=1, keepdim=True).to(taken_Nh.dtype)  # the others are in no row

        def users(profiles: JaggedTensor, user_B: Tensor) -> Tensor:
            del user_B
            count_B = pool(known_N1, profiles, "sum")[:, 0]
            row_V = self._row(profiles, count_B)
            mean_Bz = self._encode(taken_Nh, profiles, row_V)[:, : self._config.width]
            return append_bias_column(torch.tanh(self.hidden(mean_Bz)))

        return DotScorer(vectors_Nh, users, vectors_Nh[:, :-1])
