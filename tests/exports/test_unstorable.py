"""Ids and lists that a store cannot have are refused by name."""

from unittest import mock

import pytest

from visrec.errors import InputError
from visrec.exports.batches import ListBatch, to_json
from visrec.exports.dynamodb_store import DynamoStore
from visrec.exports.postgres_store import PostgresStore

PLAIN = '[{"item_id":"a","score":0.5}]'


def batch(id: str, items: str | None = PLAIN) -> list[ListBatch]:
    return [ListBatch(["u1", id], [PLAIN, items], [False, False])]


def with_item(item_id: str) -> str:
    """The entries of a list of one item."""
    return f'[{{"item_id":{to_json(item_id)},"score":0.5}}]'


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (batch("a\0b"), r"NUL character in the id 'a\\x00b' or in an id of its list"),
        (batch("u2", with_item("a\0b")), "NUL character in the id 'u2' or in an id of its list"),
        (batch("x" * 2601), r"'x{40}'\.\.\., which has 2,601 bytes; expected at most 2,600"),
    ],
)
def test_id_that_postgresql_cannot_have_is_refused(refused: list[ListBatch], message: str) -> None:
    connection = mock.MagicMock()
    with pytest.raises(InputError, match=message):
        PostgresStore(connection, "recommendations", "user_id").write(1, refused)
    connection.cursor().__enter__().copy().__enter__().write_row.assert_not_called()


@pytest.mark.parametrize("id", ["\\u0000", "\\\\u0000", "x" * 2600, "Ä"])
def test_other_ids_go_to_postgresql(id: str) -> None:
    connection = mock.MagicMock()
    PostgresStore(connection, "recommendations", "user_id").write(1, batch(id, with_item(id)))
    assert connection.cursor().__enter__().copy().__enter__().write_row.call_count == 2


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (batch("x" * 2033), "which has 2,033 bytes; expected at most 2,032"),
        (batch("ä" * 1017), "which has 2,034 bytes; expected at most 2,032"),
        (batch("u2", " " * 500_000), "list of 'u2', which has 500,000 bytes as JSON; .*--k"),
    ],
)
def test_id_or_list_that_dynamodb_cannot_have_is_refused(
    refused: list[ListBatch], message: str
) -> None:
    client = mock.MagicMock()
    with pytest.raises(InputError, match=message):
        DynamoStore(client, "visrec", "recommendations").write(1, refused)
    client.batch_write_item.assert_not_called()


def test_other_ids_go_to_dynamodb() -> None:
    client = mock.MagicMock()
    client.batch_write_item.return_value = {}
    DynamoStore(client, "visrec", "recommendations").write(1, batch("\0" + "x" * 2000))
    client.batch_write_item.assert_called_once()
