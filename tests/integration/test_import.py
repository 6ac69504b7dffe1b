"""A workspace without pictures: imported features through training, evaluation and a night."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

from tests.conftest import without_ray
from tests.integration.workspace import (
    QUICK,
    copy,
    run_evaluate,
    run_night,
    run_recommend,
    run_train,
)
from visrec.cli.launch import visrec_cause
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.features.table import load_features, read_manifest
from visrec.interactions.split import SplitConfig
from visrec.models.artifact import load_artifact
from visrec.pipelines import import_features
from visrec.pipelines.import_features import ImportFeaturesJob
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store
from visrec.training.loop import TrainConfig

ITEMS, USERS, DIM = 60, 30, 8
ONE_EPOCH = TrainConfig(**{**QUICK.__dict__, "epochs": 1})


def run_import(workspace: str | Path, **keys: Any) -> Summary:
    summary = Summary("import_features")
    import_features.main(
        ImportFeaturesJob(workspace=str(workspace), backbone="net", **keys), summary
    )
    return summary


def write_tables(store: Store) -> None:
    """Features of a few row groups, and users who take two items at each timestamp."""
    random = np.random.default_rng(0)
    feature = pa.array(random.normal(size=ITEMS * DIM).astype(np.float32))
    table = pa.table(
        {
            "item_id": [f"i{n:02}" for n in range(ITEMS)],
            "feature": pa.FixedSizeListArray.from_arrays(feature, DIM),
        }
    )
    store.write_table("features.parquet", table)
    rows = [
        (f"u{user:02}", f"i{item:02}", position // 2)
        for user in range(USERS)
        for position, item in enumerate(random.permutation(ITEMS)[: 2 + user % 7])
    ]
    user_id, item_id, timestamp = map(list, zip(*rows, strict=True))
    log = pa.table({"user_id": user_id, "item_id": item_id, "timestamp": timestamp})
    store.write_table("interactions.parquet", log)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:  # noqa: ARG001
    """A workspace with imported features, and a model trained with one item per user held out."""
    workspace = tmp_path_factory.mktemp("imported")
    write_tables(Store.at(str(workspace)))
    summary = run_import(workspace)
    with without_ray():
        run_train(workspace, ONE_EPOCH, model_id="one", split=SplitConfig(by="item"))
    assert (summary.rows["rows read"], summary.rows["rejected"]) == (ITEMS, 0)
    return workspace


def test_imported_features_equal_the_tables(imported: Path) -> None:
    item_ids, feature_ND = load_features(Store.at(str(imported / "features")))
    table = pq.read_table(imported / "features.parquet")
    assert item_ids.to_pylist() == table["item_id"].to_pylist()
    expected_ND = np.array(table["feature"].to_pylist(), np.float32).astype(np.float16)
    np.testing.assert_array_equal(feature_ND, expected_ND)


@pytest.mark.ray
def test_second_import_of_the_same_table_writes_nothing(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [p for p in (imported / "features").rglob("*") if not p.name.startswith(".")]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}
    summary = run_import(imported)
    assert "nothing to do" in capsys.readouterr().out
    assert (summary.rows["rows read"], summary.rows["features"]) == (0, ITEMS)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files} == before


def test_model_names_its_features_and_its_split(imported: Path) -> None:
    artifact = load_artifact(Store.at(str(imported / "models" / "one")))
    data = artifact.provenance.data
    identity = data.features_identity
    assert (identity.backbone, identity.weights_digest) == ("net", "unknown")
    assert data.features_digest == read_manifest(Store.at(str(imported / "features"))).digest
    assert data.split == SplitConfig(by="item")


def test_evaluation_holds_out_the_same_item_as_training(imported: Path) -> None:
    run_evaluate(imported)
    rows = pd.read_parquet(imported / "evaluation" / "per_user.parquet")
    rows = rows[rows["model"] == "curatornet"]
    assert len(rows) == USERS  # including users whose items share one timestamp
    # A split by basket would hold out two items of every other user.
    np.testing.assert_allclose(rows["recall@20"], 20 * rows["precision@20"])
    sizes = {f"u{user:02}": 2 + user % 7 for user in range(USERS)}
    assert dict(zip(rows["user_id"], rows["profile_size"] + 1, strict=True)) == sizes


def test_night_on_imported_features_skips_extraction(imported: Path, tmp_path: Path) -> None:
    copy(imported, tmp_path, "features", "interactions.parquet")
    night = run_night(tmp_path, "2026-11-21", model="visrank", evaluate=False)
    assert night.rows["published"] == "yes"
    assert "extract" not in json.loads((tmp_path / "nights/2026-11-21.json").read_text())["steps_s"]


@pytest.mark.ray
def test_new_items_of_a_changed_table_are_recommended_by_a_trained_model(
    imported: Path, tmp_path: Path
) -> None:
    table = pq.read_table(imported / "features.parquet")
    new = table.slice(0, 1).set_column(0, "item_id", pa.array(["new"]))
    pq.write_table(pa.concat_tables([table, new]), tmp_path / "more.parquet")
    run_import(imported, table=str(tmp_path / "more.parquet"), features=f"{tmp_path}/features")
    summary = run_recommend(
        imported,
        features=f"{tmp_path}/features",
        recommendations=f"{tmp_path}/recommendations",
        k=ITEMS + 1,
    )
    (pointer,) = (tmp_path / "recommendations").glob("run=*/")
    lists = pq.read_table(pointer)["items"].to_pylist()
    assert summary.rows["users"] == len(lists) == USERS
    assert all("new" in {entry["item_id"] for entry in one} for one in lists)


@pytest.mark.ray
def test_wrong_row_is_refused_through_ray_and_the_features_are_unchanged(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `start_ray` sets it.
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "raise_original_map_exception", True)
    table = pq.read_table(imported / "features.parquet")
    lists = [row[: DIM - (n == 7)] for n, row in enumerate(table["feature"].to_pylist())]
    ragged = table.set_column(1, "feature", pa.array(lists, pa.list_(pa.float32())))
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    before = (imported / "features" / "_manifest.json").read_bytes()
    with pytest.raises(Exception, match=r"feature of i07 has 7 numbers; expected 8") as refusal:
        run_import(imported, table=str(tmp_path / "ragged.parquet"))
    assert isinstance(visrec_cause(refusal.value), InputError)
    assert (imported / "features" / "_manifest.json").read_bytes() == before


@pytest.mark.ray
@pytest.mark.s3
def test_features_on_s3_equal_those_on_a_local_disk(imported: Path, s3_env: str) -> None:
    forget_credentials()
    store = Store.at(f"{s3_env}/shop")
    write_tables(store)
    run_import(store.root)
    local = read_manifest(Store.at(str(imported / "features")))
    found = read_manifest(store / "features")
    assert (found.digest, found.files) == (local.digest, local.files)
