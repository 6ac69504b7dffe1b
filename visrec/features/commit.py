"""How a features directory changes: parts and rejections are written, then the manifest moves.

What is written before the manifest names it is nothing to any reader; what it no longer names is
removed after.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.config import plain
from visrec.errors import ConflictError, InputError
from visrec.features.table import (
    MANIFEST,
    REJECTED_FOLDER,
    Identity,
    Manifest,
    features_table,
    part_name,
    rejected_table,
    table_digest,
)
from visrec.storage.store import Store, to_json


def part_files(store: Store) -> list[str]:
    """Every part that is on disk, in the manifest or not."""
    return [e.name for e in store.list("part-") if e.name.endswith(".parquet")]


def rejected_files(store: Store) -> list[str]:
    return [e.name for e in store.list(f"{REJECTED_FOLDER}/") if e.name.endswith(".parquet")]


def write_part(
    store: Store, rows: pa.Table, feature_BD: npt.NDArray[np.float16], identity: Identity
) -> str:
    """Writes rows (item_id, digest, source) with their features; returns the part's name."""
    name = part_name(rows)
    store.write_table(name, features_table(rows, feature_BD, identity))
    return name


def write_rejected(store: Store, rows: pa.Table, identity: Identity) -> str:
    """Writes rows of `REJECTED`'s columns; returns the file's name."""
    name = f"{REJECTED_FOLDER}/{part_name(rows)}"
    store.write_table(name, rejected_table(rows, identity))
    return name


def manifest_version(store: Store) -> str | None:
    """The version that a commit must still find, None where there is no manifest."""
    return store.read_versioned(MANIFEST)[1] if store.exists(MANIFEST) else None


def commit_table(
    store: Store,
    identity: Identity,
    live: pa.Table,
    files: Iterable[tuple[str, int]],
    rejected: pa.Table,
    limits: Any,
    version: str | None,
) -> Manifest:
    """Moves the manifest to these rows and removes what it no longer names.

    Args:
        store: the features directory.
        identity: what made the features.
        live: item_id and digest of every row.
        files: names and rows of the parts that hold them and no others.
        rejected: rows of `REJECTED`'s columns, of items that have no feature.
        limits: the settings that the rejections were made under.
        version: the manifest's, before anything of this was read.

    Raises:
        ConflictError: another run committed in the meantime.
    """
    manifest = Manifest(
        identity=identity,
        files=dict(files),
        rejected=(
            {write_rejected(store, rejected, identity): rejected.num_rows} if len(rejected) else {}
        ),
        limits=plain(limits),
        digest=table_digest(live, identity),
    )
    data = to_json(plain(manifest))
    moved = (
        store.create(MANIFEST, data) if version is None else store.replace(MANIFEST, data, version)
    )
    if not moved:
        raise ConflictError(f"Another run committed features to {store.root} first; run again.")
    store.delete(set(part_files(store)) - manifest.files.keys())
    store.delete(set(rejected_files(store)) - manifest.rejected.keys())
    return manifest


def count_rejected(
    rejected: pa.Table, listed: int, max_rejected: float, store: Store, what: str
) -> dict[str, int]:
    """Rejections by reason.

    Args:
        rejected: rows with a reason.
        listed: of how many.
        max_rejected: the share that is let through.
        store: the features directory, for the error.
        what: was rejected, for the error.

    Raises:
        InputError: more than `max_rejected` of them were rejected.
    """
    reasons = {r["values"]: r["counts"] for r in rejected["reason"].value_counts().to_pylist()}
    if rejected.num_rows > max_rejected * listed:
        words = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise InputError(
            f"{rejected.num_rows} of {listed} {what} were rejected ({words}); expected at most "
            f"{max_rejected:.1%}. The features are as they were. Look at "
            f"{store.uri(REJECTED_FOLDER)}, or raise --max_rejected."
        )
    return reasons
