"""Small runs for tests of publication: files of any bytes, and drafts of their manifests."""

import hashlib
from collections.abc import Mapping
from typing import Any

from visrec.interactions.log import ReadReport
from visrec.publication.gate import Gate
from visrec.publication.manifest import (
    RUN_MANIFEST,
    RunManifest,
    ShardFile,
    read_run_manifest,
    require_intact_files,
)
from visrec.publication.pointer import LATEST
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store

PASSED = Gate("share of the users with a list", 1.0, 1, "passed")


def draft_manifest(**fields: Any) -> RunManifest:
    """The manifest of a run that is not complete; only what matters to a test is given."""
    defaults: dict[str, Any] = {
        "run_id": "r1",
        "model_id": "m1",
        "model_name": "curatornet",
        "choice": None,
        "inputs": {"model": "digest of m1"},
        "inputs_digest": "0123456789abcdef",
        "layout": "nested",
        "kind": "user_to_item",
        "k": 10,
        "cutoff_timestamp": None,
        "queries": 10,
        "cold_users": 1,
        "rows": 10,
        "available": 100,
        "interactions": ReadReport(),
        "without_feature": {"interactions": 0.0, "items": 0.0},
        "files": {},
        "fingerprints": {},
        "seconds": {},
    }
    return RunManifest(**{**defaults, **fields})


def write_files(run: Store, contents: Mapping[str, bytes]) -> dict[str, ShardFile]:
    """Writes the files of a run; returns their descriptions, with one row each."""
    for name, data in contents.items():
        run.write(name, data)
    return {
        name: ShardFile(rows=1, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in contents.items()
    }


def file_names(store: Store) -> set[str]:
    return {entry.name for entry in store.list()}


def published_run_id(lists: Store) -> str:
    """The run that a reader finds; the manifest and all files must have the right SHA-256."""
    pointer = lists.read_json(LATEST)
    manifest = lists.read(pointer["manifest"])
    assert hashlib.sha256(manifest).hexdigest() == pointer["manifest_sha256"]
    run = run_store(lists, pointer["run_id"])
    for name, file in run.read_json(RUN_MANIFEST)["files"].items():
        assert hashlib.sha256(run.read(name)).hexdigest() == file["sha256"]
    return str(pointer["run_id"])


def require_intact_run(run: Store) -> RunManifest:
    """The manifest of a run all of whose files are those that it names."""
    manifest = read_run_manifest(run)
    assert manifest is not None
    require_intact_files(run, manifest)
    return manifest
