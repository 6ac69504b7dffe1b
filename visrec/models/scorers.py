"""Scorers: how a model's arrays become scores. There are three kinds.

    DotScorer      the dot product of a user's vector and an item's
    TiledScorer    any other score, computed for a block of users and a range of items at a time
    ReRankScorer   too slow for every item: it re-ranks the items that a DotScorer proposes

Search and ranking treat each kind differently. They call `Scorer.dispatch` with one function for
each kind. If a kind is added, the type checker finds every call that does not handle it.

Shapes: B users, N items of the catalogue, T items of a tile, C items proposed to each user, d
width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from visrec.models.inputs import JaggedTensor

Result = TypeVar("Result")


class UserEncoder(Protocol):
    """Computes user vectors from profiles and from rows of the training's users (-1: unseen)."""

    def __call__(self, profiles: JaggedTensor, user_B: Tensor, /) -> Tensor:
        """(B, d) the users' vectors."""


class Scorer(ABC):
    """Scores of any users for any tile of the catalogue.

    Attributes:
        num_items: N.
        device: where scores are computed.
        space_Nd: vectors of the items, where a high cosine means that two items are alike; None
            for a model without such vectors. `because_item_id` and item-to-item lists use it.
    """

    num_items: int
    device: torch.device
    space_Nd: Tensor | None

    @property
    def num_proposals(self) -> int:
        """How many items are proposed to each user and re-ranked; 0 if every item is scored."""
        return 0

    @property
    def first_stage(self) -> "Scorer":
        """The scorer of every item: this one, or the proposer of a re-ranker."""
        return self

    @abstractmethod
    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Any:
        """What `tile` needs to know about B users. Its type differs between scorers.

        Args:
            profiles: B lists of catalogue rows.
            user_B: (B,) rows of the training's users, -1 for users that training has not seen.
        """

    @abstractmethod
    def tile(self, state: Any, start: int, stop: int) -> Tensor:
        """(B, stop - start) scores of the items from `start` to `stop`."""

    @abstractmethod
    def dispatch(self, by_kind: "ByKind[Result]") -> Result:
        """The result of the function for this kind of scorer."""


class DotScorer(Scorer):
    """Scores that are dot products.

    Args:
        vectors_Nd: (N, d) float32, the items' vectors.
        encode_users: computes the users' vectors.
        space_Nd: see `Scorer`; often the items' vectors themselves.
    """

    def __init__(
        self, vectors_Nd: Tensor, encode_users: UserEncoder, space_Nd: Tensor | None = None
    ) -> None:
        self.vectors_Nd = vectors_Nd
        self.num_items, self.device = len(vectors_Nd), vectors_Nd.device
        self.space_Nd = space_Nd
        self._encode_users = encode_users

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        """(B, d) the users' vectors."""
        return self._encode_users(profiles, user_B)

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        return state @ self.vectors_Nd[start:stop].T

    def dispatch(self, by_kind: "ByKind[Result]") -> Result:
        return by_kind.dot(self)


class TiledScorer(Scorer):
    """Base of scorers that are not dot products; a subclass defines `prepare` and `tile`."""

    def dispatch(self, by_kind: "ByKind[Result]") -> Result:
        return by_kind.tiled(self)


class ReRankScorer(Scorer):
    """Scores that take too long for every item; only the best items of a proposer are re-ranked.

    Args:
        proposer: the scorer whose best items are re-ranked.
        num_proposals: how many of them.
        encode_users: computes the (B, d) users' vectors that `score_pairs` takes.
        score_pairs: computes (B, C) scores from the users' vectors and (B, C) catalogue rows. The
            scores of one user do not depend on the other users.
    """

    def __init__(
        self,
        proposer: DotScorer,
        num_proposals: int,
        encode_users: UserEncoder,
        score_pairs: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.proposer, self._num_proposals = proposer, num_proposals
        self.num_items, self.device = proposer.num_items, proposer.device
        self.space_Nd = proposer.space_Nd
        self.score_pairs = score_pairs
        self._encode_users = encode_users

    @property
    def num_proposals(self) -> int:
        return self._num_proposals

    @property
    def first_stage(self) -> DotScorer:
        return self.proposer

    def prepare(self, profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        return self._encode_users(profiles, user_B)

    def tile(self, state: Tensor, start: int, stop: int) -> Tensor:
        row_T = torch.arange(start, stop, device=self.device)
        return self.score_pairs(state, row_T.expand(len(state), -1))

    def dispatch(self, by_kind: "ByKind[Result]") -> Result:
        return by_kind.rerank(self)


def same_for_all(score_N1: Tensor) -> DotScorer:
    """A scorer whose scores are the same for all users: every user's vector is 1."""
    return DotScorer(score_N1, lambda profiles, _: score_N1.new_ones(len(profiles), 1))


@dataclass(frozen=True, kw_only=True)
class ByKind(Generic[Result]):
    """One function for each kind of scorer, for `Scorer.dispatch`."""

    dot: Callable[[DotScorer], Result]
    tiled: Callable[[TiledScorer], Result]
    rerank: Callable[[ReRankScorer], Result]
