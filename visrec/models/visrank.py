"""VisRank (section 5.2 of the CuratorNet paper): recommends items that look like the profile's.

It is not trained. Let s_ip be the cosine of the z-scored features of items i and p. A user's score
of item i aggregates s_ip over the items p of the profile: `max` takes the largest, `mean` their
mean, `mean_top_k` the mean of the k largest. Features that come out of a ReLU are all positive;
without the z-score, what all pictures have in common would outweigh what tells them apart
(clothing: test AUC 0.75 instead of 0.85 with `mean`).

Shapes: B users, N items of the catalogue, T items of a tile, V entries of all profiles, P entries
of one profile, D feature width.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from visrec.config import COUNTS, check_fields
from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays, encode_in_fixed_batches, zero_copy_tensor
from visrec.models.base import Catalogue, Model, ModelConfig, ModelTraits, Sizes
from visrec.models.feature_scale import FeatureScale
from visrec.models.inputs import JaggedTensor
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer, Scorer, TiledScorer

# Profile items multiplied with a tile at a time; blocks are padded to this. Users ranked one moment
# at a time have about 10: 64 is four times as fast as 256 for them, and a sixth slower for many
# users at once.
_PROFILE_ROWS = 64
# Profile items whose similarities to a tile are in memory at a time: 16 MB for 8,192 items.
_BLOCK_ENTRIES = 8 * _PROFILE_ROWS


@dataclass(frozen=True, kw_only=True)
class VisRankConfig(ModelConfig):
    """How the similarities to the profile are aggregated to one score.

    Attributes:
        mode: max, mean, or mean_top_k of the similarities.
        top_k: k of mean_top_k.
    """

    mode: Literal["max", "mean", "mean_top_k"] = "mean"
    top_k: int = 3

    def __post_init__(self) -> None:
        check_fields(self, "model", top_k=COUNTS)


class VisRank(Model):
    """See the module's docstring."""

    Config = VisRankConfig
    traits = ModelTraits(requires_interactions=False, requires_features=True)
    trains_on = "nothing"

    def __init__(self, config: VisRankConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.config = config
        self.feature_scale = FeatureScale(sizes.feature_dim)

    def fit(self, catalogue: Catalogue, train: Jagged) -> None:
        """Computes the mean and the scale of the features."""
        del train
        self.feature_scale.fit(catalogue.feature_ND)

    def item_arrays(self, catalogue: Catalogue) -> ItemArrays:
        """`unit`: (N, D) float32, z-scored features of length 1."""

        def encode(feature_MD: Tensor) -> Tensor:
            return nn.functional.normalize(self.feature_scale(feature_MD))

        return {"unit": encode_in_fixed_batches(catalogue.feature_ND, encode)}

    def scorer(self, arrays: ItemArrays) -> Scorer:
        unit_ND = zero_copy_tensor(arrays["unit"])
        if self.config.mode == "mean":
            # The mean of dot products is the dot product with the mean of the profile's vectors.
            return DotScorer(unit_ND, lambda profiles, _: pool(unit_ND, profiles, "mean"), unit_ND)
        top_k = 1 if self.config.mode == "max" else self.config.top_k
        return _NearestScorer(unit_ND, top_k)


class _NearestScorer(TiledScorer):
    """Scores by the mean of the `top_k` largest similarities; the state is the profiles."""

    def __init__(self, unit_ND: Tensor, top_k: int) -> None:
        self.num_items, self.device = len(unit_ND), unit_ND.device
        self.space_Nd = unit_ND
        self._unit_ND, self._top_k = unit_ND, top_k

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> JaggedTensor:
        del user_B
        return profiles

    def tile(self, state: JaggedTensor, start: int, stop: int) -> Tensor:
        tile_TD, offsets = self._unit_ND[start:stop], state.offsets.tolist()
        best = [tile_TD.new_empty(0, stop - start)] * (len(offsets) - 1)  # (k, T) of each user
        for first in range(0, len(state.values), _BLOCK_ENTRIES):
            similarity_VT = _similarities(
                self._unit_ND, state.values[first : first + _BLOCK_ENTRIES], tile_TD
            )
            last = first + len(similarity_VT)
            for b in range(bisect_right(offsets, first) - 1, bisect_left(offsets, last)):
                own_PT = similarity_VT[max(offsets[b] - first, 0) : offsets[b + 1] - first]
                best[b] = _largest(best[b], own_PT, self._top_k)
        return torch.stack([_mean(best_KT) for best_KT in best])


def _similarities(unit_ND: Tensor, item_V: Tensor, tile_TD: Tensor) -> Tensor:
    """(V, T) of the items to those of a tile."""
    # All products have one shape, so that no score depends on which profile items share one.
    return torch.cat(
        [
            (_padded(unit_ND[rows]) @ tile_TD.T)[: len(rows)]
            for rows in torch.split(item_V, _PROFILE_ROWS)
        ]
    )


def _padded(rows_VD: Tensor) -> Tensor:
    return nn.functional.pad(rows_VD, (0, 0, 0, _PROFILE_ROWS - len(rows_VD)))


def _largest(best_KT: Tensor, more_PT: Tensor, k: int) -> Tensor:
    """(k, T) the largest values of each column of both, in descending order; fewer if there are."""
    if not len(more_PT):
        return best_KT
    both_PT = torch.cat([best_KT, more_PT]) if len(best_KT) else more_PT
    if k == 1:
        return both_PT.amax(dim=0, keepdim=True)
    return both_PT.topk(min(k, len(both_PT)), dim=0).values


def _mean(best_KT: Tensor) -> Tensor:
    """(T,) the mean of each column; zeros for an empty profile."""
    return best_KT.mean(dim=0) if len(best_KT) else best_KT.new_zeros(best_KT.shape[1])
