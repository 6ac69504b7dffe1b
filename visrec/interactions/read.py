"""Reads interactions and codes them against a catalogue, as an `InteractionLog`.

Shapes: U users, N items of the catalogue, R interactions, B rows of a batch.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError, NoExamplesError, no_examples_error
from visrec.ids import TEXT, encode_ids, id_array, index_in
from visrec.interactions.log import InteractionLog, ReadReport
from visrec.interactions.prepared import PreparedTable
from visrec.jagged import concat_ranges, offsets_from_lengths
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.sources.interactions import (
    LIKED,
    NO_FEATURE,
    NO_ITEM,
    NOT_LIKED,
    NOT_RATED,
    REPEATED,
    IncompleteRows,
    InteractionsConfig,
    TableBatches,
    read_all,
    usable_rows,
)
from visrec.tasks import map_calls, share


def read_log(
    config: InteractionsConfig,
    uri: str | None,
    item_ids: pa.Array,
    extra_users: pa.Array | None = None,
    *,
    keep_all_users: bool = False,
    prepared: PreparedTable | None = None,
) -> InteractionLog:
    """Reads interactions and codes them against a catalogue.

    Args:
        config: which interactions count.
        uri: where they are; None gives a log without rows.
        item_ids: (N,) the catalogue's ids; items are coded by their index.
        extra_users: users to include whether or not they have interactions.
        keep_all_users: include users none of whose interactions counts.
        prepared: the same interactions, whose partitions are read in tasks.

    Raises:
        InputError: the interactions cannot be read.
        NoExamplesError: none of them counts.
    """
    if uri is None:
        return join_logs([], extra_users)
    if prepared is None:
        parts = [read_part(config, read_all(config, uri), item_ids, keep_all_users)]
    else:
        prepared.require_rating_column(config)
        shared = share(item_ids)
        calls = [(config, prepared, p, shared, keep_all_users) for p in prepared.partitions]
        parts = map_calls(_read_partition, calls)
    counts = reduce(add, (part.counts for part in parts), ReadCounts())
    counts.require_complete(config, uri)
    counts.require_any(item_ids)
    return replace(join_logs([part.log for part in parts], extra_users), read_report=counts.report)


def build_log(
    batches: Iterable[pa.Table],
    item_ids: pa.Array,
    extra_users: pa.Array | None = None,
    left_out: Counter[str] | None = None,
) -> InteractionLog:
    """Codes interactions against a catalogue.

    Args:
        batches: tables with user_id, item_id and timestamp, and optionally evaluation, rating and
            `LIKED`. With `LIKED`, only the rows where it is true count.
        item_ids: (N,) the catalogue's ids; items are coded by their index.
        extra_users: users to include whether or not they have interactions.
        left_out: the rows that reading left out, by reason. Those left out here are added to it.

    Raises:
        NoExamplesError: there is no interaction, none counts, or none is with an item of the
            catalogue.
        InputError: a rating is infinite.
    """
    part = _build_part(batches, item_ids, Counter() if left_out is None else left_out)
    part.counts.require_any(item_ids)
    log = part.log if extra_users is None else join_logs([part.log], extra_users)
    return replace(log, read_report=part.counts.report)


# Parts of a log, each with all rows of its users.


@dataclass(frozen=True)
class ReadCounts:
    """What became of rows that were read. The counts of two parts add up: `a + b`.

    Attributes:
        counted: how many count.
        left_out: how many do not, by reason.
        incomplete: how many lack something.
        unknown_ids: some of the ids that are not in the catalogue.
    """

    counted: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    incomplete: IncompleteRows = field(default_factory=IncompleteRows)
    unknown_ids: pa.Array = field(default_factory=lambda: pa.array([], TEXT))

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        left_out, incomplete = Counter(self.left_out), IncompleteRows()
        left_out.update(other.left_out)  # in the order of reading, with the zeros
        incomplete.merge(self.incomplete)
        incomplete.merge(other.incomplete)
        unknown_ids = self.unknown_ids if len(self.unknown_ids) else other.unknown_ids
        return ReadCounts(self.counted + other.counted, left_out, incomplete, unknown_ids)

    @property
    def report(self) -> ReadReport:
        """The counts as a run records them."""
        left_out = {why: count for why, count in self.left_out.items() if count}
        return ReadReport(self.counted + self.left_out.total(), left_out)

    def require_complete(self, config: InteractionsConfig, uri: str) -> None:
        """Refuses interactions of which too many lack something.

        Raises:
            InputError: shows an example.
        """
        self.incomplete.require_few(config, uri)

    def require_any(self, item_ids: pa.Array) -> None:
        """Refuses interactions none of which counts.

        Raises:
            NoExamplesError: says why they do not.
        """
        if not self.counted:
            raise _no_interactions_error(self.left_out, self.unknown_ids, item_ids)


@dataclass(frozen=True)
class LogPart:
    """The log of some users, without a report, and counts of the rows that it was built from."""

    log: InteractionLog
    counts: ReadCounts


def _read_partition(
    config: InteractionsConfig,
    prepared: PreparedTable,
    partition: int,
    item_ids: pa.Array,
    keep_all_users: bool,
) -> LogPart:
    rows = iter([(prepared.table.uri, prepared.read(partition))])
    return read_part(config, rows, item_ids, keep_all_users)


def read_part(
    config: InteractionsConfig, batches: TableBatches, item_ids: pa.Array, keep_all_users: bool
) -> LogPart:
    """Codes all rows of some users against a catalogue.

    Args:
        config: which interactions count.
        batches: rows, and where they are.
        item_ids: (N,) the catalogue's ids.
        keep_all_users: include users none of whose interactions counts.

    Raises:
        InputError: a rating is infinite, or there is a `min_rating` but no rating column.
    """
    left_out, incomplete = Counter[str](), IncompleteRows()
    past = usable_rows(config, batches, left_out, incomplete)
    if not keep_all_users:
        past = _only_liked(past, left_out)
    part = _build_part(past, item_ids, left_out)
    return replace(part, counts=replace(part.counts, incomplete=incomplete))


def _only_liked(batches: Iterable[pa.Table], left_out: Counter[str]) -> Iterator[pa.Table]:
    for batch in batches:
        if LIKED in batch.column_names:
            _count_not_liked(batch, left_out)
            batch = batch.filter(batch[LIKED])
        yield batch


def _count_not_liked(batch: pa.Table, left_out: Counter[str]) -> None:
    rating = batch["rating"].filter(pc.invert(batch[LIKED]))
    left_out[NOT_RATED] += rating.null_count
    left_out[NOT_LIKED] += len(rating) - rating.null_count


def _build_part(batches: Iterable[pa.Table], item_ids: pa.Array, left_out: Counter[str]) -> LogPart:
    builder = _LogBuilder(item_ids, left_out)
    for batch in batches:
        builder.add(batch)
    return builder.build()


def join_logs(
    logs: Sequence[InteractionLog], extra_users: pa.Array | None = None
) -> InteractionLog:
    """The log of all users of several logs, none of whom is in two of them; without a report.

    Args:
        logs: may be none.
        extra_users: users to include whether or not they are in a log.
    """
    if not logs:
        return _empty_log(extra_users)
    if len(logs) == 1 and extra_users is None:
        return logs[0]
    known = pa.concat_arrays([log.user_ids for log in logs])
    user_ids = _sorted_ids(known, extra_users)
    at_U = index_in(user_ids, known)
    length_V = np.concatenate([np.diff(log.offsets) for log in logs])  # in the order of the parts
    offsets = offsets_from_lengths(np.append(length_V, 0)[at_U])  # the last for users in no log
    row_R = concat_ranges(offsets_from_lengths(length_V)[at_U], offsets)
    return InteractionLog(
        user_ids=user_ids,
        offsets=offsets,
        item_R=np.concatenate([log.item_R for log in logs])[row_R],
        time_R=np.concatenate([log.time_R for log in logs])[row_R],
        evaluation_flag_R=_join_optional(
            [(log.evaluation_flag_R, len(log.item_R)) for log in logs], False, row_R
        ),
        rating_R=_join_optional([(log.rating_R, len(log.item_R)) for log in logs], np.nan, row_R),
    )


def _empty_log(users: pa.Array | None) -> InteractionLog:
    user_ids = _sorted_ids(pa.array([], TEXT), users)
    offsets = np.zeros(len(user_ids) + 1, np.int64)
    return InteractionLog(
        user_ids, offsets, np.zeros(0, np.int32), np.zeros(0, np.int64), None, None
    )


def _join_optional(
    columns: Sequence[tuple[npt.NDArray[Any] | None, int]],
    default: float,
    row_R: npt.NDArray[np.int64],
) -> npt.NDArray[Any] | None:
    """A column of all parts, None if no part has it.

    Args:
        columns: the column of each part, and how many rows the part has.
        default: the value of rows whose part lacks the column.
        row_R: (R,) the rows to take.
    """
    present = [column for column, _ in columns if column is not None]
    if not present:
        return None
    whole = [
        np.full(rows, default, present[0].dtype) if column is None else column
        for column, rows in columns
    ]
    return np.concatenate(whole)[row_R]


@dataclass(frozen=True)
class _Columns:
    """The columns of R interactions, coded; see `InteractionLog`."""

    user_R: npt.NDArray[np.int32]
    item_R: npt.NDArray[np.int32]
    time_R: npt.NDArray[np.int64]
    evaluation_flag_R: npt.NDArray[np.bool_] | None
    rating_R: npt.NDArray[np.float32] | None

    def take(self, rows: npt.NDArray[Any]) -> "_Columns":
        """Selects rows by index or by mask."""
        flags, ratings = self.evaluation_flag_R, self.rating_R
        return _Columns(
            self.user_R[rows],
            self.item_R[rows],
            self.time_R[rows],
            None if flags is None else flags[rows],
            None if ratings is None else ratings[rows],
        )


class _LogBuilder:
    """Collects batches of interactions as codes.

    Args:
        item_ids: (N,) the catalogue's ids.
        left_out: rows left out so far, by reason; counts are added.
    """

    def __init__(self, item_ids: pa.Array, left_out: Counter[str]) -> None:
        self._item_ids, self._left_out = item_ids, left_out
        self._users: list[pa.Array] = []  # dictionary-encoded
        self._items: list[npt.NDArray[np.int32]] = []
        self._times: list[npt.NDArray[np.int64]] = []
        self._flags: list[npt.NDArray[np.bool_]] = []
        self._ratings: list[npt.NDArray[np.float32]] = []
        self._has_flags = False  # of several files, only some may have the evaluation column
        self._unknown_ids: pa.Array = pa.array([], TEXT)

    def add(self, batch: pa.Table) -> None:
        item_B, unknown_ids = _code_items(batch, self._item_ids, self._left_out)
        if not len(self._unknown_ids):
            self._unknown_ids = unknown_ids
        self._users += encode_ids(batch["user_id"]).chunks
        self._items.append(item_B)
        self._times.append(batch["timestamp"].to_numpy())
        if "evaluation" in batch.column_names:
            self._has_flags = True
            self._flags.append(pc.fill_null(batch["evaluation"], False).to_numpy())
        else:
            self._flags.append(np.zeros(len(batch), np.bool_))
        self._ratings.append(_ratings(batch))

    def build(self) -> LogPart:
        """The part, which may have no rows."""
        nothing = pa.array([], TEXT).dictionary_encode()
        user_R, user_ids = _code_users([*self._users, nothing])
        item_R = np.concatenate([*self._items, np.zeros(0, np.int32)])
        rating_R = np.concatenate([*self._ratings, np.zeros(0, np.float32)])
        is_counted_R = item_R >= 0
        columns = _Columns(
            user_R,
            item_R,
            time_R=np.concatenate([*self._times, np.zeros(0, np.int64)]),
            evaluation_flag_R=np.concatenate(self._flags) if self._has_flags else None,
            rating_R=None if np.isnan(rating_R[is_counted_R]).all() else rating_R,
        )
        log = _sort_log(user_ids, columns.take(is_counted_R), self._left_out)
        counts = ReadCounts(len(log.item_R), self._left_out, unknown_ids=self._unknown_ids)
        return LogPart(log, counts)


def _code_items(
    batch: pa.Table, item_ids: pa.Array, left_out: Counter[str]
) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Codes the items of a batch.

    Returns:
        (B,) the catalogue row of each item, -1 for rows that do not count, and the ids that are not
        in the catalogue.
    """
    item_id = batch["item_id"]
    item_B = index_in(item_id, item_ids).astype(np.int32)
    has_id_B = item_id.is_valid().to_numpy()
    is_counted_B = has_id_B if LIKED not in batch.column_names else batch[LIKED].to_numpy()
    left_out[NO_ITEM] += int((~has_id_B).sum())
    if LIKED in batch.column_names:
        _count_not_liked(batch.filter(item_id.is_valid()), left_out)
    unknown_B = has_id_B & is_counted_B & (item_B < 0)
    left_out[NO_FEATURE] += int(unknown_B.sum())
    return np.where(is_counted_B, item_B, -1), id_array(item_id.filter(pa.array(unknown_B)))


def _no_interactions_error(
    left_out: Counter[str], unknown_ids: pa.Array, item_ids: pa.Array
) -> NoExamplesError:
    """Explains why no interaction counts."""
    rows = sum(left_out.values())
    if not rows:
        return no_examples_error(
            "the interactions are empty", "expected at least one row. Check --interactions.path."
        )
    reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    if not len(unknown_ids) or not left_out[NO_FEATURE]:
        return no_examples_error(
            f"none of the {rows:,} interactions counts ({reasons})",
            "expected at least one. Check --interactions.path, --interactions.min_rating and "
            "--interactions.as_of.",
        )
    return no_examples_error(
        f"none of the {rows:,} interactions is with an item that has a feature ({reasons})",
        "expected the same item ids in --interactions.path and --features. "
        f"{explain_id_mismatch(unknown_ids, 'The first', item_ids, 'the second')}",
    )


def _ratings(batch: pa.Table) -> npt.NDArray[np.float32]:
    """(B,) the ratings of a batch, NaN for nulls.

    Raises:
        InputError: a rating is infinite, or does not fit into float32.
    """
    if "rating" not in batch.column_names:
        return np.full(len(batch), np.nan, np.float32)
    rating_B = pc.fill_null(batch["rating"].cast(pa.float32()), np.nan).to_numpy()
    if len(infinite := np.flatnonzero(np.isinf(rating_B))):
        user, item, rating = (
            batch[name][int(infinite[0])].as_py() for name in ("user_id", "item_id", "rating")
        )
        raise InputError(
            f"Found the rating {rating} (user {user}, item {item}) and {len(infinite) - 1} more "
            "like it; expected finite numbers that fit into float32, or nulls. Correct the rating "
            "column of --interactions.path.",
            key="interactions.path",
        )
    return np.asarray(rating_B)


def _code_users(users: list[pa.Array]) -> tuple[npt.NDArray[np.int32], pa.LargeStringArray]:
    """Codes dictionary-encoded users.

    Returns:
        The index of each user in the sorted ids of those that occur, and these (U,) ids.
    """
    encoded = pa.chunked_array(users).unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    # Dictionaries of files may have ids whose rows have been left out.
    names = encoded.chunk(0).dictionary
    is_used = np.zeros(len(names), bool)
    is_used[codes] = True
    user_ids = _sorted_ids(names.filter(pa.array(is_used)), None)
    row_of_name = index_in(names, user_ids).astype(np.int32)
    return row_of_name[codes], user_ids


def _sorted_ids(ids: pa.LargeStringArray, more: pa.Array | None) -> pa.LargeStringArray:
    """The distinct ids, sorted."""
    distinct = pc.unique(ids if more is None else pa.concat_arrays([ids, id_array(more)]))
    return distinct.take(pc.sort_indices(distinct))


def _sort_log(
    user_ids: pa.LargeStringArray, columns: _Columns, left_out: Counter[str]
) -> InteractionLog:
    """Sorts interactions by user and time, and drops repeats."""
    first = _first_of_pairs(columns.user_R, columns.item_R, columns.time_R)
    left_out[REPEATED] += len(columns.user_R) - len(first)
    # Rows of one user and time stay in the order of their items.
    order = first[_order_by_user_and_time(columns.user_R[first], columns.time_R[first])]
    columns = columns.take(order)
    return InteractionLog(
        user_ids=user_ids,
        offsets=offsets_from_lengths(np.bincount(columns.user_R, minlength=len(user_ids))),
        item_R=columns.item_R,
        time_R=columns.time_R,
        evaluation_flag_R=columns.evaluation_flag_R,
        rating_R=columns.rating_R,
    )


# Sorting one combined number takes 1.5 to 5 s for 20 M rows; np.lexsort of all three 21 to 32 s.


def _first_of_pairs(
    user_R: npt.NDArray[np.int32], item_R: npt.NDArray[np.int32], time_R: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The earliest row of each user and item, the first row if several are as early.

    The result is in the order of users, then items.
    """
    pair_R = user_R.astype(np.int64) << 32 | item_R
    order = np.argsort(pair_R)
    pair_R = pair_R[order]
    is_repeat_R = np.zeros(len(order) + 1, bool)  # the row before has the same user and item
    is_repeat_R[1:-1] = pair_R[1:] == pair_R[:-1]
    of_several = np.flatnonzero(is_repeat_R[:-1] | is_repeat_R[1:])
    rows = order[of_several]
    order[of_several] = rows[np.lexsort((rows, time_R[rows], pair_R[of_several]))]
    return order[~is_repeat_R[:-1]]


def _order_by_user_and_time(
    user_R: npt.NDArray[np.int32], time_R: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The stable order of rows by user, then time."""
    if not len(time_R):
        return np.zeros(0, np.int64)
    first, last = int(time_R.min()), int(time_R.max())
    span = last - first + 1
    if int(user_R.max() + 1) * span > np.iinfo(np.int64).max:
        return np.lexsort((time_R, user_R))
    return np.argsort(user_R * np.int64(span) + (time_R - first), kind="stable")
