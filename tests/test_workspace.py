"""`visrec.Workspace`: the jobs from Python."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import visrec
from tests.integration.workspace import copy
from visrec import Workspace
from visrec.errors import InputError
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.workspace import Gallery


def test_lists_made_now_are_those_that_were_published(recommended: Path) -> None:
    workspace = Workspace(str(recommended))
    published = workspace.recommendations()
    everybody = published.to_pandas()
    users = everybody["user_id"].unique()[:20].tolist()
    now = workspace.recommend(users, k=published.manifest.k)
    for user in users:
        expected = everybody[everybody["user_id"] == user].reset_index(drop=True)
        pd.testing.assert_frame_equal(published.for_user(user), expected)
        made = now[now["user_id"] == user].reset_index(drop=True)
        pd.testing.assert_frame_equal(made, expected, check_dtype=False)


def test_published_lists_are_shown_as_their_run_and_their_number(recommended: Path) -> None:
    published = Workspace(str(recommended)).recommendations()
    users = published.to_pandas()["user_id"].nunique()
    assert repr(published) == f"PublishedLists({published.run_id!r}, {users} users)"


def test_lists_of_items_are_of_no_user(recommended: Path) -> None:
    published = Workspace(str(recommended)).recommendations()
    manifest = replace(published.manifest, kind="item_to_item")
    with pytest.raises(InputError, match="whose lists are of items"):
        replace(published, manifest=manifest).for_user("user-1")


def test_shorter_lists_are_the_heads_of_longer_ones(recommended: Path) -> None:
    workspace = Workspace(str(recommended))
    user = workspace.recommendations().to_pandas()["user_id"][0]
    long, short = (workspace.recommend([user], k) for k in (9, 3))
    assert long["rank"].tolist() == list(range(1, 10))
    assert short["item_id"].tolist() == long["item_id"].tolist()[:3]


def test_unknown_user_or_item_is_refused(trained: Path) -> None:
    workspace = Workspace(str(trained))
    with pytest.raises(InputError, match="Found 'nobody'; expected a user of the interactions"):
        workspace.recommend(["nobody"])
    with pytest.raises(InputError, match="Found 'nothing'; expected an item that has a vector"):
        workspace.similar("nothing")


def test_similar_items_exclude_the_item_itself(trained: Path) -> None:
    workspace = Workspace(str(trained))
    item = pd.read_parquet(trained / "features", columns=["item_id"])["item_id"][0]
    similar = workspace.similar(item, k=5)
    assert list(similar.columns) == ["item_id", "rank", "similar_item_id", "score"]
    assert len(similar) == 5
    assert item not in set(similar["similar_item_id"])
    assert similar["score"].is_monotonic_decreasing


def test_shown_items_are_pictures_with_titles(trained: Path) -> None:
    workspace = Workspace(str(trained))
    user = pd.read_parquet(trained / "interactions.parquet")["user_id"][0]
    gallery = workspace.show(user, k=4)
    page = gallery._repr_html_()
    assert page.count("<img ") == page.count("<figcaption>") == 4
    assert "<b>" not in Gallery("<b>", ())._repr_html_()


def test_fit_takes_the_keys_of_the_command(featured: Path, tmp_path: Path) -> None:
    workspace = Workspace(copy(featured, tmp_path, "features", "interactions.parquet"))
    keys = {"train.epochs": 1, "train.triples_per_epoch": 512, "model_id": "mine"}
    assert workspace.fit("bpr_mf", keys)["model"] == "mine"
    with pytest.raises(InputError, match=r"did you mean --train\.epochs"):
        workspace.fit("bpr_mf", {"train.epoch": 1})
    with pytest.raises(InputError, match="Nothing is published at"):
        workspace.recommendations()
    assert visrec.__version__


def test_path_may_begin_with_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert Workspace("~/shop").path == "/home/ann/shop"
    assert Workspace("s3://shop/visrec/").path == "s3://shop/visrec"


@pytest.mark.parametrize("is_in_file", [True, False])
def test_pictures_elsewhere_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_file: bool
) -> None:
    (tmp_path / "interactions.csv").touch()
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/a.png")
    images = {"images": str(tmp_path / "photos")}
    (tmp_path / "visrec.yaml").write_text(json.dumps(images if is_in_file else {}))
    lists = pd.DataFrame({"item_id": ["a"]})
    monkeypatch.setattr(Workspace, "recommend", lambda *_: lists)
    workspace = Workspace(str(tmp_path), None if is_in_file else images)
    assert workspace.show("u1").cards[0].thumbnail is not None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rule.cap": 1}, r"rule\.cap in the keys of a Workspace; did you mean rules\.cap\?"),
        ({"rules": {"capp": 1}}, r"did you mean rules\.cap\?"),
        ({"rules.cap-by": "x"}, r"did you mean rules\.cap_by\?"),
        ({"model.ease_rnk": 1}, r"did you mean model\.ease_rank\?"),
        ({"rules": 3}, "expected keys below it"),
        ({"models": ["a", "b"]}, "expected text or null, and no list"),
        ({"workspace": "x"}, "the key workspace"),
    ],
)
def test_unknown_default_key_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Workspace("shop", keys)


def test_default_keys_count_in_every_call_that_has_them(tmp_path: Path) -> None:
    keys = {
        "rules": {"cap": 3},
        "interactions.columns.user_id": "buyer",
        "model": {"name": "vbpr", "width": 8, "ease_rank": 0},  # ease_rank: of hybrid alone
        "train.epochs": 2,
    }
    workspace = Workspace(str(tmp_path), keys)
    recommend = workspace._job(RecommendJob, {"rules.min_stock": 1})
    assert (recommend.rules.cap, recommend.rules.min_stock) == (3, 1)
    assert recommend.interactions.columns == {"user_id": "buyer"}
    train = workspace._job(TrainJob, None)
    assert (train.model.name, train.model.config.width, train.train.epochs) == ("vbpr", 8, 2)
    hybrid = workspace._job(TrainJob, {"model": {"name": "hybrid"}})
    assert (hybrid.model.name, hybrid.model.config.ease_rank) == ("hybrid", 0)
    own = workspace._job(RecommendJob, {"rules": {"cap": np.int64(5)}})
    assert own.rules.cap == 5
    directory = Workspace(str(tmp_path), {"model": "models/x"})
    assert directory._job(RecommendJob, None).model == "models/x"
    assert directory._job(TrainJob, None).model.name == "hybrid"


def test_key_that_an_argument_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Found the key k; expected none of kind, k and layout"):
        Workspace(str(tmp_path)).recommend(["u1"], 20, {"k": 3})
    with pytest.raises(InputError, match=r"models: .* expected text or null, and no list"):
        Workspace(str(tmp_path)).evaluate({"models": ["vbpr", "ease"]})


def test_users_may_be_of_any_collection(trained: Path) -> None:
    workspace = Workspace(str(trained))
    user = pd.read_parquet(trained / "interactions.parquet")["user_id"][0]
    expected = workspace.recommend([user], 3)
    for users in (pd.Series([user], index=[7]), {user}, (each for each in [user]), user):
        pd.testing.assert_frame_equal(workspace.recommend(users, 3), expected)
    for missing in (pd.Series([user, "nobody"], index=[7, 9]), {"nobody"}):
        with pytest.raises(InputError, match="Found 'nobody'; expected a user"):
            workspace.recommend(missing)
    with pytest.raises(InputError, match="Found '12'; expected a user"):
        workspace.recommend(12)


def test_model_that_answers_and_model_that_serves_are_named_where_they_differ(
    recommended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = tmp_path / "shop"
    shutil.copytree(recommended, shop)
    workspace = Workspace(str(shop))
    published = workspace.recommendations()
    serving = published.manifest.model_id
    lists = published.to_pandas()
    user = lists["user_id"][0]
    capsys.readouterr()
    workspace.recommend(user, 3)
    assert capsys.readouterr().out == ""
    last = workspace.fit("visrank", {"model_id": "last"})["model"]
    mine = workspace.recommend(user, 3)
    said = capsys.readouterr().out
    assert f"These lists are of {last}, which was trained last; the published ones are of " in said
    assert f"model={serving!r}" in said
    served = lists[lists["user_id"] == user].head(3).reset_index(drop=True)
    for model in (serving, str(shop / "models" / serving)):
        now = workspace.recommend(user, 3, model=model)
        pd.testing.assert_frame_equal(now, served, check_dtype=False)
    assert not mine["score"].equals(served["score"])
    assert capsys.readouterr().out == ""
    cards = workspace.show(user, 3, model=serving).cards
    assert [card.item_id for card in cards] == served["item_id"].tolist()
    with pytest.raises(InputError, match="Found no model at"):
        workspace.recommend(user, model="nothing")
