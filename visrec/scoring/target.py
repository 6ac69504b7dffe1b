"""What a run of lists is and where it goes."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from visrec.scoring.lists import Layout
from visrec.scoring.similar import Kind
from visrec.storage import Store


@dataclass(frozen=True)
class Target:
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


def has_marks(schema: pa.Schema, marks: Mapping[str, str]) -> bool:
    """Whether a file's metadata say all that."""
    found = schema.metadata or {}
    return all(found.get(key.encode()) == value.encode() for key, value in marks.items())


def shard_name(shard: int) -> str:
    """A shard's file."""
    return f"part-{shard:05d}.parquet"
