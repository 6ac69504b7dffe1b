"""Item-to-item lists: the nearest items by vectors, with a publication of their own."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.integration.workspace import copy, published_rows, run_recommend, run_train
from tests.publication.list_runs import FORMATS, rows_of_table
from visrec.cli.job import ModelChoice
from visrec.cli.launch import visrec_cause
from visrec.errors import InputError
from visrec.features.table import load_features
from visrec.models import MODELS
from visrec.models.artifact import load_artifact
from visrec.models.base import Catalogue
from visrec.publication.tables import PublishConfig
from visrec.retrieval.similar import Kind
from visrec.storage.store import Store

K = 10
ITEMS: Kind = "item_to_item"


def test_each_item_has_the_nearest_available_others(trained: Path, tmp_path: Path) -> None:
    """Compared with the cosines of all pairs in float64."""
    target = tmp_path / "similar"
    summary = run_recommend(trained, kind=ITEMS, k=K, recommendations=str(target))
    assert summary.rows["items"] == 300
    item_ids, feature_ND = load_features(Store.at(str(trained / "features")))
    model = load_artifact(Store.at(str(trained / "models" / "one"))).model
    arrays = model.item_arrays(Catalogue(feature_ND, np.arange(len(item_ids))))
    vectors = arrays["vectors"].astype(np.float64)
    unit_Nd = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine_NN = unit_Nd @ unit_Nd.T
    items = pq.read_table(trained / "items.parquet").to_pylist()
    available = {row["item_id"] for row in items if row["available"]}
    names = item_ids.to_pylist()
    row_of = {name: row for row, name in enumerate(names)}
    found = published_rows(target)
    assert [row["item_id"] for row in found] == names
    for row in found:
        query, listed = row["item_id"], [entry["item_id"] for entry in row["items"]]
        assert len(set(listed)) == K
        assert query not in listed
        assert set(listed) <= available
        others = [row_of[name] for name in available if name != query]
        best = np.sort(cosine_NN[row_of[query], others])[::-1][:K]
        cosines = [cosine_NN[row_of[query], row_of[name]] for name in listed]
        np.testing.assert_allclose(cosines, best, atol=1e-6)
        np.testing.assert_allclose([entry["score"] for entry in row["items"]], best, atol=1e-5)


def test_item_lists_have_a_long_layout_and_their_own_pointer(
    recommended: Path, tmp_path: Path
) -> None:
    names = ("features", "models", "interactions.parquet", "items.parquet", "users.parquet")
    workspace = Path(copy(recommended, tmp_path / "ws", *names))
    run_recommend(workspace, kind=ITEMS, k=3, layout="long", run_id="one")
    rows = published_rows(workspace / "similar_items")
    assert set(rows[0]) == {"item_id", "rank", "similar_item_id", "score"}
    assert [row["rank"] for row in rows[:6]] == [1, 2, 3, 1, 2, 3]
    assert len(rows) == 900
    assert not (workspace / "recommendations").exists()
    publish = PublishConfig(table="delta,iceberg,manifest")
    again = run_recommend(workspace, kind=ITEMS, k=3, layout="long", run_id="one", publish=publish)
    assert again.rows["shards scored now"] == 0
    assert again.rows["tables"] == "delta, iceberg, manifest"
    lists = Store.at(str(workspace / "similar_items"))
    assert [rows_of_table(lists, table) for table in FORMATS] == 3 * [rows]


def test_model_without_item_vectors_is_refused(featured: Path, tmp_path: Path) -> None:
    names = ("features", "interactions.parquet", "items.parquet", "users.parquet")
    workspace = Path(copy(featured, tmp_path / "ws", *names))
    run_train(workspace, model=ModelChoice("random", MODELS["random"].Config()), model_id="noise")
    with pytest.raises(Exception, match="item_to_item") as refused:
        run_recommend(workspace, kind=ITEMS)
    assert isinstance(visrec_cause(refused.value), InputError)
    assert not [path for path in (workspace / "similar_items").rglob("*") if path.is_file()]


def test_item_lists_need_no_interactions(featured: Path, tmp_path: Path) -> None:
    workspace = Path(copy(featured, tmp_path / "ws", "features"))
    visrank = ModelChoice("visrank", MODELS["visrank"].Config())
    run_train(workspace, model=visrank, model_id="looks")
    run_recommend(workspace, kind=ITEMS, k=5)
    item_ids, feature_ND = load_features(Store.at(str(workspace / "features")))
    z_ND = feature_ND.astype(np.float64) - feature_ND.astype(np.float64).mean(axis=0)
    z_ND /= np.maximum(z_ND.std(axis=0), 1e-6)
    z_ND /= np.linalg.norm(z_ND, axis=1, keepdims=True)
    cosine_NN = z_ND @ z_ND.T
    np.fill_diagonal(cosine_NN, -np.inf)
    rows = published_rows(workspace / "similar_items")
    assert [row["item_id"] for row in rows] == item_ids.to_pylist()
    scores = np.array([[entry["score"] for entry in row["items"]] for row in rows])
    np.testing.assert_allclose(scores, -np.sort(-cosine_NN, axis=1)[:, :5], atol=1e-4)
    with pytest.raises(Exception, match="interactions") as refused:  # lists for users do need them
        run_recommend(workspace, k=5)
    assert isinstance(visrec_cause(refused.value), InputError)
