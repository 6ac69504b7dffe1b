"""The oracle: planted truth as a scorer. Only generated data has one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError
from visrec.ids import rows_of
from visrec.models.arrays import Arrays, zero_copy_tensor
from visrec.models.scorers import DotScorer
from visrec.storage.store import Store


class Oracle:
    """Scores a user's item by the dot product that purchases were drawn with."""

    @staticmethod
    def scorer(arrays: Mapping[str, npt.NDArray[Any]]) -> DotScorer:
        """A scorer over the arrays of `read_oracle`."""
        vectors_Nd = zero_copy_tensor(arrays["vectors"])
        users_Ud = zero_copy_tensor(arrays["users"])
        return DotScorer(vectors_Nd, lambda _, user_B: users_Ud[user_B.clamp(min=0)])


def read_oracle(
    truth: Store, item_ids: pa.Array, user_ids: pa.Array
) -> tuple[Arrays, npt.NDArray[np.int64]]:
    """The planted vectors in the order of the catalogue, and the users' rows among theirs.

    Raises:
        InputError: the truth does not know an item or a user.
    """
    items, users = truth.read_table("items.parquet"), truth.read_table("users.parquet")
    item_N = _places("item", item_ids, items["item_id"], truth)
    user_E = _places("user", user_ids, users["user_id"], truth)
    vectors = {"vectors": _matrix(items)[item_N], "users": _matrix(users)}
    return vectors, user_E


def _places(
    kind: str, ids: pa.Array, known: pa.ChunkedArray, truth: Store
) -> npt.NDArray[np.int64]:
    place_N = rows_of(ids, known)
    if lacking := np.count_nonzero(place_N < 0):
        raise InputError(
            f"The truth at {truth.root} lacks {lacking} of {len(ids)} {kind}s. It belongs "
            "to other data: change --truth."
        )
    return place_N


def _matrix(table: pa.Table) -> npt.NDArray[np.float32]:
    column = table["vector"].combine_chunks()
    return np.asarray(column.flatten().to_numpy().reshape(len(column), -1), np.float32)
