"""The whole chain on an S3 store, and its files as other programs read them."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.integration.workspace import (
    paint,
    published_rows,
    run_evaluate,
    run_extract,
    run_recommend,
    run_train,
)
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.s3
def test_s3_and_a_local_disk_give_the_same_recommendations(
    recommended: Path, s3_env: str, tmp_path: Path
) -> None:
    forget_credentials()
    workspace = f"{s3_env}/shop"
    paint(workspace)
    extracted = run_extract(workspace)
    assert extracted.rows["run through the network"] == 300
    run_train(workspace, model_id="one")
    run_recommend(workspace, shards=3)
    run_evaluate(workspace)

    store = Store.at(workspace)
    local = json.loads((recommended / "features" / "_manifest.json").read_text())
    assert store.read_json("features/_manifest.json")["digest"] == local["digest"]
    assert list(store.list("training/one-"))  # Ray's checkpoints
    weights = (recommended / "models/one/model.safetensors").read_bytes()
    assert store.read("models/one/model.safetensors") == weights
    assert _published(store / "recommendations") == published_rows(recommended / "recommendations")
    assert b"data:image/webp" in store.read("evaluation/report.html")
    assert not any(tmp_path.iterdir())


def _published(recommendations: Store) -> list[dict[str, Any]]:
    run = recommendations / f"run={recommendations.read_json('_latest.json')['run_id']}"
    rows = [
        row
        for name in run.read_json("_manifest.json")["files"]
        for row in run.read_table(name).to_pylist()
    ]
    return sorted(rows, key=lambda row: row["user_id"])


def test_duckdb_and_pandas_read_the_lists(recommended: Path) -> None:
    parts = recommended / "recommendations" / "run=first" / "part-*.parquet"
    rows = published_rows(recommended / "recommendations")
    flat = [(row["user_id"], entry["item_id"]) for row in rows for entry in row["items"]]
    query = "select user_id, unnest(items).item_id from read_parquet(?)"
    assert sorted(duckdb.execute(query, [str(parts)]).fetchall()) == sorted(flat)
    table = pd.concat(pd.read_parquet(part) for part in parts.parent.glob(parts.name))
    exploded = table.explode("items")
    by_pandas = zip(
        exploded["user_id"], (entry["item_id"] for entry in exploded["items"]), strict=True
    )
    assert sorted(by_pandas) == sorted(flat)


def test_features_are_read_by_pyarrow_alone(recommended: Path) -> None:
    files = list((recommended / "features").glob("part-*.parquet"))
    assert sum(pq.read_table(file).num_rows for file in files) == 300
