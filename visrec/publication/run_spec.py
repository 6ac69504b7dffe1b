"""What a run writes, and under which names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from visrec.paths import require_folder_name
from visrec.publication.claims import FINGERPRINTS, PARTS
from visrec.publication.list_tables import ID_COLUMNS, Layout
from visrec.retrieval.similar import Kind
from visrec.storage.store import Store

_PART = re.compile(
    rf"{PARTS}(?P<shard>\d{{5,}})-of-(?P<shards>\d{{5,}})-[^-/]+(?P<content>-[^-/]+)?\.parquet"
)


@dataclass(frozen=True)
class RunSpec:
    """What a run writes, and where.

    Attributes:
        run: the directory of the run.
        shards: number of files with lists.
        k: entries of a list.
        layout: the layout of the tables.
        kind: whether the lists are of users or of items.
        metadata: the metadata of every Parquet file of the run: model id, run id, digest of all
            inputs.
    """

    run: Store
    shards: int
    k: int
    layout: Layout
    kind: Kind
    metadata: Mapping[str, str]

    @property
    def inputs_digest(self) -> str:
        """Digest of all inputs, for which the run is claimed."""
        return self.metadata["visrec.inputs"]

    @property
    def id_column(self) -> str:
        """The column with the ids of the queries."""
        return ID_COLUMNS[self.kind]

    def part(self, shard: int) -> str:
        """Name of a shard's file: other inputs or another number of shards give other names."""
        return f"{PARTS}{shard:05d}-of-{self.shards:05d}-{self.inputs_digest[:12]}.parquet"

    @property
    def item_fingerprints(self) -> str:
        """Name of the file with the fingerprints of all items."""
        return f"{FINGERPRINTS}items-{self.inputs_digest[:12]}.parquet"

    def query_fingerprints(self, shard: int) -> str:
        """Name of the file with the fingerprints of a shard's queries."""
        return FINGERPRINTS + self.part(shard)


def parse_part(name: str) -> tuple[int, int] | None:
    """The shard and the number of shards in the name of a file with lists; None for other names."""
    match = _PART.fullmatch(name)
    return match and (int(match["shard"]), int(match["shards"]))


def rewritten_part(name: str, content: str) -> str:
    """A name that a file with another content never had:
    `part-00000-of-00008-<inputs>-<content>.parquet`, which sorts as the old one does, by the shard.

    Args:
        name: the name of a file with lists.
        content: a digest of its new content.
    """
    stem = "-".join(name.removesuffix(".parquet").split("-")[:5])
    return f"{stem}-{content[:8]}.parquet"


def is_rewritten_part(name: str) -> bool:
    """Whether this is a name that `rewritten_part` gives."""
    match = _PART.fullmatch(name)
    return match is not None and match["content"] is not None


def has_metadata(schema: pa.Schema, metadata: Mapping[str, str]) -> bool:
    """Whether a Parquet file has all these metadata."""
    found = schema.metadata or {}
    return all(found.get(key.encode()) == value.encode() for key, value in metadata.items())


def run_store(recommendations: Store, run_id: str) -> Store:
    """The directory of a run.

    Raises:
        InputError: the id cannot be the name of a folder.
    """
    require_folder_name(run_id, "run_id")
    return recommendations / f"run={run_id}"
