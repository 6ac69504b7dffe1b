"""The stores as a shop reads them, with the queries of docs/operations.md and nothing of visrec's.

Each reader also counts all entries that lie in the store, those that no shop sees included.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import psycopg
import redis

from tests.exports.lists import Seen
from tests.stores import Server, dynamodb_client


class Reader(Protocol):
    """A shop.

    Attributes:
        url: the store, as `--to` takes it, with its password where it needs one.
        env: variables with which visrec finds it.
        name: the name of the lists that it reads.
    """

    url: str
    env: Mapping[str, str]
    name: str

    def read(self, user_id: str) -> list[dict[str, Any]] | None:
        """The list of one user."""

    def read_all(self) -> Seen:
        """All lists, as of one moment."""

    def run_id(self) -> str | None:
        """The run that the store says it has."""

    def entries(self) -> int:
        """How many entries there are, visible or not."""


def open_shop(kind: str, server: Server, name: str = "recommendations") -> Reader:
    """A shop on an empty store.

    Args:
        kind: the kind of the server, as in the fixture `start_store`.
        server: it.
        name: the name of the lists that the shop reads.
    """
    unique = f"t{uuid.uuid4().hex[:8]}"
    if kind == "postgresql":
        return PostgresShop(server, unique, name)
    if kind == "dynamodb":
        return DynamoShop(server, unique, name)
    return RedisShop(server, name)


class PostgresShop:
    """A shop in a schema of its own."""

    def __init__(self, server: Server, schema: str, name: str) -> None:
        self.env: Mapping[str, str] = {}
        self.name = name
        self.url = f"{server.private_url}?options=-csearch_path%3D{schema}"
        self.connection = psycopg.connect(self.url, autocommit=True)
        self.connection.execute(f"CREATE SCHEMA {schema}")

    def read(self, user_id: str) -> list[dict[str, Any]] | None:
        query = f"SELECT items FROM {self._view} WHERE {self._id} = %s"
        found = self._rows(query, [user_id])
        return found[0][0] if found else None

    def read_all(self) -> Seen:
        if self._rows("SELECT to_regclass(%s)", [self._view])[0][0] is None:
            return {}
        rows = self._rows(f"SELECT {self._id}, items FROM {self._view}")
        assert len({row[0] for row in rows}) == len(rows)
        return dict(rows)

    def run_id(self) -> str | None:
        rows = self._rows(f"SELECT run_id FROM {self._view} LIMIT 1")
        return str(rows[0][0]) if rows else None

    def entries(self) -> int:
        return int(self._rows(f"SELECT count(*) FROM {self._view}_lists")[0][0])

    @contextmanager
    def snapshot(self) -> Iterator[Callable[[], Seen]]:
        """Reads in one transaction, which sees the database as it was at its first query."""
        with self.connection.transaction():
            self.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self.connection.execute("SELECT 1")
            yield self.read_all

    @property
    def _view(self) -> str:
        return f"visrec_{self.name}"

    @property
    def _id(self) -> str:
        return "item_id" if self.name == "similar_items" else "user_id"

    def _rows(self, query: str, values: Sequence[str] = ()) -> list[tuple[Any, ...]]:
        return self.connection.execute(query, values).fetchall()


class RedisShop:
    """A shop in a database of its own."""

    def __init__(self, server: Server, name: str) -> None:
        self.env: Mapping[str, str] = {}
        self.name = name
        self.url = server.private_url
        self.client: Any = redis.Redis.from_url(self.url, decode_responses=True)
        self.client.flushdb()

    def read(self, user_id: str) -> list[dict[str, Any]] | None:
        return self._read_at(user_id, *self.client.hmget(self._key, "generation", "since"))

    def read_all(self) -> Seen:
        while True:  # until nothing was switched while it was read
            state = self.client.hgetall(self._key)
            if not state:
                return {}
            ids = [key.removeprefix(f"{self._key}:") for key in self._list_keys()]
            lists = {id: self._read_at(id, state["generation"], state["since"]) for id in ids}
            if self.client.hget(self._key, "generation") == state["generation"]:
                return {id: items for id, items in lists.items() if items is not None}

    def run_id(self) -> str | None:
        found: str | None = self.client.hget(self._key, "run_id")
        return found or None

    def entries(self) -> int:
        return sum(map(self.client.zcard, self._list_keys()))

    @property
    def _key(self) -> str:
        return f"visrec:{self.name}"

    def _list_keys(self) -> list[str]:
        return list(self.client.scan_iter(f"{self._key}:*"))

    def _read_at(self, id: str, generation: str, since: str) -> list[dict[str, Any]] | None:
        key = f"{self._key}:{id}"
        found = self.client.zrevrangebyscore(key, generation, since, start=0, num=1)
        value = json.loads(found[0]) if found else {}
        items: list[dict[str, Any]] | None = value.get("items")
        return items


class DynamoShop:
    """A shop in a table of its own."""

    def __init__(self, server: Server, table: str, name: str) -> None:
        self.env, self.url = server.env, f"dynamodb://{table}?region=us-east-1"
        self.name = name
        self._table, self._client = table, dynamodb_client(server.env)

    def read(self, user_id: str) -> list[dict[str, Any]] | None:
        return self._read_at(f"{self.name}:{user_id}", self._state())

    def read_all(self) -> Seen:
        if self._table not in self._client.list_tables()["TableNames"]:
            return {}
        while state := self._state():
            names = {item["id"]["S"] for item in self._scan()}
            found = {name: self._read_at(name, state) for name in names}
            if self._state()["present"] == state["present"]:
                lists = {n: items for n, items in found.items() if items is not None}
                return {n.removeprefix(f"{self.name}:"): items for n, items in lists.items()}
        return {}

    def run_id(self) -> str | None:
        found: str | None = self._state()["run_id"].get("S")
        return found

    def entries(self) -> int:
        return len(self._scan())

    def create_table(self, keys: Mapping[str, str]) -> None:
        """Creates the shop's table with other keys than visrec's."""
        kinds = [{"AttributeName": n, "AttributeType": kind} for n, kind in keys.items()]
        schema = [{"AttributeName": n, "KeyType": "HASH"} for n in keys]
        self._client.create_table(
            TableName=self._table,
            AttributeDefinitions=kinds,
            KeySchema=schema,
            BillingMode="PAY_PER_REQUEST",
        )

    def _state(self) -> dict[str, Any]:
        key = {"id": {"S": f"visrec:{self.name}"}, "generation": {"N": "0"}}
        found = self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        state: dict[str, Any] = found.get("Item", {})
        return state

    def _scan(self) -> list[dict[str, Any]]:
        pages = self._client.get_paginator("scan").paginate(
            TableName=self._table, ConsistentRead=True
        )
        items = [item for page in pages for item in page["Items"]]
        return [item for item in items if item["id"]["S"].startswith(f"{self.name}:")]

    def _read_at(self, id: str, state: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        reply = self._client.query(
            TableName=self._table,
            KeyConditionExpression="id = :id AND generation BETWEEN :since AND :present",
            ExpressionAttributeValues={
                ":id": {"S": id}, ":since": state["since"], ":present": state["present"]
            },
            ScanIndexForward=False,
            Limit=1,
            ConsistentRead=True,
        )  # fmt: skip
        item = reply["Items"][0] if reply["Items"] else {}
        return json.loads(item["items"]["S"]) if "items" in item else None
