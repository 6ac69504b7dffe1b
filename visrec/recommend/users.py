"""Reads what the tables say about users: all users at once, or one partition at a time.

Three tables name users: the interactions, the users table and the block list. A job without Ray
reads each as a whole. On Ray all three are assigned to the same number of partitions by a hash of
the user, so all that is known of a user is in one partition. A worker that scores a shard reads the
few partitions that have its users. What all lists depend on, such as how many users took each item,
is counted by tasks that read some partitions each, and their counts are added up. No process holds
all users.

Shapes: N items, U users, S shards, P partitions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from itertools import chain
from math import gcd
from operator import add
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import ConflictError, MissingFileError
from visrec.ids import id_array
from visrec.interactions.activity import ActivityCounts, moment_after
from visrec.interactions.log import InteractionLog
from visrec.interactions.partition_rows import rows_of_shard
from visrec.interactions.prepare import prepare_table
from visrec.interactions.prepared import PreparedTable
from visrec.interactions.read import LogPart, ReadCounts, join_logs, read_part
from visrec.jagged import Jagged
from visrec.recommend.eligibility import BlockCounts, items_by_user, read_block_list
from visrec.recommend.queries import Queries, QueriesInMemory, QuerySource, UserCriteria
from visrec.retrieval.rules import RulesConfig
from visrec.sources.interactions import InteractionsConfig, TableBatches, read_all, read_disliked
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.storage.tables import load_table, no_rows_error
from visrec.tasks import get, share, split_among_tasks, submit


@dataclass(frozen=True)
class UserTables:
    """The tables that name users.

    Attributes:
        config: which interactions count.
        interactions_uri: where they are; None for item-to-item lists without interactions.
        users: the users table, or None.
        rules: settings of the rules, which name the block list.
    """

    config: InteractionsConfig
    interactions_uri: str | None
    users: InputTable | None
    rules: RulesConfig


@dataclass(frozen=True)
class UserSummary:
    """Totals over some users, on which every list depends. Those of two disjoint sets of users can
    be added: `a + b`.

    Attributes:
        users: how many there are.
        read: what became of their interactions.
        takers_N: (N,) how many of them took each item.
        activity: how many of them took each item in each window before a moment.
        last_moment: the midnight after their last interaction that counts; 0 if they have none.
        blocks: which rows of the block list have no effect.
    """

    users: int
    read: ReadCounts
    takers_N: npt.NDArray[np.int64]
    activity: ActivityCounts
    last_moment: int
    blocks: BlockCounts

    def __add__(self, other: "UserSummary") -> "UserSummary":
        return UserSummary(
            self.users + other.users,
            self.read + other.read,
            self.takers_N + other.takers_N,
            self.activity + other.activity,
            max(self.last_moment, other.last_moment),
            self.blocks + other.blocks,
        )


class Users(Protocol):
    """All users that a table names."""

    def summarize(self) -> UserSummary:
        """The totals over all users, at the cutoff or, without one, at the midnight after the last
        interaction."""

    def to_queries(self, criteria: UserCriteria, shards: int) -> QuerySource:
        """The users as queries, assigned to shards."""


def open_users(tables: UserTables, item_ids: pa.LargeStringArray, root: Store | None) -> Users:
    """The users of the tables.

    Args:
        tables: the tables that name the users.
        item_ids: (N,) the catalogue.
        root: where the tables are assigned to partitions; None to read them into memory.

    Raises:
        InputError: a table cannot be read.
    """
    if tables.interactions_uri is not None and root is not None:
        try:
            return PartitionedUsers(tables.config, _assign_tables(tables, root), item_ids)
        except (ConflictError, MissingFileError):
            # Another process keeps changing a table, for example by appending rows after the
            # cutoff. Reading the table once needs no fixed version.
            pass
    return UsersInMemory(tables.config, _whole_rows(tables), item_ids)


# Rows of the tables, and what is read of them.


@dataclass(frozen=True)
class UserRows:
    """All rows that name some users.

    Attributes:
        interactions: returns a new iterator over the interactions at each call; None without any.
        extra_user_ids: (V,) ids of the users table; None without one.
        block_list: returns a new iterator over the rows of the block list at each call.
    """

    interactions: Callable[[], TableBatches] | None
    extra_user_ids: pa.Array | None
    block_list: Callable[[], Iterator[pa.Table]]

    def read_log(self, config: InteractionsConfig, item_ids: pa.LargeStringArray) -> LogPart:
        """The log of all these users, some of whom may have no interaction that counts."""
        if self.interactions is None:
            return LogPart(join_logs([], self.extra_user_ids), ReadCounts())
        part = read_part(config, self.interactions(), item_ids, keep_all_users=True)
        return replace(part, log=join_logs([part.log], self.extra_user_ids))

    def to_queries(
        self,
        config: InteractionsConfig,
        log: InteractionLog,
        item_ids: pa.LargeStringArray,
        criteria: UserCriteria,
    ) -> Queries:
        """The users of the log as queries, with the items that are blocked or were rated too low.

        Args:
            config: which interactions count.
            log: what `read_log` returned.
            item_ids: (N,) the catalogue.
            criteria: which users the model can score.
        """
        blocked = Jagged.empty(len(log.user_ids))
        if self.interactions is not None:
            disliked = read_disliked(config, self.interactions())
            blocked = items_by_user(chain(self.block_list(), disliked), log.user_ids, item_ids)
        return criteria.to_queries(log, blocked)


def summarize_rows(
    config: InteractionsConfig,
    rows: UserRows,
    part: LogPart,
    item_ids: pa.LargeStringArray,
    moment: int | None,
) -> UserSummary:
    """The summary of some users.

    Args:
        config: which interactions count.
        rows: the interactions of these users.
        part: the log that was read of them.
        item_ids: (N,) the catalogue.
        moment: at which activity is counted; by default the cutoff, or the midnight after their
            last interaction.
    """
    log = part.log
    items = len(item_ids)
    last_moment = moment_after(log.time_R)
    moment = config.cutoff_timestamp() if moment is None else moment
    return UserSummary(
        users=len(log.user_ids),
        read=part.counts,
        takers_N=np.bincount(log.item_R, minlength=items),
        activity=ActivityCounts.of(
            log.item_R, log.time_R, items, last_moment if moment is None else moment
        ),
        last_moment=last_moment,
        blocks=BlockCounts.of(rows.block_list(), item_ids, log.user_ids),
    )


# All users in memory.


@dataclass(frozen=True)
class UsersInMemory:
    """Users whose tables one process reads.

    Attributes:
        config: which interactions count.
        rows: the interactions of all users.
        item_ids: (N,) the catalogue.
    """

    config: InteractionsConfig
    rows: UserRows
    item_ids: pa.LargeStringArray

    @cached_property
    def _part(self) -> LogPart:
        return self.rows.read_log(self.config, self.item_ids)

    def summarize(self) -> UserSummary:
        return summarize_rows(self.config, self.rows, self._part, self.item_ids, None)

    def to_queries(self, criteria: UserCriteria, shards: int) -> QuerySource:
        queries = self.rows.to_queries(self.config, self._part.log, self.item_ids, criteria)
        return QueriesInMemory.assign(queries, shards)


def _whole_rows(tables: UserTables) -> UserRows:
    interactions, extra_user_ids = None, None
    if tables.interactions_uri is not None:
        interactions = partial(read_all, tables.config, tables.interactions_uri)
    if tables.users is not None:
        extra_user_ids = id_array(load_table(tables.users, schemas.USERS)["user_id"])
    return UserRows(interactions, extra_user_ids, partial(read_block_list, tables.rules))


# Users in partitions.


@dataclass(frozen=True)
class PartitionedTables:
    """The tables that name users, each assigned to P partitions by a hash of the user.

    Attributes:
        interactions: the interactions, sorted by time within each user.
        users: the users table, or None.
        block_list: or None. Rows without a user are in the partitions of their items.
    """

    interactions: PreparedTable
    users: PreparedTable | None
    block_list: PreparedTable | None

    @property
    def partitions(self) -> int:
        """The number of partitions (P)."""
        return self.interactions.manifest.partitions

    def read(self, partition: int) -> UserRows:
        """The rows of a partition."""
        return self._rows(lambda table: [table.read(partition)])

    def read_shard(self, shard: int, shards: int) -> UserRows:
        """The rows of a shard's users.

        Users of a shard have the same hash modulo S, and those of a partition modulo P. So both
        have the same modulo the greatest common divisor of S and P. If one of the numbers divides
        the other, as powers of two do, each partition is read once in total, or once for each shard
        that has users of it.
        """
        step = gcd(shards, self.partitions)
        numbers = range(shard % step, self.partitions, step)

        def select(table: PreparedTable) -> list[pa.Table]:
            return [rows_of_shard(table.read(number), shard, shards) for number in numbers]

        return self._rows(select)

    def _rows(self, select: Callable[[PreparedTable], Sequence[pa.Table]]) -> UserRows:
        where = self.interactions.table.uri
        interactions = select(self.interactions)
        extra_user_ids, blocked = None, []
        if self.users is not None:
            extra_user_ids = id_array(
                pa.concat_tables(map(_decoded, select(self.users)))["user_id"]
            )
        if self.block_list is not None:
            blocked = [_decoded(rows) for rows in select(self.block_list)]
        return UserRows(
            lambda: iter([(where, rows) for rows in interactions]),
            extra_user_ids,
            lambda: iter(blocked),
        )


def _decoded(rows: pa.Table) -> pa.Table:
    """The ids of a partition as text."""
    return pa.table({name: rows[name].cast(pa.string()) for name in ("user_id", "item_id")})


def _assign_tables(tables: UserTables, root: Store) -> PartitionedTables:
    """The tables, with their rows assigned to partitions.

    Raises:
        InputError: a table cannot be read, or the users table has no rows.
    """
    config = tables.config
    interactions = prepare_table(
        config.table(str(tables.interactions_uri)), schemas.INTERACTIONS, root
    )
    interactions.require_rating_column(config)
    partitions, users, block_list = interactions.manifest.partitions, None, None
    if tables.users is not None:
        users = prepare_table(tables.users, schemas.USERS, root, partitions)
        if not sum(users.manifest.rows_P):
            raise no_rows_error(tables.users)
    if (table := tables.rules.blocked_table) is not None:
        block_list = prepare_table(table, schemas.BLOCKED, root, partitions)
    return PartitionedTables(interactions, users, block_list)


@dataclass(frozen=True)
class PartitionedUsers:
    """Users in partitions, of which a process reads only some.

    Attributes:
        config: which interactions count.
        tables: the partitions.
        item_ids: (N,) the catalogue.
    """

    config: InteractionsConfig
    tables: PartitionedTables
    item_ids: pa.LargeStringArray

    def summarize(self) -> UserSummary:
        moment = self.config.cutoff_timestamp()
        every = range(self.tables.partitions)
        if moment is not None:
            return self._add_up(every, moment)
        # Without a cutoff, the moment is the midnight after the last interaction. Nearly every
        # partition has one of the last day, so the moment of the first partition is tried for all.
        first = summarize_partitions(self, every[:1], None)
        total = first
        if len(every) > 1:
            total += self._add_up(every[1:], first.last_moment)
        if total.last_moment == first.last_moment:
            return total
        return self._add_up(every, total.last_moment)

    def to_queries(self, criteria: UserCriteria, shards: int) -> QuerySource:
        return PartitionedQueries(self, criteria, shards)

    def _add_up(self, partitions: Sequence[int], moment: int) -> UserSummary:
        """The summary of some partitions at a moment, counted in one task for each CPU."""
        shared, shares = share(self), split_among_tasks(partitions)
        refs = [submit(summarize_partitions, shared, each, moment) for each in shares]
        return _sum(map(get, refs))  # only one summary at a time is mapped into memory


def _sum(summaries: Iterable[UserSummary]) -> UserSummary:
    """The sum of at least one summary."""
    return reduce(add, summaries)


def summarize_partitions(
    users: PartitionedUsers, partitions: Sequence[int], moment: int | None
) -> UserSummary:
    """The summary of some partitions, one of which is in memory at a time.

    Args:
        users: the partitions.
        partitions: their numbers.
        moment: at which activity is counted. It may be None for a single partition, whose own last
            moment is taken then.
    """
    return _sum(_summarize_partition(users, number, moment) for number in partitions)


def _summarize_partition(
    users: PartitionedUsers, partition: int, moment: int | None
) -> UserSummary:
    rows = users.tables.read(partition)
    part = rows.read_log(users.config, users.item_ids)
    return summarize_rows(users.config, rows, part, users.item_ids, moment)


@dataclass(frozen=True)
class PartitionedQueries:
    """Users in partitions as queries; those of a shard are read when they are asked for.

    Attributes:
        users: the partitions.
        criteria: which users the model can score.
        shards: the number of shards (S).
    """

    users: PartitionedUsers
    criteria: UserCriteria
    shards: int

    def read(self, shard: int) -> Queries:
        users = self.users
        rows = users.tables.read_shard(shard, self.shards)
        log = rows.read_log(users.config, users.item_ids).log
        return rows.to_queries(users.config, log, users.item_ids, self.criteria)
