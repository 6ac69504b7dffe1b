"""Evaluation through Ray: the table, its numbers for any number of workers, the report."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.integration.workspace import run_evaluate

pytestmark = pytest.mark.ray

MODELS = {
    *("curatornet", "visrank-max", "visrank-mean", "visrank-mean_top_k"),
    *("popularity", "random", "oracle"),
}


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def held_out_users(workspace: Path) -> set[str]:
    """Users with two baskets or more: the last one of each is the test."""
    log = pd.read_parquet(workspace / "interactions.parquet")
    baskets = log.groupby("user_id")["timestamp"].nunique()
    return set(baskets[baskets > 1].index)


def test_metrics_have_the_shape_that_readers_rely_on(evaluated: Path) -> None:
    found, users = metrics(evaluated / "evaluation"), held_out_users(evaluated)
    assert found.keys() == MODELS
    for model in found.values():
        assert {"auc", "rr", "recall@20", "precision@20", "ndcg@20", "recall@200"} <= model.keys()
        for value in model.values():
            assert value.keys() == {"mean", "low", "high", "n"}
            assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1
            assert value["n"] == len(users)


def test_oracle_is_the_best_and_random_is_a_coin(evaluated: Path) -> None:
    auc = {name: model["auc"]["mean"] for name, model in metrics(evaluated / "evaluation").items()}
    assert max(auc, key=lambda name: auc[name]) == "oracle"
    assert auc["oracle"] > 0.75
    assert auc["random"] == pytest.approx(0.5, abs=0.08)


def test_means_are_those_of_the_users(evaluated: Path) -> None:
    rows = pd.read_parquet(evaluated / "evaluation" / "per_user.parquet")
    users = held_out_users(evaluated)
    found = metrics(evaluated / "evaluation")
    for name, of_model in rows.groupby("model"):
        assert set(of_model["user_id"]) == users
        assert len(of_model) == len(users)
        for metric in ("auc", "recall@20", "ndcg@100"):
            assert found[str(name)][metric]["mean"] == pytest.approx(of_model[metric].mean())


def test_three_workers_give_the_same_numbers_as_one(evaluated: Path, tmp_path: Path) -> None:
    run_evaluate(evaluated, evaluation=str(tmp_path), workers=3)
    assert metrics(tmp_path) == metrics(evaluated / "evaluation")
    one, three = (
        pd.read_parquet(folder / "per_user.parquet")
        for folder in (evaluated / "evaluation", tmp_path)
    )
    pd.testing.assert_frame_equal(one, three, check_exact=True)


def test_report_is_one_page_with_pictures(evaluated: Path) -> None:
    page = (evaluated / "evaluation" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 20
    assert "http://" not in page.replace("http://www.w3.org", "")
    for model in MODELS:
        assert model in page
