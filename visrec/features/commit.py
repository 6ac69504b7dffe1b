"""How a features directory changes: parts and rejections are written, then the manifest moves.

Readers ignore what the manifest does not name, so nothing written before the manifest moves is
visible. What the new manifest no longer names is removed afterwards.

Shapes: P parts, B rows, D features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import ConflictError, InputError
from visrec.features.planning import ExtractionPlan, source_keys
from visrec.features.pooling import item_sources
from visrec.features.table import (
    FEATURES_MANIFEST,
    FETCHED_FOLDER,
    REJECTED_FOLDER,
    Identity,
    Manifest,
    features_table,
    fetched_files,
    fetched_table,
    part_files,
    part_name,
    read_features_at,
    read_index,
    rejected_files,
    rejected_table,
    table_digest,
)
from visrec.ids import is_in
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store, to_json


@dataclass(frozen=True, kw_only=True)
class TableContent:
    """What a features directory is to hold.

    Attributes:
        identity: what made the features.
        rows: item_id and digest of every item with a feature.
        files: number of rows of each part; the parts hold exactly `rows`.
        rejected: rejected pictures, with the columns of `REJECTED`.
        settings: as in the `Manifest`.
        fetched: likewise.
    """

    identity: Identity
    rows: pa.Table
    files: Mapping[str, int]
    rejected: pa.Table
    settings: Mapping[str, object]
    fetched: Mapping[str, int] = field(default_factory=dict)


def write_part(
    store: Store, rows: pa.Table, feature_BD: npt.NDArray[np.float16], identity: Identity
) -> str:
    """Writes rows (item_id, digest, source) with their features; returns the part's name."""
    name = part_name(rows)
    store.write_table(name, features_table(rows, feature_BD, identity))
    return name


def write_rejected(store: Store, rows: pa.Table, identity: Identity) -> str:
    """Writes rows with the columns of `REJECTED`; returns the file's name."""
    name = f"{REJECTED_FOLDER}/{part_name(rows)}"
    store.write_table(name, rejected_table(rows, identity))
    return name


def write_fetched(store: Store, rows: pa.Table, identity: Identity) -> str:
    """Writes rows with the columns of `FETCHED`; returns the file's name."""
    name = f"{FETCHED_FOLDER}/{part_name(rows)}"
    store.write_table(name, fetched_table(rows, identity))
    return name


def manifest_version(store: Store) -> str | None:
    """The version that the manifest must still have when it moves; None if there is no manifest."""
    return store.read_versioned(FEATURES_MANIFEST)[1] if store.exists(FEATURES_MANIFEST) else None


def commit_table(store: Store, content: TableContent, version: str | None) -> Manifest:
    """Moves the manifest to this content and removes the files that it no longer names.

    Args:
        store: the features directory.
        content: what the directory is to hold.
        version: `manifest_version`, taken before anything of the content was read.

    Raises:
        ConflictError: another run committed in the meantime.
    """
    rejected = {}
    if content.rejected.num_rows:
        name = write_rejected(store, content.rejected, content.identity)
        rejected = {name: content.rejected.num_rows}
    manifest = Manifest(
        identity=content.identity,
        files=dict(content.files),
        rejected=rejected,
        settings=content.settings,
        digest=table_digest(content.rows, content.identity),
        fetched=dict(content.fetched),
    )
    if not store.compare_and_swap(FEATURES_MANIFEST, to_json(manifest.to_dict()), version):
        raise _conflict(store)
    store.delete(set(part_files(store)) - manifest.files.keys())
    store.delete(set(rejected_files(store)) - manifest.rejected.keys())
    store.delete(set(fetched_files(store)) - manifest.fetched.keys())
    return manifest


def require_features(wanted: pa.ChunkedArray, rows: pa.Table, store: Store) -> None:
    """Checks that every wanted item has a feature.

    One has none if another run that did not know of the item committed after this one's plan:
    a commit removes all parts that it does not name.

    Args:
        wanted: the ids of the items.
        rows: item_id of every item with a feature.
        store: the features directory.

    Raises:
        ConflictError: an item has none.
    """
    if not pc.all(is_in(wanted, rows["item_id"]), min_count=0).as_py():
        raise _conflict(store)


def _conflict(store: Store) -> ConflictError:
    return ConflictError(
        f"Another run committed features to {store.root} first, while this one worked. Start "
        "this command again: it does what is missing.",
        path=store.uri(FEATURES_MANIFEST),
    )


def count_rejected(
    rejected: pa.Table, total: int, max_rejected: float, store: Store, noun: str
) -> dict[str, int]:
    """Rejections by reason.

    Args:
        rejected: rows with a reason.
        total: number of rows or pictures, including the rejected ones.
        max_rejected: the largest share that may be rejected.
        store: the features directory, for the error.
        noun: what was rejected, in the plural, for the error.

    Raises:
        InputError: a larger share was rejected.
    """
    reasons = {r["values"]: r["counts"] for r in rejected["reason"].value_counts().to_pylist()}
    if rejected.num_rows > max_rejected * total:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise InputError(
            f"{rejected.num_rows} of {total} {noun} were rejected ({counts}); expected at most "
            f"{max_rejected:.1%}. The features have not changed. Look at "
            f"{store.uri(REJECTED_FOLDER)}, or raise --max_rejected.",
            path=store.uri(REJECTED_FOLDER),
            key="max_rejected",
        )
    return reasons


def commit_extraction(
    plan: ExtractionPlan,
    written: list[str],
    store: Store,
    identity: Identity,
    settings: Mapping[str, object],
    max_rejected: float,
) -> tuple[Manifest, dict[str, int]]:
    """Makes the features directory hold exactly the listed pictures.

    Args:
        plan: the extraction's plan.
        written: names of the files that the extraction has written.
        store: the features directory.
        identity: the identity of the features.
        settings: the settings of the extraction, as `extraction_settings` gives them.
        max_rejected: the largest share of the pictures that may be rejected.

    Returns:
        The manifest, and the number of rejected pictures by reason.

    Raises:
        InputError: a larger share was rejected; nothing was committed.
        ConflictError: another run committed in the meantime.
    """
    version = manifest_version(store)
    names = part_files(store)
    index = read_index(store, names, identity, ["item_id", "digest", "source"])
    rejected = _new_rejections(plan, written, store, identity)
    used = _used_items(plan.listing, rejected)
    rows = _current_rows(used, index, names, written)
    require_features(used["item_id"], rows, store)
    rejected = pa.concat_tables([plan.rejected, rejected]).sort_by("item_id")
    reasons = count_rejected(rejected, plan.picture_count, max_rejected, store, "pictures")
    content = TableContent(
        identity=identity,
        rows=rows,
        files=dict(_trim_parts(store, names, index, rows, identity)),
        rejected=rejected,
        settings=settings,
        fetched=dict(_count_fetched(written, store, identity)),
    )
    return commit_table(store, content, version), reasons


def _new_rejections(
    plan: ExtractionPlan, written: list[str], store: Store, identity: Identity
) -> pa.Table:
    """The pictures that this run has rejected, with the columns of `REJECTED`."""
    names = sorted(name for name in written if name.startswith(f"{REJECTED_FOLDER}/"))
    found = read_index(store, names, identity, REJECTED.names)
    found = found.filter(is_in(_view_keys(found), _view_keys(plan.pending)))
    return found.select(REJECTED.names).cast(REJECTED)


def _view_keys(rows: pa.Table) -> pa.ChunkedArray:
    return source_keys(rows["item_id"], pc.fill_null(rows["source"], ""), rows["view"])


def _used_items(listing: pa.Table, rejected: pa.Table) -> pa.Table:
    """Item id and source of each item, from its pictures that were not rejected."""
    is_rejected = is_in(_view_keys(listing), _view_keys(rejected))
    return item_sources(listing.filter(pc.invert(is_rejected)))


def _count_fetched(
    written: list[str], store: Store, identity: Identity
) -> Iterator[tuple[str, int]]:
    """Names and row counts of the files about pictures at http addresses, all written by this run,
    which asked every address."""
    names = sorted({name for name in written if name.startswith(f"{FETCHED_FOLDER}/")})
    index = read_index(store, names, identity, ["address"])
    rows_P = np.bincount(index["part"].to_numpy(), minlength=len(names)).tolist()
    return zip(names, rows_P, strict=True)


def _current_rows(
    items: pa.Table, index: pa.Table, names: list[str], written: list[str]
) -> pa.Table:
    """One row of the index for each item that has any, preferably of this run.

    Pictures without a source are read and written every time, and the newest row is the valid one.
    """
    keys, listed = (
        source_keys(table["item_id"], pc.fill_null(table["source"], "")) for table in (index, items)
    )
    index = index.filter(is_in(keys, listed))
    new_parts = pa.array([names.index(name) for name in written if name in names], pa.int32())
    is_old = pc.invert(pc.is_in(index["part"], value_set=new_parts))
    return first_of_items(index.append_column("is_old", is_old), ("is_old", "part", "row"))


def first_of_items(index: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The row of each item that is the first in the order of these columns, sorted by item."""
    order = [(name, "ascending") for name in ("item_id", *columns)]
    index = index.sort_by(order).combine_chunks()
    ids = index["item_id"].to_numpy()
    return index.filter(pa.array(np.append([True], ids[1:] != ids[:-1])[: len(ids)]))


def _trim_parts(
    store: Store, names: list[str], index: pa.Table, rows: pa.Table, identity: Identity
) -> Iterator[tuple[str, int]]:
    """Names and row counts of parts that hold exactly `rows`.

    A part with only such rows is kept, and a part with other rows as well is written anew.
    """
    stored_P = np.bincount(index["part"].to_numpy(), minlength=len(names))
    current_P = np.bincount(rows["part"].to_numpy(), minlength=len(names))
    for part, name in enumerate(names):
        if current_P[part] == stored_P[part] > 0:
            yield name, int(stored_P[part])
        elif current_P[part]:
            kept = rows.filter(pc.equal(rows["part"], part))
            feature_BD = read_features_at(store, names, kept, identity.dim)
            yield write_part(store, kept, feature_BD, identity), kept.num_rows
