"""Lists in DynamoDB. A shop reads with two requests, the first of which it may keep for a second:

    GetItem  id = visrec:recommendations, generation = 0         gives `present` and `since`
    Query    id = recommendations:u1, generation BETWEEN :since AND :present,
             ScanIndexForward = false, Limit = 1, ConsistentRead = true

The table has the partition key `id` (S) and the sort key `generation` (N). The entries of a list
are JSON in one attribute: as a list of maps they would cost more to write, and far more time.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from os import getpid
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from visrec.errors import InputError
from visrec.exports.batches import ListBatch, require_short_ids
from visrec.exports.state import ExportState
from visrec.storage.s3_settings import session

ERRORS = (BotoCoreError, ClientError)
_THREADS = 8  # requests in flight; the time of one is spent waiting
_REQUESTS = 25  # writes that DynamoDB takes at once
_SWEPT = 1000
_KEY_BYTES = 2048  # of a partition key
_LIST_BYTES = (400 << 10) - 3000  # an item has 400 KB with its key and the names of attributes
# Seconds before what DynamoDB did not process is sent again; on-demand tables double in minutes.
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_KEYS = {"id": "S", "generation": "N"}
_KEY_SCHEMA = [
    {"AttributeName": "id", "KeyType": "HASH"},
    {"AttributeName": "generation", "KeyType": "RANGE"},
]

Item = dict[str, Any]  # attributes as DynamoDB has them: {"id": {"S": "u1"}}


class NotProcessedError(BotoCoreError):
    """The table took no more writes."""

    fmt = "the table is throttled and did not take all writes; raise its write capacity"


@dataclass(frozen=True)
class DynamoStore:
    """Lists of one kind in one table.

    Attributes:
        client: boto3's, which has no static type.
        table: its name.
        name: the name of the lists.
    """

    client: Any
    table: str
    name: str

    @classmethod
    @contextmanager
    def open(
        cls, table: str, region: str | None, name: str, id_column: str
    ) -> Iterator["DynamoStore"]:
        """Connects, and creates the table, paid by request, where it is missing."""
        del id_column  # the keys say whose lists they are
        config = Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 8},
            max_pool_connections=_THREADS,
        )
        client = session(getpid()).create_client("dynamodb", region_name=region, config=config)
        store = cls(client, table, name)
        store._require_table()
        yield store

    def read_state(self) -> bytes | None:
        reply = self.client.get_item(TableName=self.table, Key=self._state_key, ConsistentRead=True)
        return reply["Item"]["record"]["S"].encode() if "Item" in reply else None

    def swap_state(self, before: bytes | None, after: ExportState) -> bool:
        item = {
            **self._state_key,
            "present": {"N": str(after.generation)},
            "since": {"N": str(after.since)},
            "run_id": {"S": after.run.run_id} if after.run else {"NULL": True},
            "record": {"S": after.to_json().decode()},
        }
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(id)"}
        if before is not None:
            condition = {
                "ConditionExpression": "#record = :before",
                "ExpressionAttributeNames": {"#record": "record"},
                "ExpressionAttributeValues": {":before": {"S": before.decode()}},
            }
        try:
            self.client.put_item(TableName=self.table, Item=item, **condition)
        except self.client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def transaction(self) -> AbstractContextManager[object]:
        return nullcontext()

    def write(self, generation: int, batches: Iterable[ListBatch]) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            for batch in batches:
                self._require_storable(batch)
                puts = [{"PutRequest": {"Item": item}} for item in self._items(generation, batch)]
                self._write_all(pool, puts)

    def clean_up(self, state: ExportState) -> int:
        with ThreadPoolExecutor(_THREADS) as pool:
            return sum(pool.map(lambda n: self._clean_segment(n, state), range(_THREADS)))

    @property
    def _state_key(self) -> Item:
        return _key(f"visrec:{self.name}", 0)

    def _items(self, generation: int, batch: ListBatch) -> Iterator[Item]:
        for id, items, cold in zip(batch.ids, batch.items, batch.cold, strict=True):
            item = _key(f"{self.name}:{id}", generation)
            if items is None:
                yield {**item, "removed": {"BOOL": True}}
                continue
            if cold is not None:
                item["cold"] = {"BOOL": cold}
            yield {**item, "items": {"S": items}}

    def _require_storable(self, batch: ListBatch) -> None:
        """Refuses what DynamoDB does not take.

        Raises:
            InputError: an id or a list is too long.
        """
        most_bytes = _KEY_BYTES - len(f"{self.name}:")
        require_short_ids(batch, most_bytes, "a key of DynamoDB")
        for id, items in zip(batch.ids, batch.items, strict=True):
            length = len((items or "").encode())
            if length > _LIST_BYTES:
                raise InputError(
                    f"Found the list of {id[:40]!r}, which has {length:,} bytes as JSON; expected "
                    f"at most {_LIST_BYTES:,}, the most that an item of DynamoDB holds. Nothing of "
                    "this export is visible. Export to another target, or make lists with a "
                    "smaller --k.",
                    key="to",
                )

    def _write_all(self, pool: ThreadPoolExecutor, requests: Sequence[Item]) -> None:
        starts = range(0, len(requests), _REQUESTS)
        # The results are read so that an error is raised.
        list(pool.map(lambda start: self._write(requests[start : start + _REQUESTS]), starts))

    def _write(self, requests: Sequence[Item]) -> None:
        """Sends writes until all are processed.

        Raises:
            NotProcessedError: some were not, after a minute.
        """
        for pause in (*_PAUSES, None):
            requests = self._send(requests)
            if not requests:
                return
            if pause is not None:
                time.sleep(pause)
        raise NotProcessedError

    def _send(self, requests: Sequence[Item]) -> Sequence[Item]:
        """Sends writes once; returns those that were not processed."""
        reply = self.client.batch_write_item(RequestItems={self.table: list(requests)})
        unprocessed: Sequence[Item] = reply.get("UnprocessedItems", {}).get(self.table, [])
        return unprocessed

    def _clean_segment(self, segment: int, state: ExportState) -> int:
        """Sweeps one part of the table, which has all entries of an id, one after another.

        What marks a removed list goes last: without it an older list would be seen again.
        """
        groups = groupby(self._scan(segment), lambda item: item["id"]["S"])
        old_entries = 0
        while batch := list(islice(((id, list(items)) for id, items in groups), _SWEPT)):
            hidden: list[Item] = []
            marks: list[Item] = []
            for id, items in batch:
                seen = _seen(items, state)
                hidden += [_key(id, n) for n in map(_generation, items) if n != seen]
                marks += [_key(id, seen) for item in items if _marks(item, seen)]
            for keys in (hidden, marks):
                for start in range(0, len(keys), _REQUESTS):
                    chosen = keys[start : start + _REQUESTS]
                    self._write([{"DeleteRequest": {"Key": key}} for key in chosen])
            old_entries += len(hidden) + len(marks)
        return old_entries

    def _scan(self, segment: int) -> Iterator[Item]:
        pages = self.client.get_paginator("scan").paginate(
            TableName=self.table,
            Segment=segment,
            TotalSegments=_THREADS,
            ConsistentRead=True,
            FilterExpression="begins_with(id, :prefix)",
            ProjectionExpression="id, generation, removed",
            ExpressionAttributeValues={":prefix": {"S": f"{self.name}:"}},
        )
        for page in pages:
            yield from page["Items"]

    def _require_table(self) -> None:
        try:
            found = self.client.describe_table(TableName=self.table)["Table"]
        except self.client.exceptions.ResourceNotFoundException:
            self._create_table()
            return
        types = {
            each["AttributeName"]: each["AttributeType"] for each in found["AttributeDefinitions"]
        }
        keys = {each["AttributeName"]: types[each["AttributeName"]] for each in found["KeySchema"]}
        if keys != _KEYS:
            raise InputError(
                f"Found the table {self.table} with the keys {_shown(keys)}; expected "
                f"{_shown(_KEYS)}. Name another table: it is created if it is missing.",
                key="to",
            )

    def _create_table(self) -> None:
        definitions = [
            {"AttributeName": name, "AttributeType": kind} for name, kind in _KEYS.items()
        ]
        self.client.create_table(
            TableName=self.table,
            AttributeDefinitions=definitions,
            KeySchema=_KEY_SCHEMA,
            BillingMode="PAY_PER_REQUEST",
        )
        waiter = self.client.get_waiter("table_exists")
        waiter.wait(TableName=self.table, WaiterConfig={"Delay": 1, "MaxAttempts": 120})


def _key(id: str, generation: int | None) -> Item:
    return {"id": {"S": id}, "generation": {"N": str(generation)}}


def _generation(item: Item) -> int:
    return int(item["generation"]["N"])


def _seen(items: Sequence[Item], state: ExportState) -> int | None:
    """The generation of the entry that readers see; None if they see none."""
    generations = map(_generation, items)
    return max((n for n in generations if state.since <= n <= state.generation), default=None)


def _marks(item: Item, seen: int | None) -> bool:
    """Whether it is what readers see, and says that the list is removed."""
    return _generation(item) == seen and "removed" in item


def _shown(keys: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in keys.items())
