"""Draws items by rejection: each row is proposed items until it accepts one."""

from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from visrec.sampling.index import Bools, Ints, sorted_unique
from visrec.sampling.rows import Rows

Random = np.random.Generator
Weights = npt.NDArray[np.floating]

# The fixed cost of a round of proposals, in proposals.
_ROUND_OVERHEAD = 1000


RowsT = TypeVar("RowsT", bound=Rows)
RowsT_contra = TypeVar("RowsT_contra", bound=Rows, contravariant=True)


class Proposer(Protocol[RowsT_contra]):
    """Proposes items, and says which of them a row accepts."""

    @property
    def weight_N(self) -> Weights:
        """(N,) each item's weight: among the items that a row accepts, each is drawn in proportion
        to its weight."""

    def propose(self, rows: RowsT_contra, random: Random) -> Ints:
        """(B,) an item for each row."""

    def accepts(self, rows: RowsT_contra, item_B: Ints) -> Bools:
        """(B,) whether each row accepts its item."""


def draw_accepted(proposer: Proposer[RowsT], rows: RowsT, key_B: Ints, random: Random) -> Ints:
    """(B,) an accepted item for each row; every row must accept at least one.

    Items are proposed first. Proposals stop when they have cost as much as scanning the catalogue
    once for each unfinished key. Then each of these keys is scanned for, and its rows draw from
    the items that it accepts. So the time is bounded even if a row accepts only one item of a
    million.

    Args:
        proposer: proposes the items.
        rows: B rows.
        key_B: (B,) rows with the same key accept the same items.
        random: the source of randomness.
    """
    n = len(proposer.weight_N)
    cost = 0
    item_B = proposer.propose(rows, random)
    rejected = np.flatnonzero(~proposer.accepts(rows, item_B))
    while len(rejected) and cost < n * len(sorted_unique(key_B[rejected])):
        cost += len(rejected) + _ROUND_OVERHEAD
        again = rows.take(rejected)
        item_S = proposer.propose(again, random)
        item_B[rejected] = item_S
        rejected = rejected[~proposer.accepts(again, item_S)]
    _, first, key_S = np.unique(key_B[rejected], return_index=True, return_inverse=True)
    for key, row in enumerate(rejected[first]):
        accepted_N = proposer.accepts(rows.take(np.full(n, row)), np.arange(n))
        edge_N = np.cumsum(proposer.weight_N * accepted_N)
        same_key = rejected[key_S == key]
        drawn = random.random(len(same_key)) * edge_N[-1]
        item_B[same_key] = np.searchsorted(edge_N, drawn, side="right")
    return item_B


def random_below(count_B: Ints, random: Random) -> Ints:
    """(B,) uniform integers, each from 0 to its count - 1."""
    return (random.random(len(count_B)) * count_B).astype(np.int64)
