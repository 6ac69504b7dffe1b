"""JSON lines as input tables."""

import bz2
import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.storage import log, refusal, rows
from visrec.errors import SchemaError
from visrec.storage import json_files
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import INTERACTIONS, ITEMS
from visrec.storage.store import Store
from visrec.storage.tables import load_table, read_batches


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path))


def test_json_lines_are_read_like_csv(local_store: Store) -> None:
    lines = [
        {"user_id": "é u", "item_id": "007", "timestamp": 1, "list": [1], "object": {"rating": 1}},
        {"user_id": "v", "item_id": "2021-03-01", "timestamp": 2},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "\n"
    expected = [("é u", "007", 1), ("v", "2021-03-01", 2)]
    for name, data in (
        ("log.jsonl", text.encode()),
        ("log.ndjson", ("\ufeff" + text).encode()),
        ("log.JSONL.GZ", gzip.compress(text.strip().encode())),
        ("log.jsonl.bz2", bz2.compress(text.encode("utf-16"))),
    ):
        local_store.write(name, data)
        assert rows(local_store, name) == expected
        for table in read_batches(log(local_store.uri(name)), INTERACTIONS):
            assert table.column_names == ["user_id", "item_id", "timestamp"]


def test_json_values_may_change_their_type(local_store: Store) -> None:
    lines = [
        '{"user_id": 7, "item_id": "a", "timestamp": 1}',
        '{"user_id": "u", "item_id": 12345678901234567890, "timestamp": 1.5, "rating": 4}',
        '{"user_id": null, "timestamp": "1970-01-01T00:00:02Z"}',
    ]
    local_store.write("log.jsonl", "\n".join([*lines, ""]).encode())
    [table] = read_batches(log(local_store.uri("log.jsonl")), INTERACTIONS)
    assert table.to_pydict() == {
        "user_id": ["7", "u", None],
        "item_id": ["a", "12345678901234567890", None],
        "timestamp": [1, 1, 2],
        "rating": [None, 4, None],
    }


def test_numbers_among_ids_are_the_ids_of_other_tables(local_store: Store) -> None:
    """As pandas writes a column of integers with nulls: 7.0 and NaN."""
    for users, expected in (
        (["7.0", "NaN", "8.0"], ["7", None, "8"]),
        (["7", "7.0", "7e0", "-0.0"], ["7", "7", "7", "0"]),
        (['"u"', "NaN", "null", '"NaN"', '"7.0"'], ["u", None, None, "NaN", "7.0"]),
        (["7.5", '"u"'], ["7.5", "u"]),
    ):
        lines = [f'{{"user_id": {user}, "item_id": "i", "timestamp": 1}}\n' for user in users]
        local_store.write("log.jsonl", "".join(lines).encode())
        [table] = read_batches(log(local_store.uri("log.jsonl")), INTERACTIONS)
        assert table["user_id"].to_pylist() == expected


def test_key_that_a_whole_file_lacks_is_null_there(local_store: Store) -> None:
    write_lines(local_store, "items/a.jsonl", [{"item_id": "a", "title": "t"}])
    write_lines(local_store, "items/b.jsonl", [{"item_id": "b", "available": False}])
    table = load_table(InputTable(uri=local_store.uri("items"), key="items"), ITEMS)
    assert table.to_pydict() == {
        "item_id": ["a", "b"], "available": [None, False], "title": ["t", None]
    }  # fmt: skip
    local_store.write("items/c.csv", b"item_id,title\nc,t\n")
    with pytest.raises(SchemaError, match=r"c\.csv has item_id, title, and others also have avail"):
        load_table(InputTable(uri=local_store.uri("items"), key="items"), ITEMS)


def test_json_lines_are_read_in_blocks(tmp_path: Path) -> None:
    line = json.dumps({"user_id": "somebody", "item_id": "a", "timestamp": 5, "note": "x" * 150})
    many = 60_000
    with gzip.open(tmp_path / "log.jsonl.gz", "wt", compresslevel=1) as file:
        file.write(f"{line}\n" * many + line.replace("5,", '5, "rating": 2,'))
    tables = list(read_batches(log(str(tmp_path / "log.jsonl.gz")), INTERACTIONS))
    assert sum(map(len, tables)) == many + 1
    assert max(map(len, tables)) * (len(line) + 1) <= 5 << 20
    assert all(table.column_names == tables[0].column_names for table in tables)
    assert tables[0]["rating"].null_count == len(tables[0])
    assert tables[-1]["rating"].to_pylist()[-1] == 2


def test_column_that_begins_in_a_later_block_is_one_of_the_table(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_BLOCK_BYTES", 1_000)
    items = [{"item_id": f"i{n}", "note": {"stock": 1}} for n in range(300)]
    items[250]["stock"] = 0
    write_lines(local_store, "items.jsonl", items)
    stock = load_table(InputTable(uri=local_store.uri("items.jsonl"), key="items"), ITEMS)["stock"]
    assert (stock.null_count, stock[250].as_py()) == (299, 0)
    del items[250]["stock"]
    write_lines(local_store, "items.jsonl", items)
    table = load_table(InputTable(uri=local_store.uri("items.jsonl"), key="items"), ITEMS)
    assert "stock" not in table.column_names


def test_mapped_column_may_begin_after_the_first_lines(local_store: Store) -> None:
    items = [{"sku": f"i{n}"} for n in range(300)]
    items[250]["qty"] = "7"
    write_lines(local_store, "items.jsonl", items)
    columns = {"item_id": "sku", "stock": "qty"}
    table = InputTable(
        uri=local_store.uri("items.jsonl"),
        key="items",
        columns=columns,
        columns_key="items_columns",
    )
    assert load_table(table, ITEMS)["stock"][250].as_py() == 7
    misspelt = dataclasses.replace(table, columns={**columns, "stock": "qtty"})
    with pytest.raises(SchemaError, match="has no column qtty"):
        load_table(misspelt, ITEMS)


def test_unchanged_file_is_looked_through_once(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(local_store, "items.jsonl", [{"item_id": "a"}, {"item_id": "b", "stock": 1}])
    opened: list[str] = []
    really = Store.open_input_stream

    def counted(store: Store, name: str, codec: str | None = None) -> Any:
        opened.append(name)
        return really(store, name, codec)

    monkeypatch.setattr(Store, "open_input_stream", counted)
    table = InputTable(uri=local_store.uri("items.jsonl"), key="items")
    for _ in range(3):
        assert load_table(table, ITEMS)["stock"].to_pylist() == [None, 1]
    assert len(opened) == 2 * (1 + 3)  # each reading also looks at the encoding


def write_lines(store: Store, name: str, rows: list[dict[str, Any]]) -> None:
    store.write(name, "".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"user_id": 1}]', "is a JSON array; expected one object a line"),
        (b'{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id"', "line 2, '{\"user_id\"', is"),
        (b'{"user_id": [1], "item_id": 2, "timestamp": 3}', "user_id has the type list<"),
        (b'{"user": 1, "item_id": 2, "timestamp": 3}', "lacks the column user_id. Found user, it"),
        (b"PAR1\0\0", "expected JSON lines in UTF-8. Rename a Parquet file"),
    ],
)
def test_wrong_json_lines_are_refused(local_store: Store, data: bytes, message: str) -> None:
    local_store.write("log.jsonl", data)
    assert message in refusal(local_store.uri("log.jsonl"))
