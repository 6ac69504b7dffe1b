"""JSON lines as input tables."""

import bz2
import gzip
import json
from pathlib import Path

import pytest

from tests.storage import log, refusal, rows
from visrec.storage.schemas import INTERACTIONS
from visrec.storage.store import Store
from visrec.storage.tables import read_batches


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


def test_json_lines_are_read_in_blocks(tmp_path: Path) -> None:
    line = json.dumps({"user_id": "somebody", "item_id": "a", "timestamp": 5, "note": "x" * 150})
    many = 60_000
    with gzip.open(tmp_path / "log.jsonl.gz", "wt", compresslevel=1) as file:
        file.write(f"{line}\n" * many + line.replace("5,", '5, "rating": 2,'))
    tables = list(read_batches(log(str(tmp_path / "log.jsonl.gz")), INTERACTIONS))
    assert sum(map(len, tables)) == many + 1
    assert max(map(len, tables)) * (len(line) + 1) <= 5 << 20
    assert tables[-1]["rating"].to_pylist()[-1] == 2


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
