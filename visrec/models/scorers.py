"""Scorers: what turns a model's arrays into scores, one class for each way of computing them."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from visrec.models.inputs import JaggedTensor


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

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Any:
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

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
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
    def __call__(self, profiles: JaggedTensor, user_B: Tensor, /) -> Tensor:
        """(B, d) the vectors of B users."""
