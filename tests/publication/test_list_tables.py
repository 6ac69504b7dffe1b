"""Recommendation tables: the declared columns, and the same lists in both layouts."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.shop import through_a_file
from visrec.publication.list_tables import Layout, lists_file, lists_table
from visrec.storage.schemas import RECOMMENDATIONS, RECOMMENDATIONS_LONG

USERS = pa.array(["u1", "u2", "u3", "u4"])
ITEMS = pa.array(["a", "b", "c", "d"])
# Of each user the entries (item, score, because), and whether the list is the fallback.
EXPECTED: list[tuple[str, list[tuple[str, float, str | None]], bool]] = [
    ("u1", [("d", 3.5, "a"), ("b", 1.0, "c"), ("a", -2.0, None)], False),
    ("u2", [("c", 0.25, None)], True),
    ("u3", [], False),
    ("u4", [("a", 9.0, "a"), ("b", 8.0, "b"), ("c", 7.0, "d")], False),
]


def _table(layout: Layout, rows: slice = slice(None)) -> pa.Table:
    """The table as a reader of its file sees it."""
    none = -np.inf
    table = lists_table(
        USERS[rows],
        ITEMS,
        np.array([[3, 1, 0], [2, -1, -1], [-1, -1, -1], [0, 1, 2]])[rows],
        np.array([[3.5, 1, -2], [0.25, none, none], [none] * 3, [9, 8, 7]], np.float32)[rows],
        np.array([[0, 2, -1], [-1, -1, -1], [-1, -1, -1], [0, 1, 3]])[rows],
        np.array([False, True, False, False])[rows],
        layout,
    )
    return through_a_file(table)


def test_nested_layout_has_one_row_a_user() -> None:
    table = _table("nested")
    assert table.schema.equals(RECOMMENDATIONS)
    table.validate(full=True)
    found = [
        (row["user_id"], [tuple(entry.values()) for entry in row["items"]], row["cold"])
        for row in table.to_pylist()
    ]
    assert found == EXPECTED


def test_long_layout_has_one_row_an_entry_with_ranks_from_one() -> None:
    table = _table("long")
    assert table.schema.equals(RECOMMENDATIONS_LONG)
    table.validate(full=True)
    expected: list[dict[str, Any]] = [
        {
            "user_id": user,
            "rank": position + 1,
            "item_id": item,
            "score": score,
            "because_item_id": because,
        }
        for user, entries, _ in EXPECTED
        for position, (item, score, because) in enumerate(entries)
    ]
    assert table.to_pylist() == expected


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_table_without_lists_has_the_same_columns(layout: Layout) -> None:
    table = _table(layout, slice(0, 0))
    assert table.num_rows == 0
    assert table.schema.equals(_table(layout).schema)


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_users_and_items_may_be_slices_of_longer_arrays(layout: Layout) -> None:
    users = pa.concat_arrays([pa.array(["x"]), USERS]).slice(1)
    items = pa.concat_arrays([pa.array(["y", "z"]), ITEMS]).slice(2)
    rows = np.array([[1], [0], [3], [2]])
    table = lists_table(
        users, items, rows, rows.astype(np.float32), rows, np.zeros(4, bool), layout
    )
    flat = table if layout == "long" else pa.table({"items": table["items"]})
    text = str(flat.to_pylist())
    assert "'y'" not in text
    assert "'z'" not in text
    assert table["user_id"].to_pylist() == ["u1", "u2", "u3", "u4"]


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_file_keeps_metadata_and_can_be_skipped_by_its_query_ids(layout: Layout) -> None:
    rows = np.array([[1], [0], [3], [2]])
    table = lists_table(
        USERS, ITEMS, rows, rows.astype(np.float32), rows, np.zeros(4, bool), layout
    ).replace_schema_metadata({"visrec.shard": "3"})
    file = pq.ParquetFile(pa.BufferReader(lists_file(table)))
    assert file.schema_arrow.metadata == {b"visrec.shard": b"3"}
    group = file.metadata.row_group(0)
    columns = [group.column(at) for at in range(group.num_columns)]
    assert (columns[0].statistics.min, columns[0].statistics.max) == ("u1", "u4")
    assert not any(column.is_stats_set for column in columns[1:])
    coded = {c.path_in_schema.split(".")[-1]: "RLE_DICTIONARY" in c.encodings for c in columns}
    assert not coded["score"]
    assert coded["item_id"]
    assert coded["because_item_id"]


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_file_has_the_ids_of_its_own_entries_once(layout: Layout) -> None:
    """Of a catalogue whose text is 40 MB, ten items are listed, in more rows than one group has."""
    catalogue = pa.array([f"{row:040}" for row in range(10**6)], pa.large_string())
    rows = np.tile(np.arange(5, 10**6, 10**5), (110_000, 1))
    users = pa.array(range(len(rows))).cast(pa.string())
    scores = np.zeros(rows.shape, np.float32)
    table = lists_table(users, catalogue, rows, scores, rows[:, ::-1], np.zeros(len(rows), bool),
                        layout)  # fmt: skip
    data = lists_file(table)
    assert len(data) < 3 * 2**20
    file = pq.ParquetFile(pa.BufferReader(data))
    assert file.num_row_groups == 1
    declared = {"nested": RECOMMENDATIONS, "long": RECOMMENDATIONS_LONG}[layout]
    assert file.schema_arrow.equals(declared)
    table = file.read()
    entries = table if layout == "long" else table["items"].combine_chunks().flatten().flatten()
    item_ids = entries["item_id"] if layout == "long" else entries[0]
    because = entries["because_item_id"] if layout == "long" else entries[2]
    assert item_ids[:10].to_pylist() == [f"{row:040}" for row in rows[0]]
    assert because[-10:].to_pylist() == [f"{row:040}" for row in rows[0, ::-1]]
