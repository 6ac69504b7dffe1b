"""Texts beside pictures through whole jobs: extracted, trained on, recommended, carried over."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import without_ray
from tests.features.sentence_models import WORDS, static_model
from tests.integration.workspace import (
    copy,
    published_rows,
    run_extract,
    run_recommend,
    run_train,
)
from visrec.cli.job import ModelChoice
from visrec.features.sentences import TextConfig, load_text_encoder
from visrec.features.table import load_features
from visrec.features.text_table import commit_texts, embed_texts, plan_texts, write_texts
from visrec.models.visrank import VisRankConfig
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_texts_are_extracted_trained_on_and_recommended(featured: Path, tmp_path: Path) -> None:
    """A list that is carried over past changed texts equals one that is scored."""
    shop = tmp_path / "shop"
    copy(featured, shop, "features", "interactions.parquet", "items.parquet", "users.parquet")
    item_ids = pq.read_table(shop / "items.parquet")["item_id"].to_pylist()
    random = np.random.default_rng(0)
    titles = [" ".join(random.choice(WORDS[2:], 3)) for _ in item_ids]
    titles[::10] = [""] * len(titles[::10])
    write_items(shop, item_ids, titles)
    config = TextConfig(model=static_model(tmp_path / "model"))
    summary = run_extract(shop, text=config)  # there is no folder of images
    assert summary.rows["texts"] == sum(map(bool, titles))
    assert summary.rows["texts embedded"] == len(set(titles)) - 1
    assert summary.rows["items without a text"] == len(titles[::10])
    assert "pictures" not in summary.rows
    found_ids, found_ND = load_features(Store.at(str(shop / "text_features")))
    title = dict(zip(item_ids, titles, strict=True))
    expected_ND = load_text_encoder(config)([title[i] for i in found_ids.to_pylist()])
    np.testing.assert_array_equal(found_ND, expected_ND.astype(np.float16))

    with without_ray():
        visrank = ModelChoice("visrank", VisRankConfig())
        trained = run_train(shop, model=visrank, item_features="both", model_id="both")
        assert trained.rows["items without a text"] == len(titles[::10])
        run_recommend(shop, run_id="first", shards=2)
        titles[0], titles[1], titles[2] = "red coat", "", "old old old"  # new, gone, changed
        write_items(shop, item_ids, titles)
        embed_again(shop, config)
        second = run_recommend(shop, run_id="second", shards=2)
        assert second.rows["lists carried over"] > 0
        carried = published_rows(shop / "recommendations")
        full = f"{shop}/full"
        run_recommend(shop, run_id="full", shards=2, recommendations=full, incremental=False)
    assert carried == published_rows(Path(full))


def write_items(shop: Path, item_ids: list[str], titles: list[str]) -> None:
    pq.write_table(pa.table({"item_id": item_ids, "title": titles}), shop / "items.parquet")


def embed_again(shop: Path, config: TextConfig) -> None:
    """Extracts texts in this process: Ray's workers take seconds to import the library."""
    encoder, store = load_text_encoder(config), Store.at(str(shop / "text_features"))
    items = InputTable(uri=str(shop / "items.parquet"), key="items")
    plan = plan_texts(items, store, encoder.identity)
    assert plan.pending.num_rows == 2
    feature_BD, _ = embed_texts(plan.pending, plan, store, encoder)
    written = write_texts(store, plan.pending, feature_BD, encoder.identity)
    commit_texts(plan, written, store, encoder.identity, 0.0)
