"""Features on disk: immutable parts, and a manifest that says which parts are the table.

Each part's metadata names the backbone that made it. So a run can use the parts that a killed run
left behind, and never uses the parts of another backbone.

Shapes: N items, D features, B rows.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.errors import InputError
from visrec.ids import TEXT, id_array
from visrec.scratch import scratch_array
from visrec.storage.schemas import FETCHED, REJECTED, features_schema
from visrec.storage.store import Store, to_json

FEATURES_MANIFEST = "_manifest.json"
MANIFEST_VERSION = 1  # of the manifest's keys
REJECTED_FOLDER = "_rejected"
FETCHED_FOLDER = "_fetched"
_IDENTITY = b"visrec.features"  # metadata key of parts and of files of rejections


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes features comparable: the same network, weights, preprocessing and precision.

    Attributes:
        backbone: name of the network.
        weights_digest: over its weights; `unknown` for imported features.
        preprocessing: as `Preprocessing.to_dict`; empty for imported features.
        precision: float32 or bfloat16; for imported features the type of the imported numbers.
        dim: D.
    """

    backbone: str
    weights_digest: str
    preprocessing: Mapping[str, object]
    precision: str
    dim: int

    @property
    def is_imported(self) -> bool:
        """Whether the features come from a table instead of pictures."""
        return not self.preprocessing

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.backbone} (weights {self.weights_digest[:8]}, {self.precision}, D = {self.dim})"
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a features directory.

    Attributes:
        identity: what made the features.
        files: number of rows of each part.
        rejected: number of rows of each file of rejected pictures.
        settings: what else decided the content: the picture limits and the pattern of their names,
            or the digest of the imported table.
        digest: over identity, item ids and digests; it does not depend on how rows are split into
            parts.
        fetched: number of rows of each file of what is known of pictures at http addresses.
    """

    identity: Identity
    files: Mapping[str, int]
    rejected: Mapping[str, int]
    settings: Mapping[str, object]
    digest: str
    fetched: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(self.files.values())

    @property
    def image_pattern(self) -> str | None:
        """The pattern of the pictures' names; None if there is none."""
        pattern = self.settings.get("image_pattern")
        return None if pattern is None else str(pattern)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON has it."""
        return {"version": MANIFEST_VERSION, **asdict(self)}

    @staticmethod
    def from_dict(value: Mapping[str, Any], path: str) -> "Manifest":
        """The manifest from its JSON.

        Args:
            value: as `to_dict`.
            path: location of the file, for the error.

        Raises:
            InputError: the manifest was written by another version of visrec.
        """
        fields = dict(value)
        if (version := fields.pop("version", None)) != MANIFEST_VERSION:
            raise InputError(
                f"Found version {version} of {path}; expected version {MANIFEST_VERSION}. Remove "
                "that file and extract (or import) again; parts that are still valid are reused.",
                path=path,
                key="features",
            )
        return Manifest(**{**fields, "identity": Identity(**fields["identity"])})


def read_manifest(store: Store) -> Manifest:
    """The manifest of a features directory.

    Raises:
        InputError: there is none.
    """
    if not store.exists(FEATURES_MANIFEST):
        raise InputError(
            f"Found no features at {store.root} (no {FEATURES_MANIFEST}); expected the output of "
            "`visrec extract` or `visrec import-features`. Change --features, or extract "
            "first.",
            path=store.root,
            key="features",
        )
    return Manifest.from_dict(store.read_json(FEATURES_MANIFEST), store.uri(FEATURES_MANIFEST))


def require_same_identity(found: Identity, expected: Identity, store: Store, key: str) -> None:
    """Refuses features that another network made.

    Args:
        found: the identity of the features.
        expected: the identity of the network or model that is to be used with them.
        store: the features directory.
        key: the configuration key that chose the other one.

    Raises:
        InputError: the two are not comparable.
    """
    if found != expected:
        raise InputError(
            f"The features at {store.root} were made by {found}; expected {expected}. Features of "
            f"two backbones are never mixed: change --{key}, or point --features elsewhere.",
            path=store.root,
            key=key,
        )


def load_features(store: Store) -> tuple[pa.LargeStringArray, npt.NDArray[np.float16]]:
    """All features, in the order of their item ids.

    They are read one part at a time into a `scratch_array`, so the memory of a process does not
    grow with them.

    Returns:
        The item ids, sorted, and (N, D) features.

    Raises:
        InputError: there are no features, or the file does not fit on the disk.
    """
    manifest = read_manifest(store)
    if not manifest.rows:
        raise InputError(
            f"The features at {store.root} have no rows; expected at least one.",
            path=store.root,
            key="features",
        )
    names = sorted(manifest.files)
    ids = pa.concat_arrays(
        [id_array(store.read_table(name, ["item_id"])["item_id"]) for name in names]
    )
    order = pc.sort_indices(ids)
    row_N = np.empty(len(ids), np.int64)
    row_N[order.to_numpy()] = np.arange(len(ids))
    feature_ND, start = scratch_array((len(ids), manifest.identity.dim), np.float16), 0
    for name in names:
        part_BD = feature_matrix(store.read_table(name, ["feature"]))
        feature_ND[row_N[start : start + len(part_BD)]] = part_BD
        start += len(part_BD)
    return ids.take(order), feature_ND


def feature_matrix(table: pa.Table) -> npt.NDArray[np.float16]:
    """(B, D) feature column of a table; not copied if it is one chunk."""
    column = table["feature"].combine_chunks()
    dim = column.type.list_size
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim))


def features_table(
    rows: pa.Table, feature_BD: npt.NDArray[np.float16], identity: Identity
) -> pa.Table:
    """A part: rows (item_id, digest, source) with their features, and the identity as metadata."""
    values = pa.array(feature_BD.reshape(-1), pa.float16())
    schema = features_schema(identity.dim)
    column = pa.FixedSizeListArray.from_arrays(values, type=schema.field("feature").type)
    table = pa.table([rows["item_id"], column, rows["digest"], rows["source"]], schema=schema)
    return _with_identity(table, identity)


def rejected_table(rows: pa.Table, identity: Identity) -> pa.Table:
    """A file of rejections: the columns of `REJECTED`, and the identity as metadata.

    Rows that are not about pictures, such as those of an imported table, have no column `view`.
    """
    if "view" not in rows.column_names:
        rows = rows.append_column("view", pa.nulls(rows.num_rows))
    columns = [rows[name] for name in REJECTED.names]
    return _with_identity(pa.table(columns, schema=REJECTED), identity)


def fetched_table(rows: pa.Table, identity: Identity) -> pa.Table:
    """A file of what is known of pictures at http addresses: the columns of `FETCHED`."""
    columns = [rows[name] for name in FETCHED.names]
    return _with_identity(pa.table(columns, schema=FETCHED), identity)


def _with_identity(table: pa.Table, identity: Identity) -> pa.Table:
    return table.replace_schema_metadata({_IDENTITY: to_json(identity.to_dict())})


def part_name(rows: pa.Table) -> str:
    """The name of a part, from its content: a retried task writes the same file again."""
    content = hashlib.sha256()
    known = {"item_id", "view", "digest", "source", "reason", *FETCHED.names} - {"detail"}
    for name in sorted(known & set(rows.column_names)):
        content.update("\0".join(str(value) for value in rows[name].to_pylist()).encode())
    return f"part-{content.hexdigest()[:20]}.parquet"


def part_files(store: Store) -> list[str]:
    """Names of all parts on disk, whether or not the manifest names them."""
    return [e.name for e in store.list("part-") if e.name.endswith(".parquet")]


def rejected_files(store: Store) -> list[str]:
    """Names of all files of rejections on disk, whether or not the manifest names them."""
    return [e.name for e in store.list(f"{REJECTED_FOLDER}/") if e.name.endswith(".parquet")]


def fetched_files(store: Store) -> list[str]:
    """Names of all files about pictures at http addresses, whether or not the manifest names
    them."""
    return [e.name for e in store.list(f"{FETCHED_FOLDER}/") if e.name.endswith(".parquet")]


def read_features_at(
    store: Store, names: list[str], rows: pa.Table, dim: int
) -> npt.NDArray[np.float16]:
    """Single features out of several parts.

    Args:
        store: the features directory.
        names: the names of the parts that the column `part` numbers.
        rows: B rows of an index, with its columns `part` and `row`.
        dim: D.

    Returns:
        (B, D) features.
    """
    feature_BD = np.empty((rows.num_rows, dim), np.float16)
    part_B, row_B = rows["part"].to_numpy(), rows["row"].to_numpy()
    for part in np.unique(part_B):
        positions = np.flatnonzero(part_B == part)
        table = store.read_table(names[part], ["feature"])
        feature_BD[positions] = feature_matrix(table)[row_B[positions]]
    return feature_BD


def read_index(store: Store, names: list[str], identity: Identity, columns: list[str]) -> pa.Table:
    """Some columns of the parts that `identity` made, with where each row is.

    About 150 bytes a row. No other step of an extraction holds all rows in one task.

    Args:
        store: the features directory.
        names: the names of parts, or of files of rejections.
        identity: files of another identity are skipped.
        columns: to read, as text.

    Returns:
        The columns, `part` (position in `names`) and `row` (within the part).
    """
    schema = pa.schema([(column, TEXT) for column in columns])
    parts = []
    for number, name in enumerate(names):
        with store.open_input(name) as source:
            file = pq.ParquetFile(source)
            if not _is_made_by(identity, file.schema_arrow):
                continue
            table = file.read(columns=columns).cast(schema)
        part = pa.repeat(pa.scalar(number, pa.int32()), table.num_rows)
        row = pa.array(np.arange(table.num_rows, dtype=np.int32))
        parts.append(table.append_column("part", part).append_column("row", row))
    if not parts:
        return pa.schema([*schema, ("part", pa.int32()), ("row", pa.int32())]).empty_table()
    return pa.concat_tables(parts).replace_schema_metadata(None)


def _is_made_by(identity: Identity, schema: pa.Schema) -> bool:
    found = json.loads((schema.metadata or {}).get(_IDENTITY, b"null"))
    return bool(found == json.loads(to_json(identity.to_dict())))


def table_digest(index: pa.Table, identity: Identity) -> str:
    """SHA-256 over the identity and each item's id and digest, in the order of the ids."""
    content = hashlib.sha256(to_json(identity.to_dict()))
    ordered = index.select(["item_id", "digest"]).take(pc.sort_indices(index["item_id"]))
    for batch in ordered.to_batches(max_chunksize=65536):
        for column in batch.columns:
            content.update("".join(f"{value}\0" for value in column.to_pylist()).encode())
    return content.hexdigest()
