"""Recommendation tables: one row a user, or one a user and rank.

Item ids are coded by their rows, as Parquet keeps them anyway: to make strings of them, and have
the writer find out which are the same, took as long as a third of the search. Written without the
Arrow schema, the columns are strings to who reads the file.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.ragged import offsets_of
from visrec.schemas import RECOMMENDATIONS, RECOMMENDATIONS_LONG, RECOMMENDED

Layout = Literal["nested", "long"]


def lists_table(
    user_ids: pa.StringArray,
    item_ids: pa.StringArray,
    row_BK: npt.NDArray[np.int64],
    score_BK: npt.NDArray[np.float32],
    because_BK: npt.NDArray[np.int64],
    cold_B: npt.NDArray[np.bool_],
    layout: Layout,
) -> pa.Table:
    """The lists of B users as a table.

    Args:
        user_ids: (B,).
        item_ids: (N,) what the rows mean.
        row_BK: (B, K) rows best first, -1 behind the last.
        score_BK: (B, K).
        because_BK: (B, K) rows of the profile, -1 for none.
        cold_B: (B,) whether the list is the fallback; the long layout does not tell.
        layout: `nested`, one row a user, or `long`, one row an entry.
    """
    filled_BK = row_BK >= 0
    because_V = because_BK[filled_BK]
    fields = [
        _coded(row_BK[filled_BK], item_ids),
        pa.array(score_BK[filled_BK], pa.float32()),
        _coded(because_V, item_ids, because_V < 0),
    ]
    if layout == "nested":
        entries = pa.StructArray.from_arrays(fields, fields=_FIELDS)
        offsets = offsets_of(filled_BK.sum(axis=1)).astype(np.int32)
        items = pa.ListArray.from_arrays(offsets, entries)
        return pa.table([user_ids, items, pa.array(cold_B)], schema=_NESTED)
    owner_V, rank_V = np.nonzero(filled_BK)
    columns = [
        user_ids.take(pa.array(owner_V)),
        pa.array(rank_V + 1, pa.int32()),
        *fields,
    ]
    return pa.table(columns, schema=_LONG)


_CODED = pa.dictionary(pa.int32(), pa.string())
_FIELDS = [f.with_type(_CODED) if f.type == pa.string() else f for f in RECOMMENDED]
_ITEMS = RECOMMENDATIONS.get_field_index("items")
_NESTED = RECOMMENDATIONS.set(
    _ITEMS, RECOMMENDATIONS.field(_ITEMS).with_type(pa.list_(pa.struct(_FIELDS)))
)
_LONG = pa.schema([*list(RECOMMENDATIONS_LONG)[: -len(_FIELDS)], *_FIELDS])


def _coded(
    row_V: npt.NDArray[np.int64],
    item_ids: pa.StringArray,
    none_V: npt.NDArray[np.bool_] | None = None,
) -> pa.DictionaryArray:
    codes = pa.array(row_V.astype(np.int32), mask=none_V)
    return pa.DictionaryArray.from_arrays(codes, item_ids)
