"""The last publication, as tonight's run reads it: lists to carry over or to compare with.

Each file is verified. This is not what readers see: they follow the pointer
(`visrec.publication.pointer`: `open_published`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from visrec.publication.claims import FINGERPRINTS, PARTS
from visrec.publication.manifest import RunManifest
from visrec.publication.run_spec import has_metadata, run_store
from visrec.recommend.fingerprint_files import COLUMNS_VERSION, library_versions
from visrec.storage.store import Store


@dataclass(frozen=True)
class PublishedRun:
    """The files of the run that is published while tonight's run is made.

    A file is used only if it has the SHA-256 that the manifest names. A file that retention has
    removed or a disk has damaged counts as missing, and its lists are scored again.

    Attributes:
        run: the run's directory.
        inputs_digest: digest of the run's inputs, which its fingerprint files contain.
        sha256: SHA-256 of each file of lists or of fingerprints, by its name, from the manifest.
        versions: file metadata that fingerprints must have; by default, the versions of the
            libraries of this process.
    """

    run: Store
    inputs_digest: str
    sha256: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=library_versions)

    @staticmethod
    def of(recommendations: Store, manifest: RunManifest) -> "PublishedRun":
        """The run with this manifest."""
        run = run_store(recommendations, manifest.run_id)
        sha256 = {**manifest.sha256_by_file, **manifest.fingerprints}
        return PublishedRun(run, manifest.inputs_digest, sha256)

    @property
    def parts(self) -> list[str]:
        """The names of the files of lists, in the order of their shards."""
        return sorted(name for name in self.sha256 if name.startswith(PARTS))

    @property
    def unusable_files_warning(self) -> str:
        return (
            f"Files of the last publication, {self.run.root}, are missing, are not what was "
            "published, or were written by other versions: their lists are scored again."
        )

    def item_fingerprints(self) -> pa.Table | None:
        """The fingerprints of the run's items; None where they cannot be used."""
        names = [name for name in self.sha256 if name.startswith(f"{FINGERPRINTS}items-")]
        return self._read_fingerprints(names[0]) if names else None

    def query_fingerprints(self, shard: int) -> pa.Table | None:
        """The fingerprints of a shard's queries; None where they cannot be used."""
        return self._read_fingerprints(FINGERPRINTS + self.parts[shard])

    def read_table(self, name: str) -> pa.Table | None:
        """The table in a file; None where the file is missing or is not what was published."""
        found = self.run.read_if_exists(name)
        if found is None or hashlib.sha256(found[0]).hexdigest() != self.sha256.get(name):
            return None
        return pq.read_table(pa.BufferReader(found[0]))

    def _read_fingerprints(self, name: str) -> pa.Table | None:
        table = self.read_table(name)
        expected = {**self.versions, **COLUMNS_VERSION, "visrec.inputs": self.inputs_digest}
        return table if table is not None and has_metadata(table.schema, expected) else None
