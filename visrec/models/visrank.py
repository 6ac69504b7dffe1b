"""VisRank (section 5.2 of the CuratorNet paper): recommends items that look like the profile's.

It is not trained. Let s_ip be the cosine of the z-scored features of items i and p. A user's score
of item i aggregates s_ip over the items p of the profile: `max` takes the largest, `mean` their
mean, `mean_top_k` the mean of the k largest. Features that come out of a ReLU are all positive;
without the z-score, what all pictures have in common would outweigh what tells them apart
(clothing: test AUC 0.75 instead of 0.85 with `mean`).

Shapes: B users, N items of the catalogue, T items of a tile, V entries of all profiles, P entries
of one profile, D feature width.
"""

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
        tile_TD = self._unit_ND[start:stop]
        # All blocks have one shape, so that no score depends on which profile items share a block.
        parts_VT = [
            (_padded(self._unit_ND[rows]) @ tile_TD.T)[: len(rows)]
            for rows in torch.split(state.values, _PROFILE_ROWS)
        ]
        similarity_VT = torch.cat(parts_VT)
        if self._top_k == 1:
            entry_V = torch.arange(len(similarity_VT), device=self.device)
            return pool(similarity_VT, JaggedTensor(entry_V, state.offsets), "max")
        lists = torch.split(similarity_VT, state.lengths.tolist())
        return torch.stack([_mean_top(part_PT, self._top_k) for part_PT in lists])


def _padded(rows_VD: Tensor) -> Tensor:
    return nn.functional.pad(rows_VD, (0, 0, 0, _PROFILE_ROWS - len(rows_VD)))


def _mean_top(similarity_PT: Tensor, k: int) -> Tensor:
    """(T,) the mean of each column's k largest values, or of all P if P < k; zeros if P = 0."""
    if not len(similarity_PT):
        return similarity_PT.new_zeros(similarity_PT.shape[1])
    return similarity_PT.topk(min(k, len(similarity_PT)), dim=0).values.mean(dim=0)
