"""The hybrid: CuratorNet's tower, two vectors for each known item, and what was taken lately.

An item is described by its picture or text, by who took it and by its recent demand. The vector of
item i in a list is v_i, in a profile p_i:

    v_i = phi(z_i) + m_i a_i        p_i = phi(z_i) + m_i b_i

phi is CuratorNet's item tower over the z-scored feature z_i, and a_i and b_i are the item's own
vectors. m_i is 0 for an item that fewer than two users took: nobody else's taste can be learned
from it. In training, m_i is also 0 at random (DropoutNet: Volkovs, Yu & Poutanen 2017, NIPS), so
that an item without vectors of its own is scored by its picture or text alone.

The user tower reads the profile by maximum and mean, as CuratorNet's, and by two means in which
recent items weigh more:

    u = tower([max p ; mean p ; mean_1 p ; mean_5 p])    mean_h: the item with n newer items in the
                                                         profile weighs 2^(-n/h)

The score at a moment t adds what is known of the item then, weighted by the user:

    x_ui(t) = u . v_i + T w(u) . g_i(t)        w(u) = w_0 + W u

g_i(t) holds the logarithm of 1 + the number of users who took the item in the last 1, 3, 7, 30 and
365 days and ever, the logarithm of its age in days, rounded and scaled, and whether anybody ever
took it (`visrec.interactions.activity`). g_i is 0 for an item that nobody took, and at random in
training, so that new items are not judged by it. T is the temperature: training divides the score
by it, so what the loss sees is u . v_i / T + w(u) . g_i(t). The score is one dot product, of [u ; T
w(u)] and [v_i ; g_i(t)].

Once the network is trained, the score of EASE is added, so that items that are taken together rise
even if they do not look alike (`visrec.models.low_rank_ease`):

    x_ui(t) + c T q_u . y_i        q_u = sum of V_j over the items j of the profile / sqrt(their
                                         number)

The variance of q_u . y_i over the items is 1 on average over the training's users, so c is about
the standard deviation of what is added to the logits of the softmax. c is chosen on the validation
rows; if it is 0, nothing is added or stored. y_i and V_i are 0 for new items. This is one dot
product, too, of [u ; T w(u) ; q_u] and [v_i ; g_i(t) ; c T y_i].

There are no parameters per user, so new users are scored without retraining; so are new items.

Shapes: B examples, M distinct items of a batch, N items of the catalogue, I items of training, D
feature width, d width of a vector, E = 2 d, F = 4 d, H width of a hidden layer, C candidates, G
moments, A features of activity, V entries of profiles, r rank of EASE, v = d + A + r.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from visrec.config import WIDTHS, check_fields
from visrec.interactions.activity import ACTIVITY_FEATURES
from visrec.jagged import Jagged
from visrec.models.arrays import (
    ACTIVITY,
    ItemArrays,
    encoded_batches,
    rows_or_zeros,
    zero_copy_tensor,
)
from visrec.models.base import Catalogue, Model, ModelTraits, Sizes, TrainOverrides
from visrec.models.curatornet import selu_tower
from visrec.models.dropout import dropout_threshold, keep_items, scale_and_drop
from visrec.models.ease import EaseConfig
from visrec.models.embeddings import make_embedding
from visrec.models.feature_scale import FeatureScale
from visrec.models.grouped import grouped_products
from visrec.models.inputs import ActivityBatch, JaggedTensor, TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.models.low_rank_ease import MIN_TAKERS, low_rank_ease, profile_vectors
from visrec.models.pooling import max_and_mean, recent_mean
from visrec.models.scorers import DotScorer
from visrec.models.sliced_encoding import encode_sliced
from visrec.scratch import scratch_array

HALF_LIVES = (1.0, 5.0)  # h of the two means: after h newer items, an item weighs half
EASE_BUFFERS = ("ease_profile", "ease_listed")  # V, and c T y of the docstring
_VECTOR_STREAM, _ACTIVITY_STREAM = 1, 2  # parts of the seeds of what is dropped in a step


@dataclass(frozen=True, kw_only=True)
class HybridConfig(RankingConfig):
    """Widths of the towers, the loss, and what is dropped in training.

    Attributes:
        loss: softmax, bpr, bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training.
        score_penalty: lambda of bpr_max.
        item_width: width of both layers of the item tower, and so of the vectors.
        user_width: width of the two hidden layers of the user tower.
        feature_dropout: share of the features that is set to zero in training.
        vector_dropout: share of the items whose own vectors are left out in a step; with 1 the
            model uses none.
        activity_dropout: share of the items whose activity is left out in a step; with 1 the model
            does not read it.
        ease_rank: width of the score by EASE that is added where it makes the validation rows
            better; with 0 none is tried.
    """

    item_width: int = 200
    user_width: int = 300
    temperature: float = 30.0
    feature_dropout: float = 0.5
    vector_dropout: float = 0.3
    activity_dropout: float = 0.15
    ease_rank: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(
            self,
            "model",
            item_width=WIDTHS,
            user_width=WIDTHS,
            feature_dropout="[0, 1)",
            vector_dropout="[0, 1]",
            activity_dropout="[0, 1]",
            ease_rank="[0, 1024]",
        )


class Hybrid(Model):
    """See the module's docstring."""

    Config = HybridConfig
    # (I,) 1 for items with two takers or more, else 0. Not stored: in a loaded model it is all
    # ones, which is right because the other items' vectors are 0.
    has_two_takers_I: Tensor
    ease_profile: Tensor | None  # (I, r) V
    ease_listed: Tensor | None  # (I, r) c T y
    traits = ModelTraits(requires_features=True)
    trains_on = "moments"
    item_tables = ("items.weight", *EASE_BUFFERS)
    # Movies, seed 0, AUC and R@20: 0.882 and 0.258 at 1e-3, 0.886 and 0.262 at 1.5e-3, 0.889 and
    # 0.246 at 2e-3.
    default_overrides = TrainOverrides(learning_rate=1.5e-3)
    added_score_weights = (0.25, 0.5, 1.0, 2.0)

    def __init__(self, config: HybridConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        d, hidden = config.item_width, config.user_width
        self._config = config
        self._dropout_threshold = dropout_threshold(config.feature_dropout)
        self.feature_scale = FeatureScale(sizes.feature_dim)
        self.item_tower = selu_tower(sizes.feature_dim, d, d)
        # The items' own vectors a (in a list) and b (in a profile), side by side.
        # They start at 0 and stay there for an item of fewer than two takers.
        self.items = make_embedding(sizes.items, 2 * d, std=0.0)
        self.register_buffer("has_two_takers_I", torch.ones(sizes.items), persistent=False)
        self.user_tower = selu_tower((2 + len(HALF_LIVES)) * d, hidden, hidden, d)
        # It starts as CuratorNet's: the weights of the recency means start at 0.
        first_HF = next(self.user_tower.parameters())
        nn.init.xavier_uniform_(first_HF[:, : 2 * d])
        nn.init.zeros_(first_HF[:, 2 * d :])
        self.activity_weights = nn.Linear(d, ACTIVITY_FEATURES)
        nn.init.zeros_(self.activity_weights.weight)
        nn.init.zeros_(self.activity_weights.bias)
        # Without activity these weights get no gradient, and DDP would wait for one.
        self.activity_weights.requires_grad_(self._reads_activity)
        for name in EASE_BUFFERS:
            self.register_buffer(name, None)
        # Of `fit_added_score`: V, and T y, to which `set_added_score_weight` gives its weight c.
        self._ease: tuple[Tensor, Tensor] | None = None

    @property
    def _reads_activity(self) -> bool:
        return self._config.activity_dropout < 1

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Computes the mean and the scale of the features, and which items two users took."""
        self.feature_scale.fit(catalogue.feature_ND)
        takers_I = np.bincount(train.values, minlength=len(self.has_two_takers_I))
        self.has_two_takers_I.copy_(torch.from_numpy(takers_I >= MIN_TAKERS))

    def forward(self, batch: TripleBatch) -> Tensor:
        """The mean loss of B examples; the item tower runs once for each distinct item."""
        both_ME = encode_sliced(batch, self._encode_batch)
        listed_Md, profile_Md = both_ME.chunk(2, dim=1)
        user_Bd = self.encode_users(profile_Md, batch.profiles, with_recency=batch.ordered_profiles)
        added = None
        if batch.activity is not None and self._reads_activity:
            added = self._activity_scores(user_Bd, batch, batch.activity)
        return ranking_loss(user_Bd, listed_Md, batch, self._config, added)

    def _encode_batch(self, batch: TripleBatch) -> Tensor:
        """(M, 2 d) the vectors of a batch's items in a list, and in a profile."""
        threshold = self._dropout_threshold if self.training else 0
        input_MD = scale_and_drop(
            batch.feature_MD, self.feature_scale, batch.item_M, batch.seed, threshold
        )
        kept_M = self.has_two_takers_I[batch.item_M]
        if self.training:
            rate = self._config.vector_dropout
            kept_M = kept_M * keep_items(batch.item_M, batch.seed + _VECTOR_STREAM, rate)
        own_ME: Tensor = self.items(batch.item_M) * kept_M[:, None]
        content_Md: Tensor = self.item_tower(input_MD.to(own_ME.dtype))
        return torch.cat([content_Md, content_Md], dim=1) + own_ME

    def _activity_scores(
        self, user_Bd: Tensor, batch: TripleBatch, activity: ActivityBatch
    ) -> tuple[Tensor, Tensor]:
        """(B,) and (B, C) what activity adds to the scores of positives and of candidates."""
        weight_BA = self.activity_weights(user_Bd)
        # 16-bit numbers are too coarse for logarithms of counts.
        weight_BA = weight_BA.to(torch.promote_types(weight_BA.dtype, torch.float32))
        positive_B = (weight_BA * activity.positive_BA).sum(dim=1)
        candidate_GCA = activity.candidate_GCA.to(weight_BA.dtype)
        score_BC = grouped_products(weight_BA, candidate_GCA, activity.group_B)
        if self.training:
            rate = self._config.activity_dropout
            kept_M = keep_items(batch.item_M, batch.seed + _ACTIVITY_STREAM, rate)
            positive_B = positive_B * kept_M[batch.positive_B]
            score_BC = score_BC * kept_M[: score_BC.shape[1]]
        return positive_B, score_BC

    def encode_users(
        self, vector_Md: Tensor, profiles: JaggedTensor, *, with_recency: bool
    ) -> Tensor:
        """(B, d) vectors of B users.

        Args:
            vector_Md: the vectors that the profiles point into.
            profiles: B lists of their rows, oldest first.
            with_recency: whether to use the means in which recent items weigh more; otherwise they
                are zeros.
        """
        pools = [max_and_mean(vector_Md, profiles)]
        weight = 1.0 if with_recency else 0.0
        pools += [weight * recent_mean(vector_Md, profiles, half_life) for half_life in HALF_LIVES]
        vectors: Tensor = self.user_tower(torch.cat(pools, dim=1))
        return vectors

    def fit_added_score(self, train: Jagged) -> bool:
        rank, items = self._config.ease_rank, len(self.has_two_takers_I)
        profile_Ir, listed_Ir = low_rank_ease(train, items, EaseConfig().penalty, rank)
        device = self.has_two_takers_I.device
        self._ease = profile_Ir.to(device), self._config.temperature * listed_Ir.to(device)
        return bool(listed_Ir.any())

    def set_added_score_weight(self, weight: float) -> None:
        assert self._ease is not None, "fit_added_score comes first"
        profile_Ir, listed_Ir = self._ease
        self.ease_profile = profile_Ir if weight else None
        self.ease_listed = weight * listed_Ir if weight else None

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Only the stored weights say whether EASE is added, and with what rank.
        for name in EASE_BUFFERS:
            stored, device = state.get(prefix + name), self.has_two_takers_I.device
            placeholder = None if stored is None else torch.empty_like(stored, device=device)
            setattr(self, name, placeholder)
        super()._load_from_state_dict(state, prefix, *rest)
        if self.has_two_takers_I.is_meta:  # the model was built on the meta device
            # This buffer is not in the file.
            self.has_two_takers_I = torch.ones(len(self.has_two_takers_I))

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """Arrays of float32.

        - `vectors`: (N, v) side by side, each item's vector in a list, its activity (zeros if the
          model reads none, so that vectors do not change overnight) and, if EASE is added, c T y.
        - `profile`: (N, d) each item's vector in a profile.
        - `ease_profile`: (N, r) V; only if EASE is added.
        - `activity`: (N, A) only if the catalogue has no activity: zeros, which evaluation
          replaces.
        """
        items, d, weight_IE = len(catalogue), self._config.item_width, self.items.weight.detach()
        rank = 0 if self.ease_profile is None else self.ease_profile.shape[1]
        activity_NA = catalogue.activity
        if not self._reads_activity:
            activity_NA = np.zeros_like(activity_NA)
        vectors_Nv = scratch_array((items, d + ACTIVITY_FEATURES + rank), np.float32)
        profile_Nd = scratch_array((items, d), np.float32)
        ease_Nr = scratch_array((items, rank), np.float32)
        batches = encoded_batches(
            catalogue.feature_ND,
            lambda rows: self.item_tower(self.feature_scale(rows)),
            weight_IE.device,
        )
        for batch, content_Bd in batches:
            row_B = catalogue.trained_N[batch]
            own_BE = rows_or_zeros(weight_IE, row_B).cpu().numpy()
            if self._config.vector_dropout == 1:
                own_BE = np.zeros_like(own_BE)
            ease_Nr[batch] = _rows_if_any(self.ease_profile, row_B)
            listed_Br = _rows_if_any(self.ease_listed, row_B)
            parts = [content_Bd + own_BE[:, :d], activity_NA[batch], listed_Br]
            np.concatenate(parts, axis=1, out=vectors_Nv[batch])
            profile_Nd[batch] = content_Bd + own_BE[:, d:]
        arrays: ItemArrays = {"vectors": vectors_Nv, "profile": profile_Nd}
        if rank:
            arrays["ease_profile"] = ease_Nr
        if catalogue.activity_NA is None and self._reads_activity:
            arrays[ACTIVITY] = activity_NA
        return arrays

    def scorer(self, arrays: ItemArrays) -> DotScorer:
        device = self.items.weight.device
        tensors = {name: zero_copy_tensor(array).to(device) for name, array in arrays.items()}
        vectors_Nv, profile_Nd = tensors["vectors"], tensors["profile"]
        ease_Nr = tensors.get("ease_profile")
        d = profile_Nd.shape[1]
        if ACTIVITY in tensors:
            vectors_Nv = vectors_Nv.clone()
            vectors_Nv[:, d : d + ACTIVITY_FEATURES] = tensors[ACTIVITY]
        temperature = self._config.temperature

        def encode(profiles: JaggedTensor, user_B: Tensor) -> Tensor:
            del user_B
            user_Bd = self.encode_users(profile_Nd, profiles, with_recency=True)
            # Zeros in a model that does not read activity: these weights keep their initial value.
            encoded = [user_Bd, temperature * self.activity_weights(user_Bd)]
            if ease_Nr is not None:
                encoded.append(profile_vectors(ease_Nr, profiles))
            return torch.cat(encoded, dim=1)

        return DotScorer(vectors_Nv, encode, vectors_Nv[:, :d])


def _rows_if_any(weight_Ir: Tensor | None, row_B: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(B, r) rows of a matrix as `rows_or_zeros` takes them; r is 0 if there is no matrix."""
    if weight_Ir is None:
        return np.zeros((len(row_B), 0), np.float32)
    rows_Br: npt.NDArray[np.float32] = rows_or_zeros(weight_Ir, row_B).cpu().numpy()
    return rows_Br
