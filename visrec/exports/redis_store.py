"""Lists in Redis, or in a Redis cluster. A shop reads with two commands:

    HMGET visrec:recommendations generation since
    ZREVRANGEBYSCORE visrec:recommendations:u1 <generation> <since> LIMIT 0 1

Each user has a sorted set of one list, or of two while an export is under way; the score of a list
is its generation. No command touches two keys, so the keys may lie on any nodes of a cluster. There
is no expiry: lists of a night that failed are better than none.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import redis

from visrec.exports.batches import ListBatch
from visrec.exports.state import ExportState

ERRORS = (redis.RedisError,)
_LISTS = 256  # in one round trip, about 1 MB
_KEYS = 1000
_TIMEOUT_S = 30

_SWAP = """
if (redis.call('HGET', KEYS[1], 'record') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'generation', ARGV[3], 'since', ARGV[4],
           'run_id', ARGV[5])
return 1
"""
# Of one user keeps the list that readers see, and that only if it is one: what marks a removed list
# has nothing after its generation.
_SWEEP = """
local entries = redis.call('ZCARD', KEYS[1])
local seen = redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[2], 'WITHSCORES', 'LIMIT', 0, 1)
if #seen == 0 or not string.find(seen[1], '^{"generation":%d+,') then
  redis.call('DEL', KEYS[1])
  return entries
end
if entries > 1 then
  redis.call('DEL', KEYS[1])
  redis.call('ZADD', KEYS[1], seen[2], seen[1])
end
return entries - 1
"""


def is_valid_url(url: str) -> bool:
    """Whether a client can be made of a URL, whose path is a number or empty: redis would take
    database 0 for any other path."""
    try:
        redis.ConnectionPool.from_url(url).make_connection()
    except (ValueError, TypeError, redis.RedisError):  # a port or a parameter
        return False
    return re.fullmatch("/?[0-9]*", urlsplit(url).path) is not None


@dataclass(frozen=True)
class RedisStore:
    """Lists of one kind in one database or cluster.

    Attributes:
        client: the client of the server or the cluster; redis, which is optional, has no types
            here.
        key: the key of the record, and what the keys of all lists start with.
    """

    client: Any
    key: str

    @classmethod
    @contextmanager
    def open(cls, url: str, name: str, id_column: str) -> Iterator["RedisStore"]:
        """Connects to a server, or to the cluster that it is a node of."""
        del id_column  # the keys say whose lists they are
        # As redis-cli does; a password in the URL comes first.
        options = {"password": os.environ.get("REDISCLI_AUTH"), "socket_timeout": _TIMEOUT_S}
        client: Any = redis.Redis.from_url(url, **options)
        if client.info("cluster")["cluster_enabled"]:
            client.close()
            client = redis.RedisCluster.from_url(url, **options)
        try:
            yield cls(client, f"visrec:{name}")
        finally:
            client.close()

    def read_state(self) -> bytes | None:
        found: bytes | None = self.client.hget(self.key, "record")
        return found

    def swap_state(self, before: bytes | None, after: ExportState) -> bool:
        run_id = after.run.run_id if after.run else ""
        values = [before or b"", after.to_json(), after.generation, after.since, run_id]
        return bool(self.client.eval(_SWAP, 1, self.key, *values))

    def transaction(self) -> AbstractContextManager[object]:
        return nullcontext()

    def write(self, generation: int, batches: Iterable[ListBatch]) -> None:
        for batch in batches:
            entries = zip(batch.ids, _members(generation, batch), strict=True)
            while some := list(islice(entries, _LISTS)):
                pipeline = self.client.pipeline(transaction=False)
                for id, member in some:
                    pipeline.zadd(f"{self.key}:{id}", {member: generation})
                pipeline.execute()

    def clean_up(self, state: ExportState) -> int:
        old_entries = 0
        for node in self._nodes():
            script = node.script_load(_SWEEP)
            keys = node.scan_iter(f"{self.key}:*", count=_KEYS)
            while batch := list(islice(keys, _KEYS)):
                pipeline = node.pipeline(transaction=False)
                for key in batch:
                    pipeline.evalsha(script, 1, key, state.generation, state.since)
                old_entries += sum(pipeline.execute())
        return old_entries

    def _nodes(self) -> list[Any]:
        """A client of each server that has keys."""
        if not isinstance(self.client, redis.RedisCluster):
            return [self.client]
        return [self.client.get_redis_connection(node) for node in self.client.get_primaries()]


def _members(generation: int, batch: ListBatch) -> Iterator[str]:
    """The lists as readers get them, each with its generation: a sorted set has no value twice."""
    for items, cold in zip(batch.items, batch.cold, strict=True):
        start = f'{{"generation":{generation}'
        if items is None:
            yield f"{start}}}"
        elif cold is None:
            yield f'{start},"items":{items}}}'
        else:
            yield f'{start},"cold":{json.dumps(cold)},"items":{items}}}'
