"""The interactions as numbers: who took what, in which order, in which basket."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError
from visrec.hashes import hash_strings
from visrec.ids import TEXT, id_array, rows_of
from visrec.jagged import Jagged, offsets_of
from visrec.sources.id_mismatch import differing_ids
from visrec.sources.interactions import (
    LIKED,
    NO_FEATURE,
    NO_ITEM,
    NOT_LIKED,
    NOT_RATED,
    REPEATED,
    InteractionsConfig,
    read_known,
)


@dataclass(frozen=True)
class Reading:
    """What became of the rows of the interactions.

    Args:
        rows: how many were read.
        left_out: how many of them do not count, by reason.
    """

    rows: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """The same as rows of a job's summary."""
        return {"interactions read": self.rows, "rows left out": dict(self.left_out)}


@dataclass(frozen=True)
class InteractionLog:
    """Coded interactions, each user's in time order, each (user, item) once: the first time.

    A repeat adds nothing to a profile, and a held-out item that is in the profile already could not
    be ranked.

    Args:
        user_ids: (U,) sorted strings.
        offsets: (U + 1,) where each user's rows begin.
        item_R: (R,) int32 rows of the catalogue.
        time_R: (R,) int64 seconds.
        evaluation_R: (R,) bool, the `evaluation` column, or None where there is none.
        rating_R: (R,) float32, the `rating` column, NaN where a row has none; or None where nothing
            is rated.
        reading: how many rows were read, and why some of them are not here.
    """

    user_ids: pa.LargeStringArray
    offsets: npt.NDArray[np.int64]
    item_R: npt.NDArray[np.int32]
    time_R: npt.NDArray[np.int64]
    evaluation_R: npt.NDArray[np.bool_] | None
    rating_R: npt.NDArray[np.float32] | None
    reading: Reading = field(default_factory=Reading)

    @property
    def without_item(self) -> int:
        """Rows left out because their item has no feature."""
        return self.reading.left_out.get(NO_FEATURE, 0)

    @property
    def items(self) -> Jagged:
        """Each user's items, oldest first."""
        return Jagged(self.item_R, self.offsets)

    @property
    def user_R(self) -> npt.NDArray[np.int64]:
        """(R,) the user of each row."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.offsets))

    def basket_R(self) -> npt.NDArray[np.int64]:
        """(R,) each row's basket: 0 for the user's first moment, 1 for the next, and so on."""
        user_R = self.user_R
        starts = np.ones(len(user_R), bool)
        starts[1:] = (user_R[1:] != user_R[:-1]) | (self.time_R[1:] != self.time_R[:-1])
        number_R = np.cumsum(starts) - 1
        first_U = number_R[np.minimum(self.offsets[:-1], max(len(number_R) - 1, 0))]
        return np.asarray(number_R - first_U[user_R] if len(number_R) else number_R)

    def where(self, mask_R: npt.NDArray[np.bool_]) -> Jagged:
        """Each user's items among the rows of a mask."""
        return Jagged.group(self.user_R[mask_R], self.item_R[mask_R], len(self.user_ids))


def read_log(
    config: InteractionsConfig,
    uri: str | None,
    item_ids: pa.Array,
    other_users: pa.Array | None = None,
    *,
    every_user: bool = False,
) -> InteractionLog:
    """Reads interactions and codes them against a catalogue.

    Args:
        config: which of them count.
        uri: where they are; None where there are none, which leaves a log without a row.
        item_ids: (N,) the catalogue's ids, whose places are the rows.
        other_users: users to know beside those of the interactions.
        every_user: whether users are known too none of whose interactions counts.

    Raises:
        InputError: they cannot be read, or none is left.
    """
    if uri is None:
        return _empty_log(other_users)
    left_out = Counter[str]()
    batches = read_known(config, uri, left_out)
    if not every_user:
        batches = _liked(batches, left_out)
    return build_log(batches, item_ids, other_users, left_out)


def _empty_log(users: pa.Array | None) -> InteractionLog:
    user_ids = pa.array([], TEXT)
    if users is not None:
        _, user_ids = _code_users([user_ids.dictionary_encode()], users)
    offsets = np.zeros(len(user_ids) + 1, np.int64)
    return InteractionLog(
        user_ids, offsets, np.zeros(0, np.int32), np.zeros(0, np.int64), None, None
    )


def _liked(batches: Iterable[pa.Table], left_out: Counter[str]) -> Iterator[pa.Table]:
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
    other_users: pa.Array | None = None,
    left_out: Counter[str] | None = None,
) -> InteractionLog:
    """Codes interactions against a catalogue.

    Args:
        batches: tables with user_id, item_id, timestamp and perhaps evaluation, rating and `LIKED`,
            where only the rows for which it is true count.
        item_ids: (N,) the catalogue's ids, whose places are the rows.
        other_users: users to know beside those of the interactions.
        left_out: rows that were left out in reading, by reason; those left out here are added.

    Raises:
        InputError: there is no interaction, none with an item of the catalogue, or a rating is
            infinite.
    """
    left_out = Counter() if left_out is None else left_out
    users: list[pa.Array] = []
    items: list[npt.NDArray[np.int32]] = []
    times: list[npt.NDArray[np.int64]] = []
    marks: list[npt.NDArray[np.bool_]] = []
    ratings: list[npt.NDArray[np.float32]] = []
    any_marked = False
    unknown: pa.Array | None = None
    for batch in batches:
        coded_R, strange = _code_items(batch, item_ids, left_out)
        unknown = strange if unknown is None or not len(unknown) else unknown
        users += batch["user_id"].cast(TEXT).dictionary_encode().chunks
        items.append(coded_R)
        times.append(batch["timestamp"].to_numpy())
        marked = "evaluation" in batch.column_names
        any_marked |= marked  # of several files, some may have the column
        marks.append(
            pc.fill_null(batch["evaluation"], False).to_numpy()
            if marked
            else np.zeros(len(batch), np.bool_)
        )
        ratings.append(_ratings(batch))
    item_R = np.concatenate([*items, np.zeros(0, np.int32)])
    known_R = item_R >= 0
    if not known_R.any():
        raise _nothing_left(left_out, unknown, item_ids)
    user_R, user_ids = _code_users(users, other_users)
    time_R = np.concatenate(times)
    evaluation_R = np.concatenate(marks)[known_R] if any_marked else None
    rated_R = np.concatenate(ratings)[known_R]
    rating_R = None if np.isnan(rated_R).all() else rated_R
    return _sorted(
        user_ids, user_R[known_R], item_R[known_R], time_R[known_R], evaluation_R, rating_R,
        left_out,
    )  # fmt: skip


def _code_items(
    batch: pa.Table, item_ids: pa.Array, left_out: Counter[str]
) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """(R,) each row's item, -1 for rows that do not count; and ids that the catalogue has not."""
    item_id = batch["item_id"]
    coded_R = rows_of(item_id, item_ids).astype(np.int32)
    named_R = item_id.is_valid().to_numpy()
    liked_R = named_R if LIKED not in batch.column_names else batch[LIKED].to_numpy()
    left_out[NO_ITEM] += int((~named_R).sum())
    if LIKED in batch.column_names:
        _count_not_liked(batch.filter(item_id.is_valid()), left_out)
    strange_R = named_R & liked_R & (coded_R < 0)
    left_out[NO_FEATURE] += int(strange_R.sum())
    return np.where(liked_R, coded_R, -1), item_id.filter(pa.array(strange_R)).combine_chunks()


def _nothing_left(
    left_out: Counter[str], unknown: pa.Array | None, item_ids: pa.Array
) -> InputError:
    """Why no interaction is left, by what became of them."""
    rows = sum(left_out.values())
    if not rows:
        return InputError(
            "The interactions are empty; expected at least one row. Check --interactions.path."
        )
    reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    if unknown is None or not left_out[NO_FEATURE]:
        return InputError(
            f"None of the {rows:,} interactions counts ({reasons}); expected at least one. Check "
            "--interactions.path, --interactions.min_rating and --interactions.as_of."
        )
    return InputError(
        f"None of the {rows:,} interactions is with an item that has a feature ({reasons}); "
        "expected the same item ids in --interactions.path and --features. "
        f"{differing_ids(unknown, 'The first', item_ids, 'the second')}"
    )


def _ratings(batch: pa.Table) -> npt.NDArray[np.float32]:
    """(B,) a table's ratings, NaN where a row has none.

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
    users: list[pa.Array], others: pa.Array | None
) -> tuple[npt.NDArray[np.int32], pa.LargeStringArray]:
    coded = pa.chunked_array(users).unify_dictionaries()
    found = coded.chunk(0).dictionary
    every = found if others is None else pa.concat_arrays([found, id_array(others)])
    every = pc.unique(every)
    user_ids = every.take(pc.sort_indices(every))
    row_of_code = rows_of(found, user_ids).astype(np.int32)
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks])
    return row_of_code[codes], user_ids


def _sorted(
    user_ids: pa.LargeStringArray,
    user_R: npt.NDArray[np.int32],
    item_R: npt.NDArray[np.int32],
    time_R: npt.NDArray[np.int64],
    evaluation_R: npt.NDArray[np.bool_] | None,
    rating_R: npt.NDArray[np.float32] | None,
    left_out: Counter[str],
) -> InteractionLog:
    first = _first_of_pairs(user_R, item_R, time_R)
    left_out[REPEATED] += len(user_R) - len(first)
    order = first[_by_user_and_time(user_R[first], time_R[first])]  # else by item, as it is
    return InteractionLog(
        user_ids=user_ids,
        offsets=offsets_of(np.bincount(user_R[order], minlength=len(user_ids))),
        item_R=item_R[order],
        time_R=time_R[order],
        evaluation_R=None if evaluation_R is None else evaluation_R[order],
        rating_R=None if rating_R is None else rating_R[order],
        reading=Reading(
            len(order) + sum(left_out.values()),
            {why: count for why, count in left_out.items() if count},
        ),
    )


# One sort of one number each, 1.5 to 5 s of 20 M rows; np.lexsort of all three takes 21 to 32.


def _first_of_pairs(
    user_R: npt.NDArray[np.int32], item_R: npt.NDArray[np.int32], time_R: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The earliest row of each user and item, the first of equals; by user, then item."""
    pair_R = user_R.astype(np.int64) << 32 | item_R
    order = np.argsort(pair_R)
    pair_R = pair_R[order]
    again_R = np.zeros(len(order) + 1, bool)  # whether the row before is of the same two
    again_R[1:-1] = pair_R[1:] == pair_R[:-1]
    some = np.flatnonzero(again_R[:-1] | again_R[1:])
    rows = order[some]
    order[some] = rows[np.lexsort((rows, time_R[rows], pair_R[some]))]
    return order[~again_R[:-1]]


def _by_user_and_time(
    user_R: npt.NDArray[np.int32], time_R: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """What puts rows in order of user and time, equals as they are."""
    first, last = int(time_R.min()), int(time_R.max())
    span = last - first + 1
    if int(user_R.max() + 1) * span > np.iinfo(np.int64).max:
        return np.lexsort((time_R, user_R))
    return np.argsort(user_R * np.int64(span) + (time_R - first), kind="stable")


def shard_of(user_ids: pa.Array, shards: int) -> npt.NDArray[np.int64]:
    """(U,) each user's shard: `hash_strings` of the id modulo `shards`, the same everywhere."""
    return np.asarray(hash_strings(user_ids) % np.uint64(shards), np.int64)
