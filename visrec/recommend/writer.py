"""A shard's number in, its file in the run, what the file is out."""

import hashlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.progress import Timer
from visrec.publication.list_tables import lists_file
from visrec.publication.run_spec import RunSpec
from visrec.publication.shards import kept_or_written, stamped
from visrec.recommend.incremental import write_query_fingerprints
from visrec.recommend.inputs import ScoringData
from visrec.recommend.lists import COLD


class ShardWriter:
    """Writes the shards of a run that are missing.

    Args:
        data: who has lists.
        target: the run.
        lists: from a shard's number to its table, and how many of its lists are carried over.
        timer: told of the seconds.
    """

    def __init__(
        self,
        data: ScoringData,
        target: RunSpec,
        lists: Callable[[int], tuple[pa.Table, int]],
        timer: Timer,
    ) -> None:
        self._data, self._target, self._lists, self._timer = data, target, lists, timer

    def __call__(self, shard: int) -> dict[str, Any]:
        """What the shard's file is: name, rows, owners, cold, bytes, sha256; the name and SHA-256
        of its fingerprints; whether it was there (`kept`), how many lists were carried over.

        Raises:
            ConflictError: the run was lost to other inputs, or to retention.
        """
        name, carried = self._target.part(shard), 0
        marks = {**self._target.marks, "visrec.shard": str(shard)}

        def make() -> bytes:
            nonlocal carried
            table, carried = self._lists(shard)
            with self._timer.phase("write"):
                return stamped(table, marks, lists_file)

        content, kept = kept_or_written(self._target, name, marks, make)
        with self._timer.phase("write"):
            fingerprints, fingerprints_sha256 = write_query_fingerprints(
                self._data, self._target, shard
            )
        file = pq.ParquetFile(pa.BufferReader(content))
        query_ids = file.read(columns=file.schema_arrow.names[:1])[0]
        return {
            "name": name,
            "rows": len(query_ids),
            "owners": pc.count_distinct(query_ids).as_py(),
            "cold": int(file.schema_arrow.metadata[COLD.encode()]),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "fingerprints": fingerprints,
            "fingerprints_sha256": fingerprints_sha256,
            "kept": kept,
            "carried": carried,
        }
