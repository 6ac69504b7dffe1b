"""What a run of lists is and where it goes."""

from collections.abc import Mapping
from dataclasses import dataclass

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


def shard_name(shard: int) -> str:
    """A shard's file."""
    return f"part-{shard:05d}.parquet"
