"""Tables of lists: one row a user or item, or one row an entry.

Item ids are coded by their rows, as Parquet keeps them anyway: to make strings of them, and have
the writer find out which are the same, took as long as a third of the search. A file holds the ids
of its own entries alone: those of a catalogue of a million items would be most of it.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visrec.jagged import offsets_of
from visrec.storage.schemas import (
    RECOMMENDATIONS,
    RECOMMENDATIONS_LONG,
    SIMILAR_ITEMS,
    SIMILAR_ITEMS_LONG,
)

Layout = Literal["nested", "long"]


def lists_table(
    user_ids: pa.LargeStringArray,
    item_ids: pa.LargeStringArray,
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
    because_V = because_BK[row_BK >= 0]
    because = _coded(because_V, item_ids, because_V < 0)
    entries = [*_entries(item_ids, row_BK, score_BK), because]
    if layout == "nested":
        return _nested(user_ids, row_BK, entries, [pa.array(cold_B)], RECOMMENDATIONS)
    return _long(user_ids, row_BK, entries, RECOMMENDATIONS_LONG)


def similar_table(
    query_ids: pa.LargeStringArray,
    item_ids: pa.LargeStringArray,
    row_BK: npt.NDArray[np.int64],
    score_BK: npt.NDArray[np.float32],
    layout: Layout,
) -> pa.Table:
    """The neighbours of B items as a table.

    Args:
        query_ids: (B,) whose neighbours they are.
        item_ids: (N,) what the rows mean.
        row_BK: (B, K) rows nearest first, -1 behind the last.
        score_BK: (B, K) cosines.
        layout: `nested`, one row an item, or `long`, one row an entry.
    """
    entries = _entries(item_ids, row_BK, score_BK)
    if layout == "nested":
        return _nested(query_ids, row_BK, entries, [], SIMILAR_ITEMS)
    return _long(query_ids, row_BK, entries, SIMILAR_ITEMS_LONG)


def lists_file(table: pa.Table) -> bytes:
    """The Parquet file of such a table.

    Without the Arrow schema, so that coded ids are strings to who reads it. With statistics of the
    owners alone: the least and the greatest item, by which no reader can skip a file, took longer
    than all else. Scores hardly ever repeat and are not coded. There is one row group, since each
    would hold the ids again.
    """
    coded = [path for path, kind in _leaves(table.schema) if not pa.types.is_floating(kind)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", use_dictionary=coded,
        write_statistics=table.schema.names[:1], store_schema=False,
    ) as writer:  # fmt: skip
        writer.write_table(table, row_group_size=max(len(table), 1))
        # They would go with the schema.
        writer.add_key_value_metadata(table.schema.metadata or {})
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _leaves(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """Parquet's names of the columns, and their types."""
    for field in schema:
        if pa.types.is_list(field.type):
            entries = field.type.value_type
            yield from ((f"{field.name}.list.element.{f.name}", f.type) for f in entries)
        else:
            yield field.name, field.type


def _entries(
    item_ids: pa.LargeStringArray, row_BK: npt.NDArray[np.int64], score_BK: npt.NDArray[np.float32]
) -> list[pa.Array]:
    filled_BK = row_BK >= 0
    return [_coded(row_BK[filled_BK], item_ids), pa.array(score_BK[filled_BK], pa.float32())]


def _nested(
    ids: pa.LargeStringArray,
    row_BK: npt.NDArray[np.int64],
    entries: list[pa.Array],
    others: list[pa.Array],
    schema: pa.Schema,
) -> pa.Table:
    place = schema.get_field_index("items")
    fields = _with_codes(schema.field(place).type.value_type, entries)
    structs = pa.StructArray.from_arrays(entries, fields=fields)
    offsets = offsets_of((row_BK >= 0).sum(axis=1)).astype(np.int32)
    lists = pa.ListArray.from_arrays(offsets, structs)
    schema = schema.set(place, schema.field(place).with_type(pa.list_(pa.struct(fields))))
    return pa.table([ids, lists, *others], schema=schema)


def _long(
    ids: pa.LargeStringArray,
    row_BK: npt.NDArray[np.int64],
    entries: list[pa.Array],
    schema: pa.Schema,
) -> pa.Table:
    owner_V, rank_V = np.nonzero(row_BK >= 0)
    columns = [ids.take(pa.array(owner_V)), pa.array(rank_V + 1, pa.int32())]
    fields = [*list(schema)[:2], *_with_codes(list(schema)[2:], entries)]
    return pa.table([*columns, *entries], schema=pa.schema(fields))


def _with_codes(
    fields: "list[pa.Field] | pa.StructType", columns: list[pa.Array]
) -> list[pa.Field]:
    """The fields with the types of columns whose ids are coded."""
    return [field.with_type(column.type) for field, column in zip(fields, columns, strict=True)]


def _coded(
    row_V: npt.NDArray[np.int64],
    item_ids: pa.LargeStringArray,
    none_V: npt.NDArray[np.bool_] | None = None,
) -> pa.DictionaryArray:
    """The ids at some rows, coded by their places among those that are there."""
    is_used_N = np.zeros(len(item_ids), bool)
    is_used_N[row_V if none_V is None else row_V[~none_V]] = True
    code_N = np.cumsum(is_used_N, dtype=np.int32) - 1
    codes = pa.array(code_N[row_V], mask=none_V)
    used = item_ids.take(pa.array(np.flatnonzero(is_used_N)))
    return pa.DictionaryArray.from_arrays(codes, used)
