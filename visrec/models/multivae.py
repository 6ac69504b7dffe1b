"""MultiVAE (Liang et al. 2018, arXiv 1802.05814): a variational autoencoder of a user's items.

With x the row of zeros and ones of what a user took:

    h = tanh(W1 dropout(x / |x|) + b1)                     I -> 600
    m, log s^2 = W2 h + b2                                 600 -> 2 x 200
    z = m + s e, e standard normal, in training; z = m in scoring
    logits = W4 tanh(W3 z + b3) + b4                       200 -> 600 -> I

The loss is -log softmax(logits)_i summed over the items i that were taken, plus beta
KL(N(m, s^2) | N(0, 1)), where beta rises linearly from 0 to `kl_weight` over `kl_steps`
(section 2.2.2). A row is stored as the list of its items, never as I numbers. New users are scored
by their profile; new items are not recommended.

Shapes: B users, I items of training, N items of the catalogue, V entries of all lists, h hidden
width, z latent width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from visrec.config import COUNTS, WIDTHS, check_fields
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelConfig, ModelTraits, Sizes
from visrec.models.dropout import dropout_entries
from visrec.models.embeddings import append_bias_column, embeddings_for
from visrec.models.inputs import JaggedTensor, UserBatch
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer


@dataclass(frozen=True, kw_only=True)
class MultiVaeConfig(ModelConfig):
    """Widths of the layers (by default the paper's), and regularization.

    Attributes:
        width: the width of the latent vector z.
        hidden: width of the hidden layers of encoder and decoder.
        dropout: share of a user's items that are left out of the encoder's input in training.
        kl_weight: the final value of beta.
        kl_steps: number of training steps in which beta rises to `kl_weight`.
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


class MultiVae(Model):
    """See the module's docstring."""

    Config = MultiVaeConfig
    traits = ModelTraits(supports_new_items=False)
    trains_on = "users"
    item_tables = ("encoder", "decoder.weight", "decoder.bias")
    steps: Tensor

    def __init__(self, config: MultiVaeConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
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

    def forward(self, batch: UserBatch) -> Tensor:
        """The mean loss of B users."""
        config, items = self._config, batch.items
        device = items.values.device
        list_V = torch.repeat_interleave(torch.arange(len(items), device=device), items.lengths)
        value_V = self._normalized_entries(items, items.lengths)
        if self.training:
            user_V = list_V + batch.first
            value_V = dropout_entries(value_V, user_V, items.values, batch.seed, config.dropout)
        mean_Bz, log_variance_Bz = self._encode(self.encoder, items, value_V).chunk(2, dim=1)
        # Noise is drawn for all users of the step, so that it does not depend on the number of
        # workers.
        random = torch.Generator(device).manual_seed(batch.seed)
        noise = torch.randn(batch.total, config.width, generator=random, device=device)
        noise_Bz = noise[batch.first : batch.first + len(items)]
        logit_BI = self._decode(mean_Bz + noise_Bz * torch.exp(log_variance_Bz / 2))
        taken = logit_BI[list_V, items.values].sum()
        log_normalizers = (items.lengths * torch.logsumexp(logit_BI, dim=1)).sum()
        kl = (mean_Bz**2 + log_variance_Bz.exp() - 1 - log_variance_Bz).sum() / 2
        if self.training:
            self.steps += 1
        beta = config.kl_weight * (self.steps / config.kl_steps).clamp(max=1)
        return (log_normalizers - taken + beta * kl) / len(items)

    def _normalized_entries(self, items: JaggedTensor, count_B: Tensor) -> Tensor:
        """(V,) the nonzero entries of x / |x| for B users.

        Args:
            items: B lists of items.
            count_B: (B,) how many of a user's items training has seen.
        """
        value_V = 1 / count_B.clamp(min=1).sqrt().repeat_interleave(items.lengths)
        return value_V.to(self.encoder.dtype)

    def _encode(self, encoder_Xh: Tensor, items: JaggedTensor, value_V: Tensor) -> Tensor:
        """(B, 2 width) means and log variances.

        Args:
            encoder_Xh: rows of W1 transposed.
            items: B lists that point into these rows.
            value_V: (V,) the weight of each entry.
        """
        hidden_Bh = functional.embedding_bag(
            items.values,
            encoder_Xh,
            items.offsets,
            mode="sum",
            include_last_offset=True,
            per_sample_weights=value_V,
        )
        latent_Bz: Tensor = self.latent(torch.tanh(hidden_Bh + self.encoder_bias))
        return latent_Bz

    def _decode(self, latent_Bz: Tensor) -> Tensor:
        logit_BI: Tensor = self.decoder(torch.tanh(self.hidden(latent_Bz)))
        return logit_BI

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`taken`: (N, hidden) weights of the encoder; `vectors`: (N, hidden + 1) weights of the
        decoder, its bias last. Both are float32, with zeros for unseen items."""
        decoder_Ih = torch.cat([self.decoder.weight, self.decoder.bias[:, None]], dim=1)
        return {
            "taken": embeddings_for(catalogue, self.encoder),
            "vectors": embeddings_for(catalogue, decoder_Ih),
        }

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        device = self.encoder.device
        taken_Nh, vectors_Nh = (
            zero_copy_tensor(arrays[name]).to(device) for name in ("taken", "vectors")
        )
        # Items that training has not seen do not count in |x|.
        is_seen_N1 = taken_Nh.any(dim=1, keepdim=True).to(taken_Nh.dtype)

        def encode_users(profiles: JaggedTensor, user_B: Tensor) -> Tensor:
            del user_B
            count_B = pool(is_seen_N1, profiles, "sum")[:, 0]
            value_V = self._normalized_entries(profiles, count_B)
            mean_Bz = self._encode(taken_Nh, profiles, value_V)[:, : self._config.width]
            return append_bias_column(torch.tanh(self.hidden(mean_Bz)))

        return DotScorer(vectors_Nh, encode_users, vectors_Nh[:, :-1])
