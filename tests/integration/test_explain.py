"""The explanation of a user's list: what was published, the profile, what rules kept out."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.integration.workspace import copy, published_rows, run_recommend
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.pipelines import explain
from visrec.pipelines.explain import ExplainJob
from visrec.retrieval.rules import RulesConfig

INPUTS = ("features", "images", "models", "interactions.parquet", "items.parquet", "users.parquet")


@pytest.fixture(scope="module")
def shop(recommended: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two publications: the second one allows one work of an artist in a list."""
    workspace = tmp_path_factory.mktemp("explain") / "shop"
    copy(recommended, workspace, *INPUTS, "recommendations")
    run_recommend(workspace, run_id="capped", rules=RulesConfig(cap=1))
    return workspace


def explained(workspace: Path, user: str, **keys: Any) -> dict[str, Any]:
    summary = Summary("explain")
    job = ExplainJob(workspace=str(workspace), user=user, **keys)
    explain.check(job)
    explain.main(job, summary)
    return summary.rows


def busiest_user(workspace: Path) -> str:
    log = pd.read_parquet(workspace / "interactions.parquet")
    return str(log["user_id"].value_counts().index[0])


def test_list_and_profile_are_those_of_the_tables(
    shop: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    user, page = busiest_user(shop), tmp_path / "page.html"
    rows = explained(shop, user, html=str(page))
    (published,) = [r for r in published_rows(shop / "recommendations") if r["user_id"] == user]
    log = pd.read_parquet(shop / "interactions.parquet")
    taken = set(log[log["user_id"] == user]["item_id"])
    assert rows["profile items"] == len(taken)
    assert rows["list entries"] == len(published["items"]) == 10
    text, html = capsys.readouterr().out, page.read_text()
    titles = pd.read_parquet(shop / "items.parquet").set_index("item_id")["title"]
    for n, entry in enumerate(published["items"], 1):
        assert f"{n}. {titles[entry['item_id']]}" in text
        assert f"{entry['score']:.3f}"[:5] in text
        assert titles[entry["because_item_id"]] in text
        assert titles[entry["item_id"]] in html
    assert html.count("data:image/webp;base64,") >= 10


def test_what_kept_items_out_is_true(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user = busiest_user(shop)
    kept_out = explained(shop, user)["kept out"]
    cap = "the list has 1 of the same artist_id (rules.cap)"
    assert {"taken already", cap} <= kept_out.keys()
    assert not any(why.startswith("not known") for why in kept_out)
    assert cap in capsys.readouterr().out
    # Without the rule the run before had other entries, and no artist kept anything out.
    artists = pd.read_parquet(shop / "items.parquet").set_index("item_id")["artist_id"]
    (now,) = [r for r in published_rows(shop / "recommendations") if r["user_id"] == user]
    assert len({artists[entry["item_id"]] for entry in now["items"]}) == len(now["items"])


def test_changes_since_the_run_before_are_badges(shop: Path, tmp_path: Path) -> None:
    user, page = busiest_user(shop), tmp_path / "page.html"
    explained(shop, user, html=str(page))
    html = page.read_text()
    assert "since the run <bdi>first</bdi>" in html
    assert '<span class="badge">new</span>' in html
    assert "items, best first, each because of the profile item nearest to it. Badges say" in html


def test_user_without_interactions_has_the_fallback_list(
    shop: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    users = set(pd.read_parquet(shop / "users.parquet")["user_id"])
    log = pd.read_parquet(shop / "interactions.parquet")
    cold = min(users - set(log["user_id"]))
    rows = explained(shop, cold, html=str(tmp_path / "page.html"))
    assert rows["profile items"] == 0
    html = (tmp_path / "page.html").read_text()
    assert "10 items, best first." in html
    assert "because of the profile item" not in html
    assert "fallback list" in str(rows["kept out"])
    assert "profile: 0 items" in capsys.readouterr().out


def test_list_is_explained_without_the_model(shop: Path, tmp_path: Path) -> None:
    names = [name for name in INPUTS if name != "models"]
    workspace = Path(copy(shop, tmp_path / "shop", *names, "recommendations"))
    rows = explained(workspace, busiest_user(shop))
    assert rows["list entries"] == 10
    assert "not in the workspace any more" in rows["kept out"]


def test_unknown_user_and_missing_run_are_refused(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no list of the user 'nobody' in the run capped"):
        explained(shop, "nobody")
    users = {row["user_id"] for row in published_rows(shop / "recommendations")}
    with pytest.raises(InputError, match="spelled as there, such as '") as caught:
        explained(shop, "nobody")
    named = re.findall("'([^']+)'", str(caught.value).partition("such as")[2])
    assert len(named) == 3
    assert {*named} <= users
    with pytest.raises(InputError, match="Found no --user"):
        explained(shop, "")
    empty = Path(copy(shop, tmp_path / "empty", "interactions.parquet"))
    with pytest.raises(InputError, match="no published run"):
        explained(empty, "user-1")
