"""The explanation of a list, in workspaces that have no pictures."""

import re
from pathlib import Path

import pytest

from tests.features.sentence_models import WORDS, static_model
from visrec.cli.job import ModelChoice
from visrec.cli.parse import parse_in_workspace
from visrec.cli.summary import Summary
from visrec.features.sentences import TextConfig, load_text_encoder
from visrec.features.text_table import commit_texts, embed_texts, plan_texts, write_texts
from visrec.models.visrank import VisRankConfig
from visrec.pipelines import explain, recommend, train
from visrec.pipelines.explain import ExplainJob
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A workspace with lists of a model that knows the texts of items alone."""
    workspace = tmp_path / "shop"
    workspace.mkdir()
    items = [f"i{n}" for n in range(12)]
    titles = [f"{i},{WORDS[2 + n % 4]} {WORDS[3 + n % 3]}" for n, i in enumerate(items)]
    (workspace / "items.csv").write_text("\n".join(["item_id,title", *titles]))
    rows = [f"u{n},{items[(n + m) % 12]},2026-11-{m + 1:02}" for n in range(9) for m in range(3)]
    (workspace / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    embed_titles(workspace, TextConfig(model=static_model(tmp_path / "model")))
    model = ModelChoice("visrank", VisRankConfig())
    keys = {"workspace": str(workspace), "local": True}
    train.main(TrainJob(**keys, model=model, item_features="text"), Summary("train"))
    recommend.main(RecommendJob(**keys, k=3, run_id="first"), Summary("recommend"))
    return workspace


def embed_titles(workspace: Path, config: TextConfig) -> None:
    """Extracts texts in this process, which `visrec extract` does on Ray."""
    encoder, store = load_text_encoder(config), Store.at(str(workspace / "text_features"))
    items = InputTable(uri=str(workspace / "items.csv"), key="items")
    plan = plan_texts(items, store, encoder.identity)
    feature_BD, _ = embed_texts(plan.pending, plan, store, encoder)
    written = write_texts(store, plan.pending, feature_BD, encoder.identity)
    commit_texts(plan, written, store, encoder.identity, 0.0)


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_list_of_a_model_of_texts_is_explained(shop: Path, is_elsewhere: bool) -> None:
    flags = ["--workspace", str(shop), "--user", "u1", "--html", str(shop / "u1.html")]
    if is_elsewhere:
        (shop / "text_features").rename(shop / "titles")
        flags += ["--text_features", str(shop / "titles")]
    summary, job = Summary("explain"), parse_in_workspace(ExplainJob, flags)
    explain.check(job)
    explain.main(job, summary)
    assert (summary.rows["profile items"], summary.rows["list entries"]) == (3, 3)
    assert summary.rows["kept out"] == {"taken already": 3}


def explained(shop: Path) -> dict[str, object]:
    """The rows of the summary for a user."""
    summary = Summary("explain")
    job = parse_in_workspace(ExplainJob, ["--workspace", str(shop), "--user", "u1"])
    explain.check(job)
    explain.main(job, summary)
    return summary.rows


def test_damaged_run_before_only_costs_the_ranks_before(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recommend.main(
        RecommendJob(workspace=str(shop), local=True, k=3, run_id="second"), Summary("recommend")
    )
    assert explained(shop)["run"] == "second"
    assert re.search(r"because of +change", capsys.readouterr().out)
    (shop / "recommendations" / "run=first" / "_manifest.json").write_text("{")
    assert explained(shop)["list entries"] == 3
    assert not re.search(r"because of +change", capsys.readouterr().out)


def test_user_who_cannot_be_scored_again_is_shown_without_what_was_kept_out(shop: Path) -> None:
    for path in (shop / "text_features").iterdir():
        if path.is_file():
            path.unlink()  # the manifest of the features that the model takes
    rows = explained(shop)
    assert rows["list entries"] == 3
    assert str(rows["kept out"]).startswith("the user cannot be scored again: ")
