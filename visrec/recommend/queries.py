"""Whose lists are made, and what decides each list, one shard at a time.

A query is a user or, for item-to-item lists, an item. Queries belong to shards by a hash of their
ids.

Shapes: N items, U queries of a shard or of all, T users of the training, S shards.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.ids import TEXT, index_in
from visrec.interactions.log import InteractionLog, assign_shards
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.recommend.catalogue import trained_users

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Queries:
    """Some queries: those of a shard, or a few of them.

    Attributes:
        query_ids: (U,) their ids; those of a shard are sorted.
        profiles: U lists of the items that the user took, oldest first; for an item query, the
            item itself.
        blocked: U lists of items that are blocked for this user in particular, or that the user
            rated too low to count.
        trained_U: (U,) the model's user rows, -1 for users that training has not seen.
        cold_U: (U,) users whom the model cannot score: they get the fallback list.
    """

    query_ids: pa.LargeStringArray
    profiles: Jagged
    blocked: Jagged
    trained_U: Ints
    cold_U: Bools

    def __len__(self) -> int:
        return len(self.query_ids)

    def take(self, rows: Ints) -> "Queries":
        """The queries at `rows`, in that order."""
        return Queries(
            self.query_ids.take(pa.array(rows)),
            self.profiles.take(rows),
            self.blocked.take(rows),
            self.trained_U[rows],
            self.cold_U[rows],
        )

    def slice(self, start: int, stop: int) -> "Queries":
        """The queries from `start` to `stop`, without copying what they hold."""
        return Queries(
            self.query_ids.slice(start, stop - start),
            self.profiles.slice(start, stop),
            self.blocked.slice(start, stop),
            self.trained_U[start:stop],
            self.cold_U[start:stop],
        )

    @staticmethod
    def join(parts: Iterable["Queries"]) -> "Queries":
        """The queries of at least one part, one part after another."""
        every = list(parts)
        return Queries(
            pa.concat_arrays([part.query_ids for part in every]),
            Jagged.join([part.profiles for part in every]),
            Jagged.join([part.blocked for part in every]),
            np.concatenate([part.trained_U for part in every]),
            np.concatenate([part.cold_U for part in every]),
        )


class QuerySource(Protocol):
    """Where the queries of a shard are read."""

    @property
    def shards(self) -> int:
        """The number of shards (S)."""

    def read(self, shard: int) -> Queries:
        """The queries of a shard, sorted by id."""


def read_all_queries(source: QuerySource) -> Queries:
    """All queries, in the order of the shards. They must fit into memory."""
    return Queries.join(source.read(shard) for shard in range(source.shards))


def read_query(source: QuerySource, query_id: str) -> Queries | None:
    """One query; None if there is none with this id."""
    ids = pa.array([query_id], TEXT)
    queries = source.read(int(assign_shards(ids, source.shards)[0]))
    row = index_in(ids, queries.query_ids)
    return None if row[0] < 0 else queries.take(row)


@dataclass(frozen=True)
class QueriesInMemory:
    """All queries, in memory.

    Attributes:
        queries: shard after shard, sorted within each shard.
        shard_offsets: (S + 1,) the first query of each shard, then the number of queries.
    """

    queries: Queries
    shard_offsets: Ints

    @staticmethod
    def assign(queries: Queries, shards: int) -> "QueriesInMemory":
        """Queries that are sorted by id, assigned to shards."""
        shard_U = assign_shards(queries.query_ids, shards)
        # A stable sort keeps the order of the ids within each shard.
        order = np.argsort(shard_U, kind="stable")
        offsets = offsets_from_lengths(np.bincount(shard_U, minlength=shards))
        return QueriesInMemory(queries.take(order), offsets)

    @property
    def shards(self) -> int:
        return len(self.shard_offsets) - 1

    def read(self, shard: int) -> Queries:
        return self.queries.slice(*map(int, self.shard_offsets[shard : shard + 2]))


@dataclass(frozen=True)
class UserCriteria:
    """What decides whether the model can score a user.

    Attributes:
        unseen_N: (N,) items that training has not seen and the model cannot score, so that they say
            nothing about a user.
        trained_ids: (T,) the users that have a row in the model; None if no user has.
        supports_new_users: whether the model scores users without a row.
    """

    unseen_N: Bools
    trained_ids: pa.Array | None
    supports_new_users: bool

    def to_queries(self, log: InteractionLog, blocked: Jagged) -> Queries:
        """Every user of a log, with the items that each must not get."""
        trained_U = trained_users(self.trained_ids, log.user_ids)
        cold_U = log.items.keep(~self.unseen_N[log.item_R]).lengths == 0
        if not self.supports_new_users:
            cold_U |= trained_U < 0
        return Queries(log.user_ids, log.items, blocked, trained_U, cold_U)
