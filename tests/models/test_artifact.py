"""A model on disk is complete or absent, unchanged or refused, and never executes code."""

import gc
import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load, save

from tests.memory import private_memory
from tests.training import checkerboard, provenance
from visrec.errors import InputError
from visrec.models import MODELS
from visrec.models.artifact import MODEL_MANIFEST, Artifact, load_artifact, save_artifact
from visrec.models.base import Sizes
from visrec.models.bpr_mf import BprMfConfig
from visrec.models.curatornet import CuratorNetConfig
from visrec.storage.store import Store, to_json

FILES = [
    "config.json",
    "held_out.parquet",
    "item_ids.parquet",
    "metrics.json",
    "model.safetensors",
    "user_ids.parquet",
]
HOSTILE = [
    "", " ", "a,b", 'quo"te', "new\nline", "../../up", "s3://b/k", "0", "-1", "1e5", "null", "NaN",
    "été", "绘画", "\U0001f3a8", "e\u0301", "\u202egpj", "tab\t", "x" * 5000, "a\x00b",
]  # fmt: skip


def _artifact(**changed: Any) -> Artifact:
    torch.manual_seed(0)
    data = checkerboard(items=8, users=4, dim=3)
    config = CuratorNetConfig(item_width=4, user_width=5, temperature=2.5)
    model = MODELS["curatornet"](config, data.sizes)
    model.fit(data.catalogue, data.train)
    fields: dict[str, Any] = {
        "name": "curatornet",
        "model": model,
        "config": config,
        "sizes": data.sizes,
        "item_ids": data.item_ids,
        "user_ids": data.user_ids,
        "provenance": provenance(features_digest="abc", train={"temperature": 2.5}),
        "metrics": {"val_auc": 0.75, "history": [{"loss": 0.5}]},
        "model_id": "m1",
        "held_out": pa.table({"user_id": ["u0001"], "item_id": ["i0002"]}),
    }
    return Artifact(**{**fields, **changed})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder with a complete model."""
    store = Store.at(str(tmp_path / "model"))
    save_artifact(_artifact(), store)
    return store


def replace_file(store: Store, name: str, data: bytes) -> None:
    """Replaces a file, and its hash in the manifest."""
    store.write(name, data)
    hashes = store.read_json(MODEL_MANIFEST)["files"]
    hashes[name] = hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256(to_json(hashes)).hexdigest()
    store.write_json(MODEL_MANIFEST, {"files": hashes, "digest": digest})


def test_loaded_model_equals_the_saved_one(store: Store) -> None:
    written, read = _artifact(), load_artifact(store)
    assert read.name == "curatornet"
    assert read.config == written.config
    assert read.sizes == Sizes(items=8, users=4, feature_dim=3)
    assert read.item_ids.to_pylist() == written.item_ids.to_pylist()
    assert read.user_ids is not None
    assert read.user_ids.to_pylist() == written.user_ids.to_pylist()
    assert read.model_id == "m1"
    assert read.metrics == written.metrics
    assert read.provenance == written.provenance
    assert read.provenance.data.features_digest == "abc"
    weights, expected = read.model.state_dict(), written.model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_large_weights_are_mapped_and_take_no_memory(tmp_path: Path) -> None:
    store, sizes = Store.at(str(tmp_path)), Sizes(items=1_000_000, users=9, feature_dim=0)
    config = BprMfConfig(width=64)
    ids = pa.array([f"i{n:06}" for n in range(sizes.items)])
    model = MODELS["bpr_mf"](config, sizes)
    written = _artifact(name="bpr_mf", model=model, config=config, sizes=sizes, item_ids=ids)
    save_artifact(written, store)
    expected = model.state_dict()["items.weight"][:9].clone()
    del model, written
    gc.collect()
    before = private_memory()
    loaded = load_artifact(store).model
    # The weights have 256 MB. Most of the memory that loading takes holds the ids.
    assert private_memory() - before < 100e6
    assert torch.equal(loaded.state_dict()["items.weight"][:9], expected)


def test_loaded_model_scores_without_dropout(store: Store) -> None:
    model: Any = load_artifact(store).model
    assert not model.training


def test_saved_files_are_the_documented_ones(store: Store) -> None:
    assert sorted(entry.name for entry in store.list()) == sorted([*FILES, MODEL_MANIFEST])


def test_digest_covers_all_files_and_is_stable(store: Store, tmp_path: Path) -> None:
    def digest(name: str, **changed: Any) -> str:
        return save_artifact(_artifact(**changed), Store.at(str(tmp_path / name)))

    again = digest("again")
    assert load_artifact(store).digest == again
    different = {
        again,
        digest("metrics", metrics={"val_auc": 0.76}),
        digest("config", provenance=provenance()),
        digest("items", item_ids=pa.array([f"j{n}" for n in range(8)])),
        digest("users", user_ids=None),
        digest("weights", model=MODELS["curatornet"](_artifact().config, _artifact().sizes)),
    }
    assert len(different) == 6


def test_hostile_ids_are_loaded_unchanged(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "model"))
    save_artifact(_artifact(item_ids=pa.array(HOSTILE), user_ids=pa.array(HOSTILE[::-1])), store)
    read = load_artifact(store)
    assert read.item_ids.to_pylist() == HOSTILE
    assert read.user_ids is not None
    assert read.user_ids.to_pylist() == HOSTILE[::-1]


@pytest.mark.parametrize("name", [*FILES, MODEL_MANIFEST])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_flipped_byte_is_refused_with_the_file(store: Store, name: str, part: float) -> None:
    data = bytearray(store.read(name))
    data[int(part * len(data))] ^= 0x04
    store.write(name, bytes(data))
    with pytest.raises(InputError, match=name):
        load_artifact(store)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused_with_its_name(store: Store, name: str) -> None:
    store.delete([name])
    with pytest.raises(InputError, match=name):
        load_artifact(store)


def test_manifest_without_a_file_is_refused(store: Store) -> None:
    hashes = store.read_json(MODEL_MANIFEST)["files"]
    del hashes["model.safetensors"]
    digest = hashlib.sha256(to_json(hashes)).hexdigest()
    store.write_json(MODEL_MANIFEST, {"files": hashes, "digest": digest})
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_artifact(store)


def test_directory_without_a_manifest_is_no_model(store: Store) -> None:
    store.delete([MODEL_MANIFEST])
    with pytest.raises(InputError, match="no complete model"):
        load_artifact(store)


def test_interrupted_save_leaves_no_model(tmp_path: Path, monkeypatch: Any) -> None:
    store = Store.at(str(tmp_path / "model"))
    write = Store.write

    def fails_at_the_items(self: Store, name: str, data: bytes) -> None:
        if name == "item_ids.parquet":
            raise OSError("the disk is full")
        write(self, name, data)

    monkeypatch.setattr(Store, "write", fails_at_the_items)
    with pytest.raises(OSError, match="full"):
        save_artifact(_artifact(), store)
    with pytest.raises(InputError, match="no complete model"):
        load_artifact(store)


def test_unknown_model_is_refused_with_the_list_of_models(store: Store) -> None:
    config = store.read_json("config.json")
    config["model"]["name"] = "os.system"
    replace_file(store, "config.json", to_json(config))
    with pytest.raises(InputError, match=r"'os\.system'.*curatornet.*visrank"):
        load_artifact(store)


def test_weights_of_another_shape_are_refused(store: Store) -> None:
    config = store.read_json("config.json")
    config["model"]["item_width"] = 6
    replace_file(store, "config.json", to_json(config))
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_artifact(store)


def test_weights_of_another_type_are_refused(store: Store) -> None:
    weights = load(store.read("model.safetensors"))
    name = max(weights)
    weights[name] = weights[name].half()
    replace_file(store, "model.safetensors", save(weights))
    with pytest.raises(InputError, match=r"torch\.float16, expected torch\.float32"):
        load_artifact(store)


def test_config_key_of_another_version_is_refused(store: Store) -> None:
    config = store.read_json("config.json")
    config["model"]["learned_temperature"] = True
    replace_file(store, "config.json", to_json(config))
    with pytest.raises(InputError, match="learned_temperature"):
        load_artifact(store)


class _Payload:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._trace,)


def _as_pickle(payload: _Payload) -> bytes:
    return pickle.dumps(payload)


def _as_torch_zip(payload: _Payload) -> bytes:
    sink = io.BytesIO()
    torch.save({"item_tower.0.weight": payload}, sink)
    return sink.getvalue()


def _as_npz(payload: _Payload) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, weight=np.array([payload], dtype=object))
    return sink.getvalue()


@pytest.mark.parametrize("disguise", [_as_pickle, _as_torch_zip, _as_npz])
def test_pickled_weights_are_refused_and_not_executed(
    store: Store, tmp_path: Path, disguise: Callable[[_Payload], bytes]
) -> None:
    trace = tmp_path / "trace"
    replace_file(store, "model.safetensors", disguise(_Payload(trace)))
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_artifact(store)
    assert not trace.exists()


def test_payload_runs_when_it_is_unpickled(tmp_path: Path) -> None:
    # Otherwise the test above would pass whatever the loader does.
    pickle.loads(_as_pickle(_Payload(tmp_path / "trace")))  # noqa: S301
    assert (tmp_path / "trace").exists()
