"""A model's scores in float64, computed by its own network, independently of the search.

Shapes: N items, B queries, C and R rows of the catalogue, d width.
"""

import numpy as np
import numpy.typing as npt
import torch

from visrec.jagged import Jagged
from visrec.models.arrays import ItemArrays
from visrec.models.artifact import load_artifact
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import Scorer
from visrec.retrieval.similar import Kind, cosine_scorer
from visrec.storage.store import Store

_TILE = 8192  # items scored at once
_PROFILE_PRODUCTS = 1 << 22  # products of a tile with all profile items: 32 MB
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class ModelScores:
    """Scores of a model in float64, of all items, one tile at a time.

    Args:
        model: the model's directory.
        arrays: the item arrays of the model's scorer.
        kind: user_to_item or item_to_item.
    """

    def __init__(self, model: Store, arrays: ItemArrays, kind: Kind) -> None:
        self._model = load_artifact(model).model.without_item_tables().double()
        self._arrays, self._kind = arrays, kind
        self._items = len(next(iter(arrays.values())))
        self.num_proposals = self._scorer(np.zeros(0, np.int64)).num_proposals

    def _scorer(self, rows: Ints) -> Scorer:
        """A float64 scorer of some items alone."""
        arrays = {}
        for name, array in self._arrays.items():
            floating = np.issubdtype(array.dtype, np.floating)
            arrays[name] = array[rows].astype(np.float64 if floating else array.dtype)
        if self._kind == "item_to_item":
            return cosine_scorer(arrays, use_gpu=False)
        return self._model.scorer(arrays)

    @torch.inference_mode()
    def score_all(self, profiles: Jagged, user_B: Ints) -> Floats:
        """(B, N) scores; for a model that re-ranks, those of its proposer.

        Args:
            profiles: B lists of catalogue rows.
            user_B: (B,) trained user rows, -1 for unseen users.
        """
        profile_items = np.unique(profiles.values)
        bags = JaggedTensor.from_jagged(
            Jagged(np.searchsorted(profile_items, profiles.values), profiles.offsets)
        )
        users = torch.from_numpy(user_B)
        parts = []
        skipped = len(profile_items)
        step = int(np.clip(_PROFILE_PRODUCTS // max(len(profiles.values), 1), 256, _TILE))
        for start in range(0, self._items, step):
            tile = np.arange(start, min(start + step, self._items))
            scorer = self._scorer(np.concatenate([profile_items, tile])).first_stage
            state = scorer.prepare(bags, users)
            parts.append(scorer.tile(state, skipped, skipped + len(tile)))
        return torch.cat(parts, dim=1).double().numpy()

    @torch.inference_mode()
    def score_items(self, profile: Ints, user: int, rows: Ints) -> Floats:
        """(C,) one user's scores of the items at `rows`, re-ranked if the model does."""
        scorer = self._scorer(np.concatenate([profile, rows]))
        one = Jagged(np.arange(len(profile)), np.array([0, len(profile)]))
        state = scorer.prepare(JaggedTensor.from_jagged(one), torch.tensor([user]))
        return scorer.tile(state, len(profile), len(profile) + len(rows))[0].double().numpy()

    def unit_vectors(self, rows: Ints) -> Floats | None:
        """(R, d) the unit vectors of items, close for similar items; None if the model has none."""
        space_Rd = self._scorer(rows).space_Nd
        if space_Rd is None:
            return None
        wide_Rd = space_Rd.detach().double()  # in which no length of float32 vectors vanishes
        length_R1 = torch.linalg.vector_norm(wide_Rd, dim=1, keepdim=True)
        unit_Rd: torch.Tensor = wide_Rd / length_R1.clamp(min=1e-300)
        return unit_Rd.numpy()
