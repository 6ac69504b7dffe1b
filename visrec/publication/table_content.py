"""What a table for SQL readers shows, whatever its format."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from visrec.publication.list_tables import SCHEMAS
from visrec.publication.manifest import RunManifest
from visrec.publication.records import JsonObject
from visrec.storage.store import Store


@dataclass(frozen=True)
class TableContent:
    """The published run.

    Attributes:
        recommendations: where the runs are.
        manifest: the run's manifest.
        sequence: the pointer's sequence number, which counts its moves.
        manifest_sha256: SHA-256 of the manifest's bytes.
    """

    recommendations: Store
    manifest: RunManifest
    sequence: int
    manifest_sha256: str

    @property
    def identity(self) -> JsonObject:
        """What a commit records, to be recognized: a run may be published twice."""
        return {
            "run_id": self.manifest.run_id,
            "sequence": self.sequence,
            "manifest_sha256": self.manifest_sha256,
        }

    @property
    def schema(self) -> pa.Schema:
        """Of the run's files."""
        return SCHEMAS[self.manifest.kind, self.manifest.layout]

    @property
    def completed_ms(self) -> int:
        """When the run was complete, in milliseconds since 1970."""
        return int(datetime.fromisoformat(self.manifest.completed_at).timestamp() * 1000)

    def path(self, name: str) -> str:
        """A file of the run, as seen from the recommendations."""
        return f"run={self.manifest.run_id}/{name}"

    def uri(self, name: str) -> str:
        """A file of the run as a URI."""
        return absolute_uri(self.recommendations, self.path(name))


def absolute_uri(store: Store, name: str) -> str:
    """The URI of a file or, without a name, of the store; `file://` for a local one.

    Nothing is percent-encoded: Hadoop, Iceberg and DuckDB take the path as it is.
    """
    uri = store.uri(name)
    return uri if store.is_s3 else f"file://{uri}"


class Table(Protocol):
    """A table whose state was read."""

    def shows(self, content: TableContent) -> bool:
        """Whether the table is committed for this publication."""

    def commit(self, content: TableContent) -> None:
        """Lets the table show a run, unless another process has changed the table since its state
        was read."""
