"""Columns under other names than the declared ones."""

import re
from pathlib import Path

import pytest

from tests.storage import COLUMNS, KEY, LOG, log, put, refusal
from visrec.errors import InputError, SchemaError
from visrec.storage.input_table import check_mapping
from visrec.storage.schemas import INTERACTIONS
from visrec.storage.store import Store
from visrec.storage.tables import digest_files, digest_table, read_batches


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path))


def test_mapped_columns_are_read_in_every_format(local_store: Store) -> None:
    own = LOG.rename_columns(["customer_email", "sku", "ordered_at"])
    put(local_store, "log/a.csv", own)
    put(local_store, "log/sku=x/b.parquet", own)
    local_store.write("log/c.jsonl", b'{"customer_email": "w", "sku": 7, "ordered_at": 3}')
    tables = read_batches(log(local_store.uri("log"), **COLUMNS), INTERACTIONS)
    assert [tuple(row.values()) for table in tables for row in table.to_pylist()] == [
        ("u", "007", 1), ("v", "b", 2), ("w", "7", 3), ("u", "x", 1), ("v", "x", 2),
    ]  # fmt: skip


def test_wrong_mapping_is_refused_with_the_columns_and_the_closest(local_store: Store) -> None:
    put(local_store, "log.csv", LOG.rename_columns(["customer_email", "sku", "ordered_at"]))
    table = log(local_store.uri("log.csv"), **(COLUMNS | {"user_id": "costumer_email"}))
    with pytest.raises(SchemaError) as caught:
        list(read_batches(table, INTERACTIONS))
    assert "--interactions.columns {user_id: costumer_email}, but" in str(caught.value)
    assert "has no column costumer_email; did you mean customer_email? Its" in str(caught.value)
    assert "Its columns are customer_email, sku, ordered_at." in str(caught.value)


def test_missing_columns_are_answered_with_a_mapping(local_store: Store) -> None:
    put(local_store, "log.csv", LOG.rename_columns(["customer_email", "sku", "ordered_at"]))
    assert (
        "add --interactions.columns '{user_id: customer_email, item_id: sku, timestamp: "
        "ordered_at}'." in refusal(local_store.uri("log.csv"))
    )
    put(local_store, "log.csv", LOG.rename_columns(["a", "sku", "b"]))
    message = refusal(local_store.uri("log.csv"))
    assert "'{user_id: COLUMN, item_id: sku, timestamp: COLUMN}' with these names" in message
    local_store.write("log.csv", b"u1,i1,1700000000\nu2,i2,1700000001\n")
    assert "first line looks like a row; add a header" in refusal(local_store.uri("log.csv"))


def test_placeholder_of_init_is_answered_with_the_columns(local_store: Store) -> None:
    put(local_store, "log.csv", LOG.rename_columns(["email", "sku", "at"]))
    table = log(local_store.uri("log.csv"), user_id="email", item_id="COLUMN", timestamp="at")
    with pytest.raises(SchemaError) as caught:
        list(read_batches(table, INTERACTIONS))
    assert "expected the name of a column of" in str(caught.value)
    assert "in place of COLUMN. Its columns are email, sku, at." in str(caught.value)


def test_names_that_are_not_utf_8_are_answered_with_how_to_convert_the_file(
    local_store: Store,
) -> None:
    local_store.write("log.csv", "Käufer;Größe;Datum\na;b;2026-01-01\n".encode("cp1252"))
    expected = (
        "looks like Windows-1252, since line 1 is not UTF-8; expected UTF-8 (in Excel: CSV UTF-8). "
        "Convert it with `iconv -f WINDOWS-1252 -t UTF-8 log.csv > utf8.csv`, or use `visrec "
    )
    assert expected in refusal(local_store.uri("log.csv"))
    table = log(local_store.uri("log.csv"), user_id="Käufer")
    with pytest.raises(InputError, match=re.escape(expected)):
        list(read_batches(table, INTERACTIONS))


def test_mapping_is_part_of_the_digest(local_store: Store) -> None:
    put(local_store, "log.csv", LOG)
    uri = local_store.uri("log.csv")
    plain = digest_table(log(uri))
    assert plain == digest_files(uri, KEY) == digest_table(log(uri, user_id="user_id"))
    assert len({plain, digest_table(log(uri, user_id="x")), digest_table(log(uri, a="x"))}) == 3


def test_mapping_of_undeclared_columns_is_refused() -> None:
    check_mapping(COLUMNS, INTERACTIONS, "interactions.columns")
    for mapping, hint in (
        ({"customer_email": "user_id"}, "; did you mean {user_id: customer_email}?"),
        ({"userid": "email"}, "; did you mean user_id?"),
        ({"price": "net"}, "price is no column that visrec reads. Expected"),
    ):
        with pytest.raises(InputError) as caught:
            check_mapping(mapping, INTERACTIONS, "interactions.columns")
        assert hint in str(caught.value)
