"""The oracle: scores with the planted truth of generated data.

The truth is the taste of users. It does not say what is sold out, so a model that learns from
recent sales may be better in the first ranks.

The truth is two tables: `items.parquet` with `item_id` and `vector`, `users.parquet` with `user_id`
and `vector`. A user takes an item with log-odds of the dot product of their vectors. Where interest
moves, the items also have the columns of `InterestCurves`, and the log-odds at a moment are the dot
product plus the log interest of all users in the item at that moment.

Shapes: N items, U users, E users asked for, d vector size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError
from visrec.ids import index_in
from visrec.interactions.activity import DAY
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.scorers import DotScorer
from visrec.storage.store import Store

# The log interest in an item that is not out, finite so that scores are.
NOT_OUT = -1e3
_CURVE_COLUMNS = ("release_time", "rise_s", "peak", "rest")  # the fields of `InterestCurves`


@dataclass(frozen=True)
class InterestCurves:
    """How interested all users are in each item over time.

    With x = (moment - release) / rise, the log interest is

        log(exp(peak) x exp(1 - x) + exp(rest)),

    which is highest one rise after the release and approaches `rest`; `NOT_OUT` before the release.

    Attributes:
        release_time_I: (I,) int64, seconds since 1970.
        rise_s_I: (I,) float64, seconds from the release to the peak.
        peak_I: (I,) float64, log interest at the peak, without the `rest` term.
        rest_I: (I,) float64, log interest long after the release.
    """

    release_time_I: npt.NDArray[np.int64]
    rise_s_I: npt.NDArray[np.float64]
    peak_I: npt.NDArray[np.float64]
    rest_I: npt.NDArray[np.float64]

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """As columns of the truth."""
        return dict(zip(_CURVE_COLUMNS, vars(self).values(), strict=True))

    @classmethod
    def from_table(cls, items: pa.Table) -> "InterestCurves | None":
        """The curves of a table of the truth; None if it has none."""
        if _CURVE_COLUMNS[0] not in items.column_names:
            return None
        return cls(*(items[name].to_numpy() for name in _CURVE_COLUMNS))

    def log_at(self, moment: int) -> npt.NDArray[np.float64]:
        """(I,) the log interest at a moment, in seconds since 1970."""
        age_I = (moment - self.release_time_I) / self.rise_s_I
        x_I = np.maximum(age_I, 1e-9)
        log_I = np.logaddexp(self.peak_I + np.log(x_I) + 1 - x_I, self.rest_I)
        return np.where(age_I < 0, NOT_OUT, log_I)


class Oracle:
    """Scores by the dot product that the generator drew interactions with."""

    @staticmethod
    def scorer(arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        """The scorer of the arrays that `oracle_at` returns."""
        vectors_Nd = zero_copy_tensor(arrays["vectors"])
        users_Ud = zero_copy_tensor(arrays["users"])
        return DotScorer(vectors_Nd, lambda _, user_B: users_Ud[user_B.clamp(min=0)])


def read_oracle(
    truth: Store, item_ids: pa.Array, user_ids: pa.Array
) -> tuple[ItemArrays, npt.NDArray[np.int64]]:
    """The planted arrays, items in catalogue order; and (E,) the rows of these users.

    The arrays are `vectors` (N, d), `users` (U, d) and, where interest moves, `curves` (N, 4).

    Args:
        truth: the planted truth.
        item_ids: (N,) of the catalogue.
        user_ids: (E,) of the users.

    Raises:
        InputError: the truth lacks an item or a user.
    """
    items, users = truth.read_table("items.parquet"), truth.read_table("users.parquet")
    item_N = _rows("item", item_ids, items["item_id"], truth)
    user_E = _rows("user", user_ids, users["user_id"], truth)
    arrays: ItemArrays = {"vectors": _matrix(items)[item_N], "users": _matrix(users)}
    curves = InterestCurves.from_table(items)
    if curves is not None:
        arrays["curves"] = np.column_stack(list(curves.columns().values()))[item_N]
    return arrays, user_E


def oracle_at(arrays: ItemArrays, moment: int, known: int) -> ItemArrays:
    """`vectors` and `users` of the first `known` items at the end of the day of a moment.

    Where interest moves, the log interest becomes one more component of each item's vector, and
    that of each user's vector is 1.

    Args:
        arrays: what `read_oracle` returned.
        moment: the midnight before the day, in seconds since 1970.
        known: how many items.
    """
    vector_nd, user_Ud = arrays["vectors"][:known], arrays["users"]
    if "curves" in arrays:
        curves = InterestCurves(*arrays["curves"][:known].T)
        vector_nd = np.column_stack([vector_nd, np.float32(curves.log_at(moment + DAY - 1))])
        user_Ud = np.column_stack([user_Ud, np.ones(len(user_Ud), np.float32)])
    return {"vectors": vector_nd, "users": user_Ud}


def _rows(kind: str, ids: pa.Array, known: pa.ChunkedArray, truth: Store) -> npt.NDArray[np.int64]:
    rows = index_in(ids, known)
    if missing := np.count_nonzero(rows < 0):
        raise InputError(
            f"The truth at {truth.root} lacks {missing} of {len(ids)} {kind}s. It belongs to other "
            "data: change --truth."
        )
    return rows


def _matrix(table: pa.Table) -> npt.NDArray[np.float32]:
    column = table["vector"].combine_chunks()
    return np.asarray(column.flatten().to_numpy().reshape(len(column), -1), np.float32)
