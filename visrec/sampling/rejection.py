"""Draws items by rejection: an item is proposed for each row until the row accepts its item."""

from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from visrec.sampling.index import Bools, Ints, sorted_unique
from visrec.sampling.rows import Rows

Random = np.random.Generator
Weights = npt.NDArray[np.floating]

# A round of proposals costs as much as this many further proposals in the same round.
_ROUND_OVERHEAD = 1000


RowsT = TypeVar("RowsT", bound=Rows)
RowsT_contra = TypeVar("RowsT_contra", bound=Rows, contravariant=True)


class Proposer(Protocol[RowsT_contra]):
    """Proposes items, and says which of them a row accepts."""

    @property
    def weight_N(self) -> Weights:
        """(N,) weights in proportion to which the items that a row accepts are proposed."""

    def propose(self, rows: RowsT_contra, random: Random) -> Ints:
        """(B,) an item for each row."""

    def accepts(self, rows: RowsT_contra, item_B: Ints) -> Bools:
        """(B,) whether the row accepts the item."""


def draw_accepted(proposer: Proposer[RowsT], rows: RowsT, key_B: Ints, random: Random) -> Ints:
    """(B,) an accepted item for each row; every row must accept at least one.

    Once proposals have cost as much as a pass over the catalogue for each distinct key that is
    left, the remaining rows draw from the list of all items that they accept. So a single accepted
    item among a million is found in bounded time.

    Args:
        proposer: proposes the items.
        rows: B rows.
        key_B: (B,) rows with the same key accept the same items.
        random: the source of randomness.
    """
    n, cost = len(proposer.weight_N), 0
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
    """(B,) uniform integers from 0 to below each count."""
    return (random.random(len(count_B)) * count_B).astype(np.int64)
