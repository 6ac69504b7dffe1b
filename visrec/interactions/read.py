"""Reads interactions and codes them against a catalogue, as an `InteractionLog`.

Shapes: U users, N items of the catalogue, R interactions, B rows of a batch.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError, NoExamplesError
from visrec.ids import TEXT, id_array, index_in
from visrec.interactions.log import InteractionLog, ReadReport
from visrec.jagged import offsets_from_lengths
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.sources.interactions import (
    LIKED,
    NO_FEATURE,
    NO_ITEM,
    NOT_LIKED,
    NOT_RATED,
    REPEATED,
    InteractionsConfig,
    read_until_cutoff,
)


def read_log(
    config: InteractionsConfig,
    uri: str | None,
    item_ids: pa.Array,
    extra_users: pa.Array | None = None,
    *,
    keep_all_users: bool = False,
) -> InteractionLog:
    """Reads interactions and codes them against a catalogue.

    Args:
        config: which interactions count.
        uri: where they are; None gives a log without rows.
        item_ids: (N,) the catalogue's ids; items are coded by their index.
        extra_users: users to include whether or not they have interactions.
        keep_all_users: include users none of whose interactions counts.

    Raises:
        InputError: the interactions cannot be read.
        NoExamplesError: none of them counts.
    """
    if uri is None:
        return _empty_log(extra_users)
    left_out = Counter[str]()
    batches = read_until_cutoff(config, uri, left_out)
    if not keep_all_users:
        batches = _only_liked(batches, left_out)
    return build_log(batches, item_ids, extra_users, left_out)


def _empty_log(users: pa.Array | None) -> InteractionLog:
    user_ids = pa.array([], TEXT)
    if users is not None:
        _, user_ids = _code_users([user_ids.dictionary_encode()], users)
    offsets = np.zeros(len(user_ids) + 1, np.int64)
    return InteractionLog(
        user_ids, offsets, np.zeros(0, np.int32), np.zeros(0, np.int64), None, None
    )


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
    builder = _LogBuilder(item_ids, Counter() if left_out is None else left_out)
    for batch in batches:
        builder.add(batch)
    return builder.build(extra_users)


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
        self._unknown_ids: pa.Array | None = None

    def add(self, batch: pa.Table) -> None:
        item_B, unknown_ids = _code_items(batch, self._item_ids, self._left_out)
        if self._unknown_ids is None or not len(self._unknown_ids):
            self._unknown_ids = unknown_ids
        self._users += batch["user_id"].cast(TEXT).dictionary_encode().chunks
        self._items.append(item_B)
        self._times.append(batch["timestamp"].to_numpy())
        if "evaluation" in batch.column_names:
            self._has_flags = True
            self._flags.append(pc.fill_null(batch["evaluation"], False).to_numpy())
        else:
            self._flags.append(np.zeros(len(batch), np.bool_))
        self._ratings.append(_ratings(batch))

    def build(self, extra_users: pa.Array | None) -> InteractionLog:
        item_R = np.concatenate([*self._items, np.zeros(0, np.int32)])
        counts_R = item_R >= 0
        if not counts_R.any():
            raise _no_interactions_error(self._left_out, self._unknown_ids, self._item_ids)
        user_R, user_ids = _code_users(self._users, extra_users)
        rating_R = np.concatenate(self._ratings)
        columns = _Columns(
            user_R,
            item_R,
            time_R=np.concatenate(self._times),
            evaluation_flag_R=np.concatenate(self._flags) if self._has_flags else None,
            rating_R=None if np.isnan(rating_R[counts_R]).all() else rating_R,
        )
        return _sort_log(user_ids, columns.take(counts_R), self._left_out)


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
    liked_B = has_id_B if LIKED not in batch.column_names else batch[LIKED].to_numpy()
    left_out[NO_ITEM] += int((~has_id_B).sum())
    if LIKED in batch.column_names:
        _count_not_liked(batch.filter(item_id.is_valid()), left_out)
    unknown_B = has_id_B & liked_B & (item_B < 0)
    left_out[NO_FEATURE] += int(unknown_B.sum())
    return np.where(liked_B, item_B, -1), item_id.filter(pa.array(unknown_B)).combine_chunks()


def _no_interactions_error(
    left_out: Counter[str], unknown_ids: pa.Array | None, item_ids: pa.Array
) -> NoExamplesError:
    """Explains why no interaction counts."""
    rows = sum(left_out.values())
    if not rows:
        return NoExamplesError(
            "The interactions are empty; expected at least one row. Check --interactions.path.",
            found="the interactions are empty",
        )
    reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    if unknown_ids is None or not left_out[NO_FEATURE]:
        found = f"one of the {rows:,} interactions counts ({reasons})"
        return NoExamplesError(
            f"N{found}; expected at least one. Check "
            "--interactions.path, --interactions.min_rating and --interactions.as_of.",
            found=f"n{found}",
        )
    found = f"one of the {rows:,} interactions is with an item that has a feature ({reasons})"
    return NoExamplesError(
        f"N{found}; expected the same item ids in --interactions.path and --features. "
        f"{explain_id_mismatch(unknown_ids, 'The first', item_ids, 'the second')}",
        found=f"n{found}",
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
            batch[name][int(infinite[0])] for name in ("user_id", "item_id", "rating")
        )
        raise InputError(
            f"Found the rating {rating} (user {user}, item {item}) and {len(infinite) - 1} more "
            "like it; expected finite numbers that fit into float32, or nulls. Correct the rating "
            "column of --interactions.path."
        )
    return np.asarray(rating_B)


def _code_users(
    users: list[pa.Array], extra_users: pa.Array | None
) -> tuple[npt.NDArray[np.int32], pa.LargeStringArray]:
    """Codes dictionary-encoded users.

    Returns:
        The index of each user in the sorted ids of all users, and these (U,) ids.
    """
    encoded = pa.chunked_array(users).unify_dictionaries()
    names = encoded.chunk(0).dictionary
    everyone = names if extra_users is None else pa.concat_arrays([names, id_array(extra_users)])
    everyone = pc.unique(everyone)
    user_ids = everyone.take(pc.sort_indices(everyone))
    row_of_name = index_in(names, user_ids).astype(np.int32)
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    return row_of_name[codes], user_ids


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
        read_report=ReadReport(
            len(order) + sum(left_out.values()),
            {why: count for why, count in left_out.items() if count},
        ),
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
    first, last = int(time_R.min()), int(time_R.max())
    span = last - first + 1
    if int(user_R.max() + 1) * span > np.iinfo(np.int64).max:
        return np.lexsort((time_R, user_R))
    return np.argsort(user_R * np.int64(span) + (time_R - first), kind="stable")
