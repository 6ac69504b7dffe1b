"""Writes the shards of a run: a shard's number in, a description of its file out."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.progress import Timer
from visrec.publication.list_tables import COLD_USERS_KEY, lists_file
from visrec.publication.run_spec import RunSpec
from visrec.publication.shards import keep_or_write, with_sha256
from visrec.recommend.fingerprint_files import (
    library_versions,
    versions_in,
    write_query_fingerprints,
)
from visrec.recommend.inputs import ScoringData
from visrec.recommend.queries import Queries


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A shard whose file is in the run.

    Attributes:
        name: the file's name.
        rows: rows of its table.
        queries: users, or items, that have a list.
        cold_users: users with the fallback list.
        bytes: the file's size.
        sha256: the file's SHA-256.
        fingerprints: the name of the file with its queries' fingerprints.
        fingerprints_sha256: that file's SHA-256.
        kept: whether the file was there and intact before this task. An earlier start of the run
            has written it, or an earlier try of this task whose worker died after the write.
        carried: lists that this task carried over from the last publication; 0 if `kept`.
        kernel: what the worker searches with, as `search_kernel_label` says; empty for a scorer
            that no kernel serves.
    """

    name: str
    rows: int
    queries: int
    cold_users: int
    bytes: int
    sha256: str
    fingerprints: str
    fingerprints_sha256: str
    kept: bool
    carried: int
    kernel: str = ""

    def to_row(self) -> dict[str, str | int | bool]:
        """The same as a row of a Ray dataset."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "WrittenShard":
        """A shard from a row, whose values may be numpy's."""
        return cls(
            name=str(row["name"]),
            rows=int(row["rows"]),
            queries=int(row["queries"]),
            cold_users=int(row["cold_users"]),
            bytes=int(row["bytes"]),
            sha256=str(row["sha256"]),
            fingerprints=str(row["fingerprints"]),
            fingerprints_sha256=str(row["fingerprints_sha256"]),
            kept=bool(row["kept"]),
            carried=int(row["carried"]),
            kernel=str(row["kernel"]),
        )


class ShardWriter:
    """Writes the shards of a run that are missing or damaged.

    Args:
        data: reads the queries.
        spec: the run.
        recommend: makes the table of a shard from its number and its queries, and says how many of
            the lists were carried over.
        timer: receives seconds by phase.
    """

    def __init__(
        self,
        data: ScoringData,
        spec: RunSpec,
        recommend: Callable[[int, Queries], tuple[pa.Table, int]],
        timer: Timer,
    ) -> None:
        self._data, self._spec, self._recommend, self._timer = data, spec, recommend, timer

    def __call__(self, shard: int) -> WrittenShard:
        """Writes a shard's lists and fingerprints, unless they are there and intact.

        Raises:
            ConflictError: other inputs, or retention, have taken the run.
        """
        name = self._spec.part(shard)
        carried = 0
        metadata = {**self._spec.metadata, "visrec.shard": str(shard)}

        @cache  # not read at all if both files are there
        def queries() -> Queries:
            with self._timer.phase("queries"):
                return self._data.queries.read(shard)

        def make() -> bytes:
            nonlocal carried
            table, carried = self._recommend(shard, queries())
            with self._timer.phase("write"):
                return with_sha256(table, {**metadata, **library_versions()}, lists_file)

        content, kept = keep_or_write(self._spec, name, metadata, make)
        file = pq.ParquetFile(pa.BufferReader(content))
        file_metadata = file.schema_arrow.metadata
        with self._timer.phase("write"):
            fingerprints, fingerprints_sha256 = write_query_fingerprints(
                self._data, queries, self._spec, shard, versions_in(file_metadata)
            )
        query_ids = file.read(columns=file.schema_arrow.names[:1])[0]
        return WrittenShard(
            name=name,
            rows=len(query_ids),
            queries=pc.count_distinct(query_ids).as_py(),
            cold_users=int(file_metadata[COLD_USERS_KEY.encode()]),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            fingerprints=fingerprints,
            fingerprints_sha256=fingerprints_sha256,
            kept=kept,
            carried=carried,
        )
