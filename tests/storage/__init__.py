"""Helpers for tests of input tables."""

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

from visrec.errors import InputError
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import INTERACTIONS
from visrec.storage.store import Store
from visrec.storage.tables import read_batches

KEY = "interactions.path"
COLUMNS = {"user_id": "customer_email", "item_id": "sku", "timestamp": "ordered_at"}
LOG = pa.table({"user_id": ["u", "v"], "item_id": ["007", "b"], "timestamp": [1, 2]})


def log(uri: str, **columns: str) -> InputTable:
    return InputTable(uri=uri, key=KEY, columns=columns, columns_key="interactions.columns")


def items(uri: str) -> InputTable:
    return InputTable(uri=uri, key="items")


def csv(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pacsv.write_csv(table, sink)
    return bytes(sink.getvalue())


def put(store: Store, name: str, table: pa.Table) -> None:
    if name.endswith(".csv"):
        store.write(name, csv(table))
    else:
        store.write_table(name, table)


def rows(store: Store, name: str = "") -> list[tuple[str, str, int]]:
    tables = read_batches(log(store.uri(name)), INTERACTIONS)
    columns = ("user_id", "item_id", "timestamp")
    return [tuple(row[c] for c in columns) for table in tables for row in table.to_pylist()]


def refusal(uri: str, kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        list(read_batches(log(uri), INTERACTIONS))
    message = str(caught.value)
    assert uri in message
    assert f"--{KEY}" in message
    return message
