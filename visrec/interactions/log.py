"""Interactions as arrays: who took which item, in which order, in which basket.

Shapes: U users, R interactions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.hashes import hash_strings
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.sources.interactions import NO_FEATURE


@dataclass(frozen=True)
class ReadReport:
    """What became of the rows of the interactions.

    Attributes:
        rows: the number of rows read.
        left_out: the number of rows that do not count, by reason.
    """

    rows: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def counted(self) -> int:
        """The number of rows that count."""
        return self.rows - sum(self.left_out.values())

    @property
    def dropped_missing_feature(self) -> int:
        """The number of rows that were left out because their item has no feature."""
        return self.left_out.get(NO_FEATURE, 0)

    @property
    def summary(self) -> dict[str, Any]:
        """The entries of a job's summary: an int, and a dict of ints."""
        return {"interactions read": self.rows, "rows left out": dict(self.left_out)}


@dataclass(frozen=True)
class InteractionLog:
    """Interactions as codes, sorted by user and time, with only the first of each (user, item).

    A repeat would add nothing to a profile, and a held-out item that is in the profile already
    could not be ranked.

    Attributes:
        user_ids: (U,) sorted strings.
        offsets: (U + 1,) int64, where each user's rows begin.
        item_R: (R,) int32 rows of the catalogue.
        time_R: (R,) int64 seconds.
        evaluation_flag_R: (R,) bool, the `evaluation` column; None without the column.
        rating_R: (R,) float32, the `rating` column with NaN for nulls; None if no row has a rating.
        read_report: how many rows were read, and why some of them are left out.
    """

    user_ids: pa.LargeStringArray
    offsets: npt.NDArray[np.int64]
    item_R: npt.NDArray[np.int32]
    time_R: npt.NDArray[np.int64]
    evaluation_flag_R: npt.NDArray[np.bool_] | None
    rating_R: npt.NDArray[np.float32] | None
    read_report: ReadReport = field(default_factory=ReadReport)

    @property
    def items(self) -> Jagged:
        """Each user's items, oldest first."""
        return Jagged(self.item_R, self.offsets)

    @property
    def user_R(self) -> npt.NDArray[np.int64]:
        """(R,) the user of each row."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.offsets))

    def basket_numbers(self) -> npt.NDArray[np.int64]:
        """(R,) the basket of each row: 0 for the user's first timestamp, 1 for the next, ..."""
        user_R = self.user_R
        is_first_R = np.ones(len(user_R), bool)
        is_first_R[1:] = (user_R[1:] != user_R[:-1]) | (self.time_R[1:] != self.time_R[:-1])
        basket_R = np.cumsum(is_first_R) - 1  # over all users
        first_U = basket_R[np.minimum(self.offsets[:-1], max(len(basket_R) - 1, 0))]
        return np.asarray(basket_R - first_U[user_R] if len(basket_R) else basket_R)

    def before(self, timestamp: int) -> "InteractionLog":
        """The rows with an earlier time, of the same users."""
        kept_R = self.time_R < timestamp
        lengths = np.bincount(self.user_R[kept_R], minlength=len(self.user_ids))
        flags_R, rating_R = self.evaluation_flag_R, self.rating_R
        return replace(
            self,
            offsets=offsets_from_lengths(lengths),
            item_R=self.item_R[kept_R],
            time_R=self.time_R[kept_R],
            evaluation_flag_R=None if flags_R is None else flags_R[kept_R],
            rating_R=None if rating_R is None else rating_R[kept_R],
        )

    def items_where(self, mask_R: npt.NDArray[np.bool_]) -> Jagged:
        """Each user's items in the rows where the mask is true; U lists."""
        return Jagged.from_row_ids(self.user_R[mask_R], self.item_R[mask_R], len(self.user_ids))


def assign_shards(user_ids: pa.Array, shards: int) -> npt.NDArray[np.int64]:
    """(U,) the shard of each user: `hash_strings` of the id modulo the number of shards."""
    return np.asarray(hash_strings(user_ids) % np.uint64(shards), np.int64)
