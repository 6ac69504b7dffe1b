"""Tables of lists, written and read: one row a query, or one row an entry.

Item ids are written as dictionary codes, because Parquet stores them this way. Converting the codes
to strings first took up to a third of the search time. A file's dictionary has the ids of its own
entries alone: that of a catalogue of a million items would be most of the file.

B lists, K length of the longest list, V entries of all lists, N items.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.jagged import offsets_from_lengths
from visrec.retrieval.similar import Kind
from visrec.storage.schemas import (
    RECOMMENDATIONS,
    RECOMMENDATIONS_LONG,
    SIMILAR_ITEMS,
    SIMILAR_ITEMS_LONG,
)

Layout = Literal["nested", "long"]
COLD_USERS_KEY = "visrec.cold_users"  # in a file's metadata: how many of its users are cold
COLD = "cold"  # whether a list is the fallback: in the nested layout, and in all fingerprints
SCHEMAS: dict[tuple[Kind, Layout], pa.Schema] = {
    ("user_to_item", "nested"): RECOMMENDATIONS,
    ("user_to_item", "long"): RECOMMENDATIONS_LONG,
    ("item_to_item", "nested"): SIMILAR_ITEMS,
    ("item_to_item", "long"): SIMILAR_ITEMS_LONG,
}

# The column of whose list it is, also in the files with fingerprints.
ID_COLUMNS: dict[Kind, str] = {"user_to_item": "user_id", "item_to_item": "item_id"}


def lists_table(
    user_ids: pa.LargeStringArray,
    item_ids: pa.LargeStringArray,
    row_BK: npt.NDArray[np.int64],
    score_BK: npt.NDArray[np.float32],
    reason_BK: npt.NDArray[np.int64],
    cold_B: npt.NDArray[np.bool_],
    layout: Layout,
) -> pa.Table:
    """The lists of B users as a table.

    Args:
        user_ids: (B,).
        item_ids: (N,) of the catalogue.
        row_BK: (B, K) rows of the catalogue, best first, -1 after the last entry.
        score_BK: (B, K).
        reason_BK: (B, K) rows of the reasons, -1 for none.
        cold_B: (B,) whether the list is the fallback; the long layout has no such column.
        layout: `nested`, one row a user, or `long`, one row an entry.
    """
    reason_V = reason_BK[row_BK >= 0]
    because = _encoded(reason_V, item_ids, reason_V < 0)
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
    """The lists of the items nearest to B items as a table.

    Args:
        query_ids: (B,) ids of these items.
        item_ids: (N,) of the catalogue.
        row_BK: (B, K) rows of the catalogue, nearest first, -1 after the last entry.
        score_BK: (B, K) cosines.
        layout: `nested`, one row an item, or `long`, one row an entry.
    """
    entries = _entries(item_ids, row_BK, score_BK)
    if layout == "nested":
        return _nested(query_ids, row_BK, entries, [], SIMILAR_ITEMS)
    return _long(query_ids, row_BK, entries, SIMILAR_ITEMS_LONG)


def lists_file(table: pa.Table) -> bytes:
    """The Parquet file of such a table.

    The Arrow schema is left out, so that readers see encoded ids as strings. Only the query ids
    have statistics: minimum and maximum of the items let no reader skip a file, and took longer to
    compute than everything else. Scores hardly ever repeat, so they have no dictionary. There is
    one row group, since each would store the item ids again.
    """
    coded = [path for path, kind in _leaves(table.schema) if not pa.types.is_floating(kind)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", use_dictionary=coded,
        write_statistics=table.schema.names[:1], store_schema=False,
    ) as writer:  # fmt: skip
        writer.write_table(table, row_group_size=max(len(table), 1))
        # Without the Arrow schema the writer leaves them out.
        writer.add_key_value_metadata(table.schema.metadata or {})
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _leaves(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """The columns as Parquet names them, and their types."""
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
    return [_encoded(row_BK[filled_BK], item_ids), pa.array(score_BK[filled_BK], pa.float32())]


def _nested(
    ids: pa.LargeStringArray,
    row_BK: npt.NDArray[np.int64],
    entries: list[pa.Array],
    others: list[pa.Array],
    schema: pa.Schema,
) -> pa.Table:
    position = schema.get_field_index("items")
    fields = _with_types_of(schema.field(position).type.value_type, entries)
    structs = pa.StructArray.from_arrays(entries, fields=fields)
    offsets = offsets_from_lengths((row_BK >= 0).sum(axis=1)).astype(np.int32)
    lists = pa.ListArray.from_arrays(offsets, structs)
    schema = schema.set(position, schema.field(position).with_type(pa.list_(pa.struct(fields))))
    return pa.table([ids, lists, *others], schema=schema)


def _long(
    ids: pa.LargeStringArray,
    row_BK: npt.NDArray[np.int64],
    entries: list[pa.Array],
    schema: pa.Schema,
) -> pa.Table:
    list_V, rank_V = np.nonzero(row_BK >= 0)
    columns = [ids.take(pa.array(list_V)), pa.array(rank_V + 1, pa.int32())]
    fields = [*list(schema)[:2], *_with_types_of(list(schema)[2:], entries)]
    return pa.table([*columns, *entries], schema=pa.schema(fields))


def _with_types_of(
    fields: "list[pa.Field] | pa.StructType", columns: list[pa.Array]
) -> list[pa.Field]:
    """The fields with the types of the columns, whose ids are dictionary-encoded."""
    return [field.with_type(column.type) for field, column in zip(fields, columns, strict=True)]


def _encoded(
    row_V: npt.NDArray[np.int64],
    item_ids: pa.LargeStringArray,
    none_V: npt.NDArray[np.bool_] | None = None,
) -> pa.DictionaryArray:
    """The ids at some rows of the catalogue, dictionary-encoded; null where `none_V` is true."""
    is_used_N = np.zeros(len(item_ids), bool)
    is_used_N[row_V if none_V is None else row_V[~none_V]] = True
    code_N = np.cumsum(is_used_N, dtype=np.int32) - 1
    codes = pa.array(code_N[row_V], mask=none_V)
    used = item_ids.take(pa.array(np.flatnonzero(is_used_N)))
    return pa.DictionaryArray.from_arrays(codes, used)


@dataclass(frozen=True)
class Lists:
    """A table of lists as arrays, whichever its layout.

    Attributes:
        query_ids: (B,).
        offsets: (B + 1,) where the entries of each list begin.
        item_ids: (V,).
        score_V: (V,) NaN for a missing score.
        reason_V: (V,) item ids of the reasons, or None where the table has none.
        rank_V: (V,) or None in the nested layout.
        cold_B: (B,) or None where the table has no such column.
    """

    query_ids: pa.Array
    offsets: npt.NDArray[np.int64]
    item_ids: pa.Array
    score_V: npt.NDArray[np.float32]
    reason_V: pa.Array | None
    rank_V: npt.NDArray[np.int64] | None
    cold_B: npt.NDArray[np.bool_] | None

    @property
    def list_V(self) -> npt.NDArray[np.int64]:
        """(V,) the list that each entry is in."""
        return np.repeat(np.arange(len(self.query_ids)), np.diff(self.offsets))


def read_lists(table: pa.Table, kind: Kind) -> Lists | None:
    """The lists of a table of either layout; None where its columns are not the declared ones."""
    table = table.combine_chunks()
    columns = [_combined(column) for column in table.columns]
    if table.schema.equals(SCHEMAS[kind, "nested"]):
        lengths = pc.fill_null(pc.list_value_length(columns[1]), 0).to_numpy()
        item_ids, scores, *because = columns[1].flatten().flatten()
        query_ids, cold_B, rank_V = columns[0], None, None
        if len(columns) > 2:
            cold_B = pc.fill_null(columns[2], True).to_numpy(zero_copy_only=False)
    elif table.schema.equals(SCHEMAS[kind, "long"]):
        entry_query_ids, ranks, item_ids, scores, *because = columns
        begins_V = np.ones(len(table), bool)
        is_same = pc.fill_null(pc.equal(entry_query_ids[1:], entry_query_ids[:-1]), False)
        begins_V[1:] = ~is_same.to_numpy(zero_copy_only=False)
        first_B = np.flatnonzero(begins_V)
        query_ids, cold_B = entry_query_ids.take(pa.array(first_B)), None
        lengths = np.diff(first_B, append=len(table))
        rank_V = pc.fill_null(ranks, 0).to_numpy().astype(np.int64)
    else:
        return None
    return Lists(
        query_ids=query_ids,
        offsets=offsets_from_lengths(lengths),
        item_ids=item_ids,
        score_V=scores.to_numpy(zero_copy_only=False).astype(np.float32),
        reason_V=because[0] if because else None,
        rank_V=rank_V,
        cold_B=cold_B,
    )


def _combined(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array."""
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined
