"""What every model is to the jobs: how it is built, what it trains on, how it scores.

A model is a `torch.nn.Module` with a `Config` dataclass in its own file, and an entry in
`visrec.models.MODELS`. The jobs know nothing else about it:

    needs       which facts it wants beside the interactions, and whether it can score what it has
                not seen
    suggests    keys of jobs/train.py whose defaults are others for this model
    trains_on   which kind of batch `forward` takes, a key of `visrec.training.batches.SOURCES`,
                or "nothing" for a model that is fitted by `fit` alone
    fit         takes what can be computed in closed form (feature statistics, counts)
    forward     the mean loss of one batch
    item_arrays what scoring needs about the items, computed once and shared by every worker
    scorer      a scorer over those arrays: vectors for a dot product, or any tile of scores
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visrec.ragged import Ragged

Arrays = dict[str, npt.NDArray[Any]]

# Item rows are encoded in blocks of one size, the last one padded, so that a vector never depends
# on how many others are computed beside it: a matrix product may add up in another order for
# another shape.
ENCODE_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a model wants of the data, and what it can do without.

    Args:
        interactions: what was taken by whom, for its training.
        features: visual features of the items.
        categories: the category of each item.
        ratings: what users thought of the items they took, where that is known.
        cold_items: it scores items that training has not seen; else they are not recommended.
        cold_users: it scores users that training has not seen, from their profile.
        personal: its scores differ between users.
    """

    interactions: bool = True
    features: bool = False
    categories: bool = False
    ratings: bool = False
    cold_items: bool = True
    cold_users: bool = True
    personal: bool = True


@dataclass(frozen=True)
class Catalogue:
    """The items to train on or to score.

    Args:
        feature_ND: (N, D) visual features, float16 or float32.
        trained_N: (N,) each item's row in the model's own items, -1 for one it has not seen.
        category_N: (N,) the code of each item's category among those of training, -1 for none and
            for others; None for a model that does not ask.
    """

    feature_ND: npt.NDArray[Any]
    trained_N: npt.NDArray[np.int64]
    category_N: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.feature_ND)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model's parameters are sized by: counts of what training saw, and D."""

    items: int
    users: int
    feature_dim: int
    categories: int = 0


@dataclass(frozen=True)
class Bags:
    """`Ragged` as tensors: B lists of rows, flat."""

    values: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    @staticmethod
    def of(lists: Ragged, device: str | torch.device = "cpu") -> "Bags":
        return Bags(
            torch.as_tensor(np.asarray(lists.values, np.int64), device=device),
            torch.as_tensor(np.asarray(lists.offsets, np.int64), device=device),
        )


@dataclass(frozen=True)
class Candidates:
    """The first C items of a batch, which stand against the positives of all B examples.

    They are the same on all workers of a step, and so in the same order.

    Args:
        taken_BC: (B, C) bool, the candidates that are no negative of that example.
        log_q_C: (C,) the logarithm of the chance that a step has the candidate, 0 where it has all.
    """

    taken_BC: Tensor
    log_q_C: Tensor

    def __len__(self) -> int:
        return len(self.log_q_C)


@dataclass(frozen=True)
class TripleBatch:
    """B examples over the M distinct items of the batch; item fields point into those.

    Args:
        item_M: (M,) rows of the catalogue.
        feature_MD: (M, D) their raw features as they are stored; D = 0 for a model that does not
            ask.
        category_M: (M,) codes of their categories, -1 for none.
        user_B: (B,) trained user rows.
        profiles: B lists of positions in M.
        positive_B: (B,) positions in M.
        negative_BK: (B, K) positions in M, each example's own negatives; K = 0 with candidates.
        candidates: what stands against all positives instead, or None.
        seed: of the step, the same on all workers.
    """

    item_M: Tensor
    feature_MD: Tensor
    category_M: Tensor
    user_B: Tensor
    profiles: Bags
    positive_B: Tensor
    negative_BK: Tensor
    candidates: Candidates | None = None
    seed: int = 0


@dataclass(frozen=True)
class UserBatch:
    """B of the users of a step, each with all training items.

    Args:
        items: B lists of catalogue rows.
        first: the place of the first of them among the step's users, all workers together.
        total: how many users the step has.
        seed: of the step, the same on all workers.
    """

    items: Bags
    first: int
    total: int
    seed: int = 0


@dataclass(frozen=True)
class RatingBatch:
    """B ratings, and B pairs of the same users with items that they did not take.

    Args:
        user_B: trained user rows.
        item_B: catalogue rows.
        rating_B: what the user thought of the item.
        other_B: (B,) items that the user did not take.
    """

    user_B: Tensor
    item_B: Tensor
    rating_B: Tensor
    other_B: Tensor


class Scorer(Protocol):
    """The scores of any users over any tile of the catalogue.

    `space_Nd` is the space in which one item is near another, for `because_item_id`; None where the
    model has none.
    """

    @property
    def num_items(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def space_Nd(self) -> Tensor | None: ...

    def prepare(self, profiles: Bags, user_B: Tensor) -> Any:
        """What `tile` wants about B users: their profiles, and trained user rows (-1: unseen)."""

    def tile(self, state: Any, start: int, stop: int) -> Tensor:
        """(B, stop - start) scores of the items from `start` to `stop`."""


class DotScorer:
    """A scorer of dot products: vectors of the items and a function that gives the users'.

    Args:
        vectors_Nd: (N, d) float32.
        users: from profiles and trained user rows to (B, d).
        space_Nd: where near vectors mean alike items, None for nowhere; often the vectors
            themselves.
    """

    def __init__(
        self, vectors_Nd: Tensor, users: "UserVectors", space_Nd: Tensor | None = None
    ) -> None:
        self.vectors_Nd = vectors_Nd
        self.space_Nd = space_Nd
        self._users = users

    @property
    def num_items(self) -> int:
        return len(self.vectors_Nd)

    @property
    def device(self) -> torch.device:
        return self.vectors_Nd.device

    def prepare(self, profiles: Bags, user_B: Tensor) -> Tensor:
        return self._users(profiles, user_B)

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        return state @ self.vectors_Nd[start:stop].T


class ReRankScorer:
    """A scorer too slow for every item: lists are the best of candidates that another proposes.

    Args:
        proposer: whose best items are the candidates.
        candidates: how many of them.
        prepare: from profiles and trained user rows to (B, d), what `pairs` wants of each user.
        pairs: from that and (B, C) catalogue rows to the (B, C) scores, each user's computed apart.
    """

    def __init__(
        self,
        proposer: DotScorer,
        candidates: int,
        prepare: "UserVectors",
        pairs: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.proposer, self.candidates = proposer, candidates
        self.num_items, self.device = proposer.num_items, proposer.device
        self.space_Nd = proposer.space_Nd
        self.prepare, self.pairs = prepare, pairs

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        row_T = torch.arange(start, stop, device=self.device)
        return self.pairs(state, row_T.expand(len(state), -1))


class UserVectors(Protocol):
    def __call__(self, profiles: Bags, user_B: Tensor, /) -> Tensor:
        """(B, d) the vectors of B users."""


class Model(Protocol):
    """See the module's docstring. Constructed as `Model(config, sizes)`."""

    needs: Needs
    suggests: Mapping[str, Any]
    trains_on: str

    def fit(self, catalogue: Catalogue, train: Ragged) -> None:
        """Takes from the catalogue and each user's training items what needs no gradient."""

    def item_arrays(self, catalogue: Catalogue) -> Arrays:
        """What scoring needs about the N items; first axis N, computed once."""

    def scorer(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Scorer: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


def known_rows(weight_Rd: Tensor, row_X: npt.NDArray[np.int64] | Tensor) -> Tensor:
    """(X, d) rows of a table of what training has seen; zeros for -1, which it has not.

    Args:
        weight_Rd: the table.
        row_X: (X,) its rows.
    """
    rows = torch.as_tensor(row_X, device=weight_Rd.device)
    return weight_Rd[rows.clamp(min=0)] * (rows >= 0)[:, None]


def shared(array: npt.NDArray[Any]) -> Tensor:
    """A tensor over an array of the object store, not copied, which nobody may write to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


def in_blocks(
    rows: npt.NDArray[Any], encode: Callable[[Tensor], Tensor], device: str | torch.device = "cpu"
) -> npt.NDArray[np.float32]:
    """(N, d) float32 of (N, ...) rows, `ENCODE_ROWS` at a time, each block of that size exactly.

    Args:
        rows: the catalogue's rows.
        encode: from a (ENCODE_ROWS, ...) float32 tensor to (ENCODE_ROWS, d).
        device: where it computes.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), ENCODE_ROWS):
            block = torch.from_numpy(np.array(rows[start : start + ENCODE_ROWS], np.float32))
            padding = ENCODE_ROWS - len(block)
            padded = torch.cat([block, block.new_zeros(padding, *block.shape[1:])])
            parts.append(encode(padded.to(device))[: len(block)].float().cpu().numpy())
    return np.concatenate(parts)
