"""Texts beside pictures, through whole jobs: extracted, trained on, recommended, carried over."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.features.sentence_models import WORDS, static_model
from tests.integration.workspace import (
    copy,
    published_rows,
    run_evaluate,
    run_extract,
    run_recommend,
    run_train,
)
from visrec.cli.job import ModelChoice
from visrec.errors import InputError
from visrec.features.item_features import FeatureTables, ItemFeatures, load_item_features
from visrec.features.sentences import TextConfig, load_text_encoder
from visrec.features.text_table import commit_texts, embed_texts, plan_texts, write_texts
from visrec.models.visrank import VisRankConfig
from visrec.pipelines.recommend_job import item_features_of
from visrec.pipelines.train import TrainJob
from visrec.storage.store import Store

pytestmark = pytest.mark.ray
VISRANK = ModelChoice("visrank", VisRankConfig())


@pytest.fixture(scope="module")
def texts(featured: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextConfig]:
    """A workspace with features of pictures and, but for every tenth item, of texts."""
    folder = tmp_path_factory.mktemp("texts")
    copy(featured, folder, "features", "interactions.parquet", "items.parquet", "users.parquet")
    item_ids = pq.read_table(folder / "items.parquet")["item_id"].to_pylist()
    random = np.random.default_rng(0)
    titles = [" ".join(random.choice(WORDS[2:], 3)) for _ in item_ids]
    for row in range(0, len(titles), 10):
        titles[row] = ""
    pq.write_table(pa.table({"item_id": item_ids, "title": titles}), folder / "items.parquet")
    text = TextConfig(model=static_model(tmp_path_factory.mktemp("model") / "m"))
    summary = run_extract(folder, text=text)  # there is no images folder
    assert summary.rows["texts"] == len(titles) * 9 // 10
    assert summary.rows["texts embedded"] == len(set(titles)) - 1
    assert summary.rows["items without a text"] == len(titles) // 10
    assert "pictures" not in summary.rows
    return folder, text


def test_extracted_features_are_those_of_the_model(texts: tuple[Path, TextConfig]) -> None:
    folder, config = texts
    found = load_item_features(FeatureTables(catalogue=Store.at(str(folder / "text_features"))))
    items = pq.read_table(folder / "items.parquet").to_pylist()
    title = {row["item_id"]: row["title"] for row in items if row["title"]}
    assert found.item_ids.to_pylist() == sorted(title)
    encode = load_text_encoder(config)
    expected = encode([title[item_id] for item_id in sorted(title)]).astype(np.float16)
    np.testing.assert_array_equal(found.feature_ND, expected)


@pytest.fixture(scope="module")
def trained(texts: tuple[Path, TextConfig]) -> Path:
    """The workspace with a VisRank of each kind."""
    kinds: tuple[ItemFeatures, ...] = ("pictures", "text", "both")
    for kind in kinds:
        run_train(texts[0], model=VISRANK, item_features=kind, model_id=kind)
    return texts[0]


def expected_lists(workspace: Path, model: str) -> dict[str, list[str]]:
    """The ten best items of each user by VisRank's formula, in float64."""
    kind = item_features_of(TrainJob(workspace=str(workspace)), f"{workspace}/models/{model}")
    stores = [Store.at(str(workspace / name)) for name in ("features", "text_features")]
    found = load_item_features(FeatureTables.of(kind, *stores))
    wide_ND = found.feature_ND.astype(np.float64)
    z_ND = (wide_ND - wide_ND.mean(0)) / np.where(wide_ND.std(0) > 1e-6, wide_ND.std(0), np.inf)
    unit_ND = z_ND / np.linalg.norm(z_ND, axis=1, keepdims=True)
    row = {item_id: n for n, item_id in enumerate(found.item_ids.to_pylist())}
    taken: dict[str, set[int]] = {}
    for pair in pq.read_table(workspace / "interactions.parquet").to_pylist():
        if pair["item_id"] in row:
            taken.setdefault(pair["user_id"], set()).add(row[pair["item_id"]])
    lists = {}
    for user, rows in taken.items():
        score_N = unit_ND @ unit_ND[sorted(rows)].mean(0)
        score_N[sorted(rows)] = -np.inf
        best = np.argsort(-score_N, kind="stable")[:10]
        lists[user] = [found.item_ids[int(n)].as_py() for n in best]
    return lists


@pytest.mark.parametrize("kind", ["text", "both"])
def test_lists_are_those_of_the_formula(trained: Path, tmp_path: Path, kind: str) -> None:
    run_recommend(
        trained, model=f"{trained}/models/{kind}", recommendations=f"{tmp_path}/lists",
        run_id="first",
    )  # fmt: skip
    found = {row["user_id"]: row for row in published_rows(tmp_path / "lists")}
    expected = expected_lists(trained, kind)
    same = [
        [item["item_id"] for item in found[user]["items"]] == items
        for user, items in expected.items()
    ]
    assert np.mean(same) > 0.98  # two scores may be equal but for the last bits


def test_models_of_pictures_and_of_both_are_compared_in_one_table(trained: Path) -> None:
    run_train(trained, model_id="both-curatornet", item_features="both")
    summary = run_evaluate(
        trained, models=f"{trained}/models/both-curatornet,{trained}/models/pictures"
    )
    assert summary.rows["model"] == "both-curatornet, pictures"


def test_changed_text_changes_the_lists_that_it_decides(
    trained: Path, texts: tuple[Path, TextConfig], tmp_path: Path
) -> None:
    """Lists carried over from the night before equal lists that are all scored."""
    folder = tmp_path / "shop"
    shutil.copytree(trained, folder)
    keys = {"model": f"{folder}/models/both", "shards": 8}
    run_recommend(folder, run_id="first", **keys)
    items = pq.read_table(folder / "items.parquet").to_pylist()
    for row, title in ((0, "red coat"), (1, ""), (2, "old old old")):  # new, gone, changed
        items[row]["title"] = title
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    embed_again(folder, texts[1])
    second = run_recommend(folder, run_id="second", **keys)
    assert second.rows["lists carried over"] > 0
    carried = published_rows(folder / "recommendations")
    run_recommend(
        folder, run_id="full", recommendations=f"{folder}/full", incremental=False, **keys
    )
    assert carried == published_rows(folder / "full")
    first = pq.read_table(next((folder / "recommendations/run=first").glob("part-0-*"))).to_pylist()
    assert [row["items"] for row in first] != [row["items"] for row in carried[: len(first)]]


def embed_again(folder: Path, config: TextConfig) -> None:
    """Extracts texts in this process: Ray's workers take seconds to import the library."""
    encoder, store = load_text_encoder(config), Store.at(str(folder / "text_features"))
    plan = plan_texts(str(folder / "items.parquet"), store, encoder.identity)
    assert plan.pending.num_rows == 2
    feature_BD, _ = embed_texts(plan.pending, plan, store, encoder)
    written = write_texts(store, plan.pending, feature_BD, encoder.identity)
    commit_texts(plan, written, store, encoder.identity, 0.0)


def test_model_of_texts_without_texts_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="text_features"):
        run_recommend(
            trained, model=f"{trained}/models/both", text_features=str(tmp_path / "gone"),
            recommendations=f"{tmp_path}/lists",
        )  # fmt: skip
