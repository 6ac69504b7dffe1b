"""The stores as a shop reads them, with the queries of docs/operations.md and nothing of visrec's.

Each reader also counts all entries that lie in the store, those that no shop sees included.
"""

import json
from collections.abc import Mapping
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
    """

    url: str
    env: Mapping[str, str]

    def read(self, user_id: str) -> list[dict[str, Any]] | None:
        """The list of one user."""

    def read_all(self) -> Seen:
        """All lists, as of one moment."""

    def run_id(self) -> str | None:
        """The run that the store says it has."""

    def entries(self) -> int:
        """How many entries there are, visible or not."""


class PostgresShop:
    """A shop in a schema of its own."""

    def __init__(self, server: Server, schema: str, name: str = "recommendations") -> None:
        self.env: Mapping[str, str] = {}
        self._view, self._id = f"visrec_{name}", "item_id" if "similar" in name else "user_id"
        base = server.url.replace("visrec@", f"visrec:{server.password}@")
        self.url = f"{base}?options=-csearch_path%3D{schema}"
        self._connection = psycopg.connect(self.url, autocommit=True)
        self._connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")

    def read(self, user_id: str) -> list[dict[str, Any]] | None:
        query = f"SELECT items FROM {self._view} WHERE {self._id} = %s"
        found = self._connection.execute(query, [user_id]).fetchone()
        return None if found is None else found[0]

    def read_all(self) -> Seen:
        if self._missing():
            return {}
        rows = self._connection.execute(f"SELECT {self._id}, items FROM {self._view}").fetchall()
        assert len({row[0] for row in rows}) == len(rows)
        return dict(rows)

    def run_id(self) -> str | None:
        row = self._connection.execute(f"SELECT run_id FROM {self._view} LIMIT 1").fetchone()
        return None if row is None else str(row[0])

    def entries(self) -> int:
        row = self._connection.execute(f"SELECT count(*) FROM {self._view}_lists").fetchone()
        assert row is not None
        return int(row[0])

    def _missing(self) -> bool:
        row = self._connection.execute("SELECT to_regclass(%s)", [self._view]).fetchone()
        return row is None or row[0] is None


class RedisShop:
    """A shop in a database of its own."""

    def __init__(self, server: Server, name: str = "recommendations") -> None:
        self.env: Mapping[str, str] = {}
        self.url = server.url.replace("redis://", f"redis://:{server.password}@")
        self._client: Any = redis.Redis.from_url(self.url, decode_responses=True)
        self._key = f"visrec:{name}"
        self._client.flushdb()

    def read(self, user_id: str) -> list[dict[str, Any]] | None:
        return self._read_at(user_id, *self._client.hmget(self._key, "generation", "since"))

    def read_all(self) -> Seen:
        while True:  # until nothing was switched or swept while it was read
            state = self._client.hgetall(self._key)
            if not state:
                return {}
            ids = [
                key.removeprefix(f"{self._key}:")
                for key in self._client.scan_iter(f"{self._key}:*")
            ]
            lists = {id: self._read_at(id, state["generation"], state["since"]) for id in ids}
            if self._client.hmget(self._key, "generation") == [state["generation"]]:
                return {id: items for id, items in lists.items() if items is not None}

    def run_id(self) -> str | None:
        found: str | None = self._client.hget(self._key, "run_id")
        return found or None

    def entries(self) -> int:
        return sum(self._client.zcard(key) for key in self._client.scan_iter(f"{self._key}:*"))

    def _read_at(self, id: str, generation: str, since: str) -> list[dict[str, Any]] | None:
        key = f"{self._key}:{id}"
        found = self._client.zrevrangebyscore(key, generation, since, start=0, num=1)
        value = json.loads(found[0]) if found else {}
        items: list[dict[str, Any]] | None = value.get("items")
        return items


class DynamoShop:
    """A shop in a table of its own."""

    def __init__(self, server: Server, table: str, name: str = "recommendations") -> None:
        self.env, self.url = server.env, f"dynamodb://{table}?region=us-east-1"
        self._table, self._name = table, name
        self._client = dynamodb_client(server.env)

    def read(self, user_id: str) -> list[dict[str, Any]] | None:
        return self._read_at(f"{self._name}:{user_id}", self._state())

    def read_all(self) -> Seen:
        if self._table not in self._client.list_tables()["TableNames"]:
            return {}
        while True:
            state = self._state()
            if not state:
                return {}
            names = {item["id"]["S"] for item in self._scan()}
            found = {name: self._read_at(name, state) for name in names}
            if self._state()["present"] == state["present"]:
                return {
                    name.removeprefix(f"{self._name}:"): items
                    for name, items in found.items()
                    if items is not None
                }

    def run_id(self) -> str | None:
        return self._state()["run_id"].get("S")

    def entries(self) -> int:
        return len(self._scan())

    def _state(self) -> dict[str, Any]:
        key = {"id": {"S": f"visrec:{self._name}"}, "generation": {"N": "0"}}
        found = self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        state: dict[str, Any] = found.get("Item", {})
        return state

    def _scan(self) -> list[dict[str, Any]]:
        pages = self._client.get_paginator("scan").paginate(
            TableName=self._table, ConsistentRead=True
        )
        items = [item for page in pages for item in page["Items"]]
        return [item for item in items if item["id"]["S"].startswith(f"{self._name}:")]

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
