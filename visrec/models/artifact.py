"""A model on disk: weights, settings, provenance and the ids of its training.

`_manifest.json` is written last, so a model with a manifest is complete. It has the SHA-256 of
every file and one digest over all of them. The weights are safetensors, so loading a model never
executes code from the file.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from visrec.config import plain
from visrec.errors import InputError
from visrec.ids import TEXT, id_array, is_in
from visrec.models import MODELS
from visrec.models.base import Model, ModelConfig, Sizes
from visrec.models.provenance import Provenance
from visrec.storage.schemas import HELD_OUT
from visrec.storage.store import DiskFile, Store, parse_json, to_json

MODEL_MANIFEST = "_manifest.json"
LATEST = "_latest.json"  # next to the models: names the one that was trained last
_WEIGHTS, _CONFIG, _METRICS = "model.safetensors", "config.json", "metrics.json"
TIMES = "_training.json"  # durations; not in the manifest, because a rerun has others
_ITEMS, _USERS = "item_ids.parquet", "user_ids.parquet"
_HELD_OUT = "held_out.parquet"
_USER_VECTORS = "users.weight"  # see `Model`
_MAPPED_BYTES = 64 * 2**20  # tensors above this size are mapped from their file
_FORGET_RECORD = "_forgotten.json"  # not in the manifest, because it is about earlier ones


@dataclass(frozen=True)
class Artifact:
    """A model with its provenance.

    Attributes:
        name: the model's key in `MODELS`.
        model: the fitted model.
        config: its settings.
        sizes: what determines the shapes of its parameters.
        item_ids: (I,) the items of training.
        user_ids: (U,) the users of training; None for a model that supports new users.
        provenance: features (backbone, weights digest, D), data digests, split, training config.
        metrics: what training measured.
        model_id: the model's name in the workspace.
        held_out: rows of `user_id` and `item_id` that training held out for the test. The model may
            be evaluated on these alone.
        digest: over all files; empty before the model is saved.
        categories: (code,) the names of the category codes.
    """

    name: str
    model: Model
    config: ModelConfig
    sizes: Sizes
    item_ids: pa.Array
    user_ids: pa.Array | None
    provenance: Provenance
    metrics: Mapping[str, Any]
    model_id: str
    held_out: pa.Table
    digest: str = ""
    categories: tuple[str, ...] = ()


def save_artifact(artifact: Artifact, store: Store) -> str:
    """Writes a model's directory, the manifest last, and returns the digest over all files."""
    files = {
        _WEIGHTS: save({k: v.contiguous().cpu() for k, v in artifact.model.state_dict().items()}),
        _CONFIG: to_json(
            {
                "model": {"name": artifact.name, **plain(artifact.config)},
                "model_id": artifact.model_id,
                "sizes": plain(artifact.sizes),
                "provenance": artifact.provenance.to_dict(),
                "categories": list(artifact.categories),
            }
        ),
        _METRICS: to_json(plain(artifact.metrics)),
        _ITEMS: _ids_file("item_id", artifact.item_ids),
        _HELD_OUT: _table_file(_with_id_types(artifact.held_out)),
    }
    if artifact.user_ids is not None:
        files[_USERS] = _ids_file("user_id", artifact.user_ids)
    for name, data in files.items():
        store.write(name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    store.write(MODEL_MANIFEST, _manifest_bytes(hashes))
    return _digest(hashes)


def load_artifact(store: Store) -> Artifact:
    """Reads a model's directory after checking every file against the manifest.

    Raises:
        InputError: there is no complete model, a file has changed since it was written, or this
            version cannot build the model.
    """
    try:
        with _checked_files(store) as (files, weights):
            return _build(store, files, weights)
    except (ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"The files of the model at {store.root} cannot be read: {type(error).__name__}: {text}"
        ) from error


def read_training_record(store: Store) -> tuple[Provenance, dict[str, Any]]:
    """What a model was trained on, and what its training measured; the weights are not read.

    Raises:
        StorageError: a file is missing.
        InputError: a file is not JSON.
    """
    provenance = Provenance.from_dict(store.read_json(_CONFIG)["provenance"])
    return provenance, dict(store.read_json(_METRICS))


def read_model_name(store: Store) -> str:
    """Which kind of model it is, such as curatornet; the weights are not read."""
    return str(store.read_json(_CONFIG)["model"]["name"])


def read_provenance(store: Store) -> Provenance:
    """What a model was made from, without reading its weights.

    Raises:
        InputError: this version cannot read it.
    """
    try:
        return Provenance.from_dict(store.read_json(_CONFIG)["provenance"])
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{store.uri(_CONFIG)} cannot be read: {type(error).__name__}: {error}"
        ) from error


def _build(store: Store, files: Mapping[str, bytes], weights: DiskFile) -> Artifact:
    description = json.loads(files[_CONFIG])
    settings = dict(description["model"])
    name = settings.pop("name")
    if name not in MODELS:
        raise InputError(
            f"The model at {store.root} is a {name!r}; expected one of {', '.join(sorted(MODELS))}."
        )
    try:
        config, sizes = MODELS[name].Config(**settings), Sizes(**description["sizes"])
    except TypeError as error:
        raise InputError(
            f"{store.uri(_CONFIG)} does not fit this version's {name}: {error}"
        ) from error
    with torch.device("meta"):  # the weights come from the file, so they need no other memory
        model = MODELS[name](config, sizes)
    try:
        model.load_state_dict(_mapped_tensors(weights, model.state_dict()), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"The weights at {store.uri(_WEIGHTS)} do not fit a {name}: {error}"
        ) from error
    model.eval()
    return Artifact(
        name=name,
        model=model,
        config=config,
        sizes=sizes,
        item_ids=_parse_ids(files[_ITEMS]),
        user_ids=_parse_ids(files[_USERS]) if _USERS in files else None,
        provenance=Provenance.from_dict(description["provenance"]),
        metrics=json.loads(files[_METRICS]),
        model_id=description["model_id"],
        held_out=_parse_held_out(files[_HELD_OUT]),
        digest=json.loads(files[MODEL_MANIFEST])["digest"],
        categories=tuple(description["categories"]),
    )


def _mapped_tensors(file: DiskFile, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Large ones are mapped from it, so that all processes of a
    machine share their memory.

    Small tensors are copied, because tensors in a file are not aligned and sums may depend on that.
    Large ones are tables of items or users, from which single rows are copied before any product.

    Raises:
        SafetensorError: it is no such file.
        RuntimeError: a tensor's type is not the expected one.
    """
    with safe_open(f"/dev/fd/{file.fileno()}", "pt") as opened:
        names: list[str] = opened.keys()
        mapped = {name: opened.get_tensor(name) for name in names}
    tensors = {n: t if t.nbytes > _MAPPED_BYTES else t.clone() for n, t in mapped.items()}
    for name, tensor in tensors.items():
        wanted = expected[name].dtype if name in expected else torch.float32
        if tensor.dtype != wanted:
            raise RuntimeError(f"{name} is {tensor.dtype}, expected {wanted}")
    return tensors


@contextmanager
def _checked_files(
    store: Store,
) -> Iterator[tuple[dict[str, bytes], DiskFile]]:
    """The model's small files as bytes, and the file of weights, open.

    Raises:
        InputError: see `load_artifact`.
    """
    if not store.exists(MODEL_MANIFEST):
        raise InputError(
            f"Found no complete model at {store.root} (no {MODEL_MANIFEST}); expected one that "
            "`visrec train` wrote. Change --model, or train first."
        )
    manifest = store.read(MODEL_MANIFEST)
    hashes = _hashes(manifest)
    if not hashes:
        raise _changed_error(store, [MODEL_MANIFEST])
    needed = {_WEIGHTS, _CONFIG, _METRICS, _ITEMS, _HELD_OUT, *hashes}
    missing = {name for name in needed if name not in hashes or not store.exists(name)}
    files = {name: store.read(name) for name in needed - missing - {_WEIGHTS}}
    changed = [name for name, data in files.items() if _sha256(data) != hashes[name]]
    if _WEIGHTS in missing:
        raise _changed_error(store, [*changed, *missing])
    with store.open_on_disk(_WEIGHTS) as weights:
        if hashlib.file_digest(weights, "sha256").hexdigest() != hashes[_WEIGHTS]:
            changed.append(_WEIGHTS)
        if changed or missing:
            raise _changed_error(store, [*changed, *missing])
        yield {MODEL_MANIFEST: manifest, **files}, weights


def _changed_error(store: Store, names: Iterable[str]) -> InputError:
    return InputError(
        f"The model at {store.root} has changed since it was written: "
        f"{', '.join(sorted(names))} changed or missing. Train it again; or, if `visrec forget` "
        "was stopped while it worked on the model, start that again first."
    )


def _hashes(manifest: bytes) -> dict[str, str]:
    """The files' hashes; none if the manifest is not byte for byte what `save_artifact` writes."""
    try:
        hashes = dict(json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError):
        return {}
    return hashes if manifest == _manifest_bytes(hashes) else {}


def _manifest_bytes(hashes: Mapping[str, str]) -> bytes:
    """The manifest that names files with these SHA-256."""
    return to_json({"files": hashes, "digest": _digest(hashes)})


def _digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(to_json(hashes)).hexdigest()


def _ids_file(column: str, ids: pa.Array) -> bytes:
    """A Parquet file with one column, of ids."""
    return _table_file(pa.table({column: id_array(ids)}))


def _table_file(table: pa.Table) -> bytes:
    """A Parquet file without the Arrow schema, so that readers see plain strings."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, store_schema=False)
    return bytes(sink.getvalue())


def _parse_held_out(data: bytes) -> pa.Table:
    """The held-out rows in a Parquet file.

    Raises:
        ValueError: it has other columns.
    """
    table = pq.read_table(pa.BufferReader(data))
    if not table.schema.equals(HELD_OUT):
        raise ValueError(f"{_HELD_OUT} has the columns {table.column_names}")
    return _with_id_types(table)


def _with_id_types(held_out: pa.Table) -> pa.Table:
    """The same rows, with the type that ids have in memory."""
    return pa.table({name: id_array(held_out[name]) for name in HELD_OUT.names})


def _parse_ids(data: bytes) -> pa.LargeStringArray:
    """The ids in a Parquet file that `_ids_file` made."""
    return id_array(pq.read_table(pa.BufferReader(data)).column(0))


# Users are removed from a model that is kept.


def forget_users(store: Store, user_ids: pa.Array) -> int:
    """Removes users from a model: their held-out rows, their ids, and their vectors.

    The vectors become zeros and the ids empty, which is no user's id, so that the rows of all other
    users stay where they are: the model scores these as before, to the bit. Each step can be
    repeated, so a start after a kill ends as the first one would have.

    Returns:
        How many rows of held-out items and of ids the model had of them.

    Raises:
        InputError: the model has changed since it was written.
    """
    record, hashes = _read_forget_record(store), _hashes(store.read(MODEL_MANIFEST))
    files = {name: store.read(name) for name in hashes}
    expected = {name: [hash, *record["files"].get(name, [])] for name, hash in hashes.items()}
    if not hashes or any(_sha256(data) not in expected[name] for name, data in files.items()):
        raise _changed_error(store, [MODEL_MANIFEST])
    removed, changed = _without_users(files, user_ids)
    new = {name: _sha256(data) for name, data in {**files, **changed}.items()}
    if new != hashes:
        earlier = [digest for digest in record["digests"] if digest != _digest(hashes)]
        begun = {name: [*expected[name][1:], new[name]] for name in changed}
        record = {"digests": [*earlier, _digest(hashes)], "files": {**record["files"], **begun}}
        store.write_json(_FORGET_RECORD, record)
        # The weights before the ids: until the vectors are zeros, the ids say which they are.
        for name in (_WEIGHTS, _USERS, _HELD_OUT):
            if name in changed:
                store.write(name, changed[name])
        store.write(MODEL_MANIFEST, _manifest_bytes(new))
    if record["files"]:
        store.write_json(_FORGET_RECORD, {**record, "files": {}})
    return removed


def read_digest(store: Store) -> str:
    """The digest of a model, without reading its files."""
    return str(store.read_json(MODEL_MANIFEST)["digest"])


def earlier_digests(store: Store) -> list[str]:
    """The digests that a model had before users were removed from it."""
    return list(_read_forget_record(store)["digests"])


def _read_forget_record(store: Store) -> dict[str, Any]:
    """`digests`: the model's earlier digests; `files`: the SHA-256 of files that are being
    replaced, by name."""
    found = store.read_if_exists(_FORGET_RECORD)
    if found is None:
        return {"digests": [], "files": {}}
    record: dict[str, Any] = parse_json(found[0], store.uri(_FORGET_RECORD))
    return record


def _without_users(files: Mapping[str, bytes], user_ids: pa.Array) -> tuple[int, dict[str, bytes]]:
    """How many rows of the users were in the files, and the files that had any, without them."""
    held_out, changed = _parse_held_out(files[_HELD_OUT]), {}
    kept = held_out.filter(pc.invert(is_in(held_out["user_id"], user_ids)))
    removed = len(held_out) - len(kept)
    if removed:
        changed[_HELD_OUT] = _table_file(kept)
    if _USERS in files:
        ids = _parse_ids(files[_USERS])
        is_gone = is_in(ids, user_ids)
        if rows := np.flatnonzero(is_gone.to_numpy(zero_copy_only=False)).tolist():
            weights = load(files[_WEIGHTS])
            weights[_USER_VECTORS][rows] = 0
            changed[_WEIGHTS] = save(weights)
            changed[_USERS] = _ids_file("user_id", pc.if_else(is_gone, pa.scalar("", TEXT), ids))
            removed += len(rows)
    return removed, changed


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
