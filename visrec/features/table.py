"""Features on disk: immutable parts, and a manifest that says which of them are the table.

A part's own metadata names the backbone that made it, so that a part that a killed run left behind
can be taken up by the next, and one of another backbone never is.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.errors import InputError
from visrec.ids import TEXT, id_array
from visrec.storage.s3_clients import translated
from visrec.storage.schemas import REJECTED, features_schema
from visrec.storage.store import Store, to_json

MANIFEST = "_manifest.json"
REJECTED_FOLDER = "_rejected"
_IDENTITY = b"visrec.features"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes two features comparable: the same network, weights, preprocessing, precision.

    Args:
        backbone: its name.
        weights_digest: over its weights; unknown where the features were made elsewhere.
        preprocessing: as `Preprocessing.to_dict`; empty where they were made elsewhere.
        precision: float32 or bfloat16; the type they came in where they were made elsewhere.
        dim: D.
    """

    backbone: str
    weights_digest: str
    preprocessing: Mapping[str, Any]
    precision: str
    dim: int

    @property
    def made_elsewhere(self) -> bool:
        """Whether they are from a table, and not from pictures."""
        return not self.preprocessing

    def __str__(self) -> str:
        return (
            f"{self.backbone} (weights {self.weights_digest[:8]}, {self.precision}, D = {self.dim})"
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the features of a directory are.

    Args:
        identity: what made them.
        files: rows of each part.
        rejected: rows of each file of rejected pictures.
        limits: what the rejections were made under: the picture limits, or the table that was
            brought in.
        digest: over identity, item ids and digests; the same however the parts are cut.
    """

    identity: Identity
    files: Mapping[str, int]
    rejected: Mapping[str, int]
    limits: Mapping[str, Any]
    digest: str

    @property
    def rows(self) -> int:
        return sum(self.files.values())


def read_manifest(store: Store) -> Manifest:
    """The manifest of a features directory.

    Raises:
        InputError: there is none.
    """
    if not store.exists(MANIFEST):
        raise InputError(
            f"Found no features at {store.root} (no {MANIFEST}); expected those that "
            "jobs/extract_features.py writes, or jobs/import_features.py. Change --features, or "
            "extract first."
        )
    return manifest_of(store.read_json(MANIFEST))


def manifest_of(value: Mapping[str, Any]) -> Manifest:
    return Manifest(**{**value, "identity": Identity(**value["identity"])})


def require_same(found: Identity, expected: Identity, store: Store, key: str) -> None:
    """Refuses features that another network made.

    Raises:
        InputError: they are not comparable.
    """
    if found != expected:
        raise InputError(
            f"The features at {store.root} were made by {found}; expected {expected}. Features of "
            f"two backbones are never mixed: change --{key}, or point --features elsewhere."
        )


def load_features(store: Store) -> tuple[pa.LargeStringArray, npt.NDArray[np.float16]]:
    """Item ids, sorted, and their (N, D) features in the same order.

    Holds the table twice while it is put in order: 2 N D x 2 bytes.
    """
    manifest = read_manifest(store)
    if not manifest.rows:
        raise InputError(f"The features at {store.root} have no rows; expected at least one.")
    ids, feature_ND = [], np.empty((manifest.rows, manifest.identity.dim), np.float16)
    at = 0
    for name in sorted(manifest.files):
        table = store.read_table(name, ["item_id", "feature"])
        ids.append(id_array(table["item_id"]))
        feature_ND[at : at + table.num_rows] = feature_matrix(table)
        at += table.num_rows
    item_ids = pa.concat_arrays(ids)
    order = pc.sort_indices(item_ids)
    return item_ids.take(order), feature_ND[order.to_numpy()]


def feature_matrix(table: pa.Table) -> npt.NDArray[np.float16]:
    """(rows, D) the feature column of a table, not copied where it is one chunk."""
    column = table["feature"].combine_chunks()
    dim = column.type.list_size
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim))


def features_table(
    rows: pa.Table, feature_BD: npt.NDArray[np.float16], identity: Identity
) -> pa.Table:
    """A part: ids, digests and sources of `rows` with their features, marked with who made them."""
    values = pa.array(feature_BD.reshape(-1), pa.float16())
    schema = features_schema(identity.dim)
    column = pa.FixedSizeListArray.from_arrays(values, type=schema.field("feature").type)
    table = pa.table([rows["item_id"], column, rows["digest"], rows["source"]], schema=schema)
    return _marked(table, identity)


def rejected_table(rows: pa.Table, identity: Identity) -> pa.Table:
    columns = [rows[name] for name in REJECTED.names]
    return _marked(pa.table(columns, schema=REJECTED), identity)


def _marked(table: pa.Table, identity: Identity) -> pa.Table:
    return table.replace_schema_metadata({_IDENTITY: to_json(identity.__dict__)})


def read_part_rows(
    store: Store, names: list[str], places: pa.Table, dim: int
) -> npt.NDArray[np.float16]:
    """(B, D) the features at B places (columns part and place) of the parts of those names."""
    feature_BD = np.empty((places.num_rows, dim), np.float16)
    part_B, place_B = places["part"].to_numpy(), places["place"].to_numpy()
    for number in np.unique(part_B):
        chosen = np.flatnonzero(part_B == number)
        table = store.read_table(names[number], ["feature"])
        feature_BD[chosen] = feature_matrix(table)[place_B[chosen]]
    return feature_BD


def part_name(rows: pa.Table) -> str:
    """A part's name, from what is in it: a task that is tried again writes the same file."""
    seen = hashlib.sha256()
    for name in sorted({"item_id", "digest", "source", "reason"} & set(rows.column_names)):
        seen.update("\0".join(str(value) for value in rows[name].to_pylist()).encode())
    return f"part-{seen.hexdigest()[:20]}.parquet"


def read_index(store: Store, names: list[str], identity: Identity, columns: list[str]) -> pa.Table:
    """Some columns of the parts that `identity` made, with each row's part and its place there.

    About 150 bytes a row: the one thing of an extraction that is held whole, by one task.
    """
    parts = []
    for number, name in enumerate(names):
        with (
            translated("read", store.uri(name)),
            store.filesystem().open_input_file(f"{store.path}/{name}") as source,
        ):
            file = pq.ParquetFile(source)
            mark = (file.schema_arrow.metadata or {}).get(_IDENTITY, b"null")
            if json.loads(mark) != json.loads(to_json(identity.__dict__)):
                continue
            table = file.read(columns=columns).cast(pa.schema([(name, TEXT) for name in columns]))
        place = pa.array(np.arange(table.num_rows, dtype=np.int32))
        part = pa.repeat(pa.scalar(number, pa.int32()), table.num_rows)
        parts.append(table.append_column("part", part).append_column("place", place))
    if not parts:
        empty = {name: pa.array([], TEXT) for name in columns}
        return pa.table(
            {**empty, "part": pa.array([], pa.int32()), "place": pa.array([], pa.int32())}
        )
    return pa.concat_tables(parts).replace_schema_metadata(None)


def table_digest(index: pa.Table, identity: Identity) -> str:
    """SHA-256 over the identity and each item's id and digest, in the order of the ids."""
    seen = hashlib.sha256(to_json(identity.__dict__))
    ordered = index.select(["item_id", "digest"]).take(pc.sort_indices(index["item_id"]))
    for batch in ordered.to_batches(max_chunksize=65536):
        for column in batch.columns:
            seen.update("".join(f"{value}\0" for value in column.to_pylist()).encode())
    return seen.hexdigest()
