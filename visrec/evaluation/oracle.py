"""The oracle: scores with the planted truth of generated data, which no model should beat."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError
from visrec.ids import index_in
from visrec.models.arrays import ItemArrays, zero_copy_tensor
from visrec.models.scorers import DotScorer
from visrec.storage.store import Store


class Oracle:
    """Scores by the dot product that the generator drew interactions with."""

    @staticmethod
    def scorer(arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        """The scorer of the arrays that `read_oracle` returns."""
        vectors_Nd = zero_copy_tensor(arrays["vectors"])
        users_Ud = zero_copy_tensor(arrays["users"])
        return DotScorer(vectors_Nd, lambda _, user_B: users_Ud[user_B.clamp(min=0)])


def read_oracle(
    truth: Store, item_ids: pa.Array, user_ids: pa.Array
) -> tuple[ItemArrays, npt.NDArray[np.int64]]:
    """The planted vectors, items in catalogue order; and (E,) the rows of these users.

    Raises:
        InputError: the truth lacks an item or a user.
    """
    items, users = truth.read_table("items.parquet"), truth.read_table("users.parquet")
    item_N = _rows("item", item_ids, items["item_id"], truth)
    user_E = _rows("user", user_ids, users["user_id"], truth)
    vectors = {"vectors": _matrix(items)[item_N], "users": _matrix(users)}
    return vectors, user_E


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
