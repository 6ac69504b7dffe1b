"""The lists of a complete run, one shard at a time, each file verified before any row is used."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from visrec.errors import ConflictError, InputError
from visrec.publication.list_tables import ID_COLUMNS, Lists, read_lists
from visrec.publication.manifest import (
    RUN_MANIFEST,
    RunManifest,
    parse_manifest,
    read_manifest_bytes,
)
from visrec.publication.pointer import Pointer, open_published, read_pointer
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store

BeforeShard = Callable[[int, int], None]  # gets how many shards are done, and how many there are


@dataclass(frozen=True)
class RunKey:
    """Which lists: a run, and its state: `forget`, or making the run again, changes the manifest.

    Attributes:
        run_id: the run's id.
        manifest_sha256: SHA-256 of its manifest, which names the SHA-256 of every file.
    """

    run_id: str
    manifest_sha256: str


@dataclass(frozen=True)
class RunLists:
    """A complete run.

    Attributes:
        run: its directory.
        key: which lists these are.
        manifest: what it wrote.
    """

    run: Store
    key: RunKey
    manifest: RunManifest

    @property
    def name(self) -> str:
        """Under which name stores and readers know the lists of this kind."""
        return "recommendations" if self.manifest.kind == "user_to_item" else "similar_items"

    @property
    def id_column(self) -> str:
        """The column with the id of whose list it is."""
        return ID_COLUMNS[self.manifest.kind]

    @property
    def parts(self) -> list[str]:
        """The names of the files, in the order of their shards."""
        return sorted(self.manifest.files)

    def read_shard(self, shard: int) -> Lists:
        """The lists of one shard.

        Raises:
            ConflictError: retention has removed the run meanwhile, or `forget` the file.
            InputError: the file is not the one that the manifest names.
        """
        name = self.parts[shard]
        found = self.run.read_if_exists(name)
        if found is None and read_manifest_bytes(self.run, self.key.manifest_sha256) is None:
            raise ConflictError(
                f"{self.run.root} was removed, or users were removed from it, while it was "
                "exported. Start the export again: it takes what is published now."
            )
        if (
            found is None
            or hashlib.sha256(found[0]).hexdigest() != self.manifest.sha256_by_file[name]
        ):
            raise self._damaged(name)
        lists = read_lists(pq.read_table(pa.BufferReader(found[0])), self.manifest.kind)
        if lists is None:
            raise self._damaged(name)
        return lists

    def _damaged(self, name: str) -> InputError:
        uri = self.run.uri(name)
        return InputError(
            f"{uri} is not the file that the manifest names, so the run is not exported, and "
            "readers keep what they have. Go back to the run before with `visrec rollback` and "
            f"export that; or remove {self.run.uri(RUN_MANIFEST)} and run the job that made the "
            "run again.",
            path=uri,
        )


def open_run(recommendations: Store, key: RunKey) -> RunLists | None:
    """A complete run; None where it is gone, was made again, or cannot be read by this version."""
    run = run_store(recommendations, key.run_id)
    data = read_manifest_bytes(run, key.manifest_sha256)
    if data is None:
        return None
    try:
        return RunLists(run, key, parse_manifest(data, run.uri(RUN_MANIFEST)))
    except InputError:  # the bytes are right, so another version of visrec wrote them
        return None


def published_key(recommendations: Store) -> RunKey:
    """Which lists are published.

    Raises:
        InputError: none are.
    """
    return _key_of(read_pointer(recommendations)[0], recommendations)


def _key_of(pointer: Pointer, recommendations: Store) -> RunKey:
    if pointer.run_id is None or pointer.manifest_sha256 is None:
        raise InputError(
            f"Found no published run in {recommendations.root}; expected one to export. Publish "
            "one first with `visrec recommend` or `visrec nightly`, or name the directory of the "
            "runs with --recommendations.",
            path=recommendations.root,
            key="recommendations",
        )
    return RunKey(pointer.run_id, pointer.manifest_sha256)


def open_published_run(recommendations: Store) -> RunLists:
    """The published run.

    Raises:
        InputError: nothing is published; or its manifest is not what was published, or another
            version of visrec wrote it.
    """
    pointer, manifest = open_published(recommendations)
    key = _key_of(pointer, recommendations)
    assert manifest is not None  # `_key_of` has refused a pointer to nothing
    return RunLists(run_store(recommendations, key.run_id), key, manifest)
