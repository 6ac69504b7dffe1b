"""What a run of lists is and where it goes."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from visrec.publication.claims import FINGERPRINTS, PARTS
from visrec.publication.list_tables import Layout
from visrec.retrieval.similar import Kind
from visrec.storage.store import Store


@dataclass(frozen=True)
class RunSpec:
    """What is written where.

    Args:
        run: the run's own directory.
        shards: how many files.
        k: entries a user.
        layout: of the tables.
        kind: whose lists they are.
        marks: file metadata: model id, run id, digest of all inputs.
    """

    run: Store
    shards: int
    k: int
    layout: Layout
    kind: Kind
    marks: Mapping[str, str]

    @property
    def inputs(self) -> str:
        """The digest of all inputs, for which the run is claimed."""
        return self.marks["visrec.inputs"]

    def part(self, shard: int) -> str:
        """A shard's file. Other inputs or another number of shards never write over it."""
        return f"{PARTS}{shard:05d}-of-{self.shards:05d}-{self.inputs[:12]}.parquet"

    @property
    def item_fingerprints(self) -> str:
        """The file of the items' fingerprints."""
        return f"{FINGERPRINTS}items-{self.inputs[:12]}.parquet"

    def query_fingerprints(self, shard: int) -> str:
        """The file of the fingerprints of a shard's owners."""
        return FINGERPRINTS + self.part(shard)


def has_metadata(schema: pa.Schema, marks: Mapping[str, str]) -> bool:
    """Whether a file's metadata say all that."""
    found = schema.metadata or {}
    return all(found.get(key.encode()) == value.encode() for key, value in marks.items())
