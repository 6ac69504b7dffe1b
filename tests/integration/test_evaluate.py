"""Evaluation: the metrics, equal for any number of workers, and the report."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.integration.workspace import copy, run_evaluate
from tests.interactions import assert_equal, prepared_root
from visrec.errors import InputError
from visrec.evaluation.aggregate import AggregationSpec, aggregate
from visrec.evaluation.data import EvaluationInputs, prepare_evaluation
from visrec.evaluation.examples import find_examples, hash_user_id
from visrec.evaluation.rank_users import EvaluationResources, RankUsers
from visrec.features.table import load_features
from visrec.interactions.activity import DAY
from visrec.models.artifact import load_artifact, save_artifact
from visrec.pipelines import ablate
from visrec.pipelines.evaluation_report import was_improving
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.store import Store

MODELS = {
    *("curatornet", "visrank-max", "visrank-mean", "visrank-mean_top_k"),
    *("popularity", "recent-popularity", "ease", "random", "oracle"),
}


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def held_out_users(workspace: Path) -> set[str]:
    """Users with two baskets or more: the last one of each is the test."""
    log = pd.read_parquet(workspace / "interactions.parquet")
    baskets = log.groupby("user_id")["timestamp"].nunique()
    return set(baskets[baskets > 1].index)


def test_metrics_json_has_the_fields_that_readers_rely_on(evaluated: Path) -> None:
    found, users = metrics(evaluated / "evaluation"), held_out_users(evaluated)
    assert found.keys() == {"models", "lists", "by_profile_size", "paired", "digests"}
    assert found["models"].keys() == found["lists"].keys() == MODELS
    names = {"auc", "rr", "recall@20", "precision@20", "ndcg@20", "ndcg_tutorial@20", "recall@200"}
    for model in found["models"].values():
        assert names <= model.keys()
        for value in model.values():
            assert value.keys() == {"mean", "low", "high", "n"}
            assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1
            assert value["n"] == len(users)
    for model in found["lists"].values():
        assert model.keys() == {"coverage@100", "diversity@100", "novelty@100", "cold@100"}
        assert 0 < model["coverage@100"]["mean"] <= 1
    others = MODELS - {"curatornet"}
    assert found["paired"].keys() == {f"curatornet - {other}" for other in others}


def test_oracle_is_best_and_random_has_an_auc_of_one_half(evaluated: Path) -> None:
    found = metrics(evaluated / "evaluation")["models"]
    auc = {name: model["auc"]["mean"] for name, model in found.items()}
    assert max(auc, key=lambda name: auc[name]) == "oracle"
    assert auc["oracle"] > 0.75
    assert auc["random"] == pytest.approx(0.5, abs=0.08)


def test_means_equal_those_of_the_per_user_metrics(evaluated: Path) -> None:
    file = evaluated / "evaluation" / "per_user.parquet"
    assert pq.read_schema(file).field("user_id").type == pa.string()
    rows = pd.read_parquet(file)
    users = held_out_users(evaluated)
    found = metrics(evaluated / "evaluation")
    for name, of_model in rows.groupby("model"):
        assert set(of_model["user_id"]) == users
        assert len(of_model) == len(users)
        for metric in ("auc", "recall@20", "ndcg@100"):
            mean = of_model[metric].mean()
            assert found["models"][str(name)][metric]["mean"] == pytest.approx(mean)
        for measure in ("diversity@100", "novelty@100", "cold@100"):
            mean = of_model[measure].mean()
            assert found["lists"][str(name)][measure]["mean"] == pytest.approx(mean)


def test_each_profile_size_has_the_means_of_its_users(evaluated: Path) -> None:
    rows = pd.read_parquet(evaluated / "evaluation" / "per_user.parquet")
    found = metrics(evaluated / "evaluation")["by_profile_size"]
    for model, of_model in rows.groupby("model"):
        size = of_model["profile_size"]
        buckets = {
            "1": of_model[size == 1],
            "2-4": of_model[(size >= 2) & (size <= 4)],
            "5-9": of_model[(size >= 5) & (size <= 9)],
            "10+": of_model[size >= 10],
        }
        filled = [name for name, users in buckets.items() if len(users)]
        assert len(filled) > 1
        assert found.keys() == set(filled)
        for name in filled:
            auc = found[name][model]["auc"]
            assert auc["n"] == len(buckets[name])
            assert auc["mean"] == pytest.approx(buckets[name]["auc"].mean())
            assert auc["low"] <= auc["mean"] <= auc["high"]


def test_paired_difference_equals_the_mean_of_per_user_differences(evaluated: Path) -> None:
    rows = pd.read_parquet(evaluated / "evaluation" / "per_user.parquet")
    auc = rows.pivot(index="user_id", columns="model", values="auc")
    found = metrics(evaluated / "evaluation")["paired"]["curatornet - visrank-mean"]["auc"]
    differences = auc["curatornet"] - auc["visrank-mean"]
    assert found["mean"] == pytest.approx(differences.mean())
    # 1.96 standard errors of the differences each side, by the central limit theorem.
    width = 2 * 1.96 * differences.std() / len(differences) ** 0.5
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.15)


def inputs(workspace: Path, *models: str) -> EvaluationInputs:
    return EvaluationInputs(
        models={
            model if len(models) > 1 else "": Store.at(str(workspace / "models" / model))
            for model in models
        },
        features=Store.at(str(workspace / "features")),
        interactions=InteractionsConfig(),
        interactions_uri=str(workspace / "interactions.parquet"),
        items_table=None,
        truth=None,
    )


@pytest.mark.parametrize("partitions", [1, 3, 17])
def test_prepared_interactions_give_the_same_evaluation(evaluated: Path, partitions: int) -> None:
    asked = inputs(evaluated, "one")
    store, uri = Store.at(str(evaluated)), asked.interactions_uri
    root = prepared_root(store, asked.interactions, uri, partitions)
    found = prepare_evaluation(replace(asked, prepared=root))
    assert_equal(replace(found, costs={}), replace(prepare_evaluation(asked), costs={}))


def test_list_metrics_equal_a_loop_over_the_lists(evaluated: Path) -> None:
    found = metrics(evaluated / "evaluation")["lists"]["visrank-mean"]
    data = prepare_evaluation(inputs(evaluated, "one"))
    log = pd.read_parquet(evaluated / "interactions.parquet")
    last = log.groupby("user_id")["timestamp"].transform("max")
    baskets = log.groupby("user_id")["timestamp"].transform("nunique")
    before = log[(baskets == 1) | (log["timestamp"] < last)]
    takers = before.groupby("item_id")["user_id"].nunique()
    item_ids, feature_ND = load_features(Store.at(str(evaluated / "features")))
    z_ND = feature_ND.astype(np.float64)
    scale = z_ND.std(axis=0)
    z_ND = (z_ND - z_ND.mean(axis=0))[:, scale > 1e-6] / scale[scale > 1e-6]
    z_ND /= np.linalg.norm(z_ND, axis=1, keepdims=True)
    ids = np.array(item_ids.to_pylist())
    # Ranked is what somebody had taken by the end of the day of the held-out basket.
    first_N = log.groupby("item_id")["timestamp"].min().reindex(ids).to_numpy()
    diversity, novelty, cold, shown = [], [], [], set()
    for user, profile in before[baskets[before.index] > 1].groupby("user_id"):
        known = np.flatnonzero(np.isin(ids, profile["item_id"]))
        score_N = (z_ND @ z_ND[known].T).mean(axis=1)
        score_N[known] = -np.inf
        day = log.loc[log["user_id"] == user, "timestamp"].max() // DAY
        score_N[~(first_N < (day + 1) * DAY)] = -np.inf
        rows = np.argsort(-score_N)[:100]
        rows = rows[np.isfinite(score_N[rows])]
        cosine = z_ND[rows] @ z_ND[rows].T
        diversity.append(1 - cosine[~np.eye(len(rows), dtype=bool)].mean())
        taken = np.maximum(takers.reindex(ids[rows]).fillna(0), 1)
        novelty.append(-np.log2(taken / before["user_id"].nunique()).mean())
        cold.append((~np.isin(ids[rows], before["item_id"])).mean())
        shown.update(rows.tolist())
    # Scores are float32 there, so two items at the end of a list may change places.
    assert found["diversity@100"]["mean"] == pytest.approx(np.mean(diversity), rel=1e-3)
    assert found["novelty@100"]["mean"] == pytest.approx(np.mean(novelty), rel=1e-3)
    assert found["cold@100"]["mean"] == pytest.approx(np.mean(cold), rel=1e-2)
    assert found["coverage@100"]["mean"] == pytest.approx(len(shown) / len(data.item_ids), rel=1e-2)


def test_shorter_log_drops_users_and_evaluates_nobody_on_trained_rows(
    evaluated: Path, tmp_path: Path
) -> None:
    whole = prepare_evaluation(inputs(evaluated, "one"))
    log = pd.read_parquet(evaluated / "interactions.parquet")
    last = log.groupby("user_id")["timestamp"].transform("max")
    odd = log["user_id"].isin(whole.user_ids.to_pylist()[1::2])
    log[~odd | (log["timestamp"] < last)].to_parquet(tmp_path / "shorter.parquet")
    shorter = replace(inputs(evaluated, "one"), interactions_uri=str(tmp_path / "shorter.parquet"))
    data = prepare_evaluation(shorter)
    assert data.user_ids.to_pylist() == whole.user_ids.to_pylist()[::2]
    even = whole.held_out.take(np.arange(0, len(whole.held_out), 2))
    for found, expected in (
        (data.held_out.targets, even.targets),
        (data.held_out.profiles, even.profiles),
    ):
        # Items are in the order in which they were first taken, which the shorter log changes.
        assert (
            data.item_ids.take(pa.array(found.values)).to_pylist()
            == whole.item_ids.take(pa.array(expected.values)).to_pylist()
        )
    assert data.missing == len(whole.held_out.targets.values) - len(even.targets.values)
    log[log["timestamp"] < last].to_parquet(tmp_path / "shorter.parquet")
    with pytest.raises(InputError, match="is evaluated only on what its training did not see"):
        prepare_evaluation(shorter)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_give_the_same_metrics_as_one(evaluated: Path, tmp_path: Path) -> None:
    resources = EvaluationResources(workers=2)
    run_evaluate(evaluated, evaluation=str(tmp_path), resources=resources)
    assert metrics(tmp_path) == metrics(evaluated / "evaluation")
    one, two = (
        pd.read_parquet(folder / "per_user.parquet")
        for folder in (evaluated / "evaluation", tmp_path)
    )
    pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.parametrize("size", [1, 7, 512])
def test_any_block_size_gives_the_same_metrics(evaluated: Path, tmp_path: Path, size: int) -> None:
    data = prepare_evaluation(inputs(evaluated, "one"))
    progress_actor = SimpleNamespace(add=SimpleNamespace(remote=lambda _: None))
    rank = RankUsers(data, 1, progress_actor, size)
    blocks = [rank({"id": np.array([n])}) for n in range(-(-len(data.held_out) // size))]
    labels = [model.label for model in data.evaluated_models]
    spec = AggregationSpec(
        labels=labels,
        items=len(data.item_ids),
        pairs=[],
        costs=data.costs,
        digests={},
        target=Store.at(str(tmp_path)),
    )
    results, _ = aggregate(spec, *reversed(blocks))
    found = results.to_dict()
    expected = metrics(evaluated / "evaluation")
    for part in ("models", "lists"):
        for label in labels:
            means = {name: value["mean"] for name, value in found[part][label].items()}
            assert means == {n: value["mean"] for n, value in expected[part][label].items()}
    whole = pd.read_parquet(evaluated / "evaluation" / "per_user.parquet")
    same = whole[whole["model"] != "oracle"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "per_user.parquet"), same, check_exact=True
    )


def test_models_by_name_are_trained_once_and_compared_with_others(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Path(copy(trained, tmp_path / "ws", "features", "interactions.parquet", "models"))
    train_config = tmp_path / "train.yaml"
    train_config.write_text(
        "train: {epochs: 2, triples_per_epoch: 1024, batch_size: 128, refit: false}\n"
        "resources: {cpus_per_worker: 1}\n"
    )
    keys = {"models": "one,bpr_mf,multivae", "train_config": str(train_config), "examples": 0}
    run_evaluate(workspace, **keys)
    found, costs = (
        metrics(workspace / "evaluation"),
        json.loads((workspace / "evaluation" / "costs.json").read_text()),
    )
    assert {"one", "bpr_mf", "multivae"} <= found["models"].keys()
    assert {"one - bpr_mf", "one - multivae"} <= found["paired"].keys()
    # A row for each user and item, and a bias for each item.
    users = load_artifact(next(models_of(workspace, "bpr_mf"))).sizes.users
    assert costs["bpr_mf"]["parameters"] == 64 * (users + 300) + 300
    assert all(costs[name]["train_s"] > 0 for name in ("one", "bpr_mf", "multivae"))
    assert all(cost["score_ms"] > 0 for cost in costs.values())
    assert "What the models cost" in (workspace / "evaluation" / "report.html").read_text()
    assert "s to train" in capsys.readouterr().out
    run_evaluate(workspace, **keys)
    assert capsys.readouterr().out.count("trained already") == 2
    assert metrics(workspace / "evaluation") == found


def models_of(workspace: Path, name: str) -> Iterator[Store]:
    """The workspace's models whose ids begin with a name."""
    for folder in (workspace / "models").glob(f"{name}-*"):
        yield Store.at(str(folder))


@pytest.fixture(scope="module")
def several(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace with two comparable models, one named random, and three that are not."""
    workspace = tmp_path_factory.mktemp("several")
    copy(trained, workspace, "features", "interactions.parquet", "models")
    models = Store.at(str(workspace / "models"))
    first = load_artifact(models / "one")
    data = first.provenance.data

    def save(name: str, **changes: Any) -> None:
        provenance = replace(first.provenance, data=replace(data, **changes))
        save_artifact(replace(first, model_id=name, provenance=provenance), models / name)

    save("by-item", split=replace(data.split, by="item"))
    save("fewer", interactions=replace(data.interactions, min_rating=4.0))
    save("retaken", features_digest="of other pictures")
    save("random")
    with torch.no_grad():
        for weight in first.model.parameters():
            weight.mul_(0.9).add_(0.01 * torch.randn_like(weight))
    save("two")
    return workspace


def test_several_models_are_compared_in_one_table_by_their_ids(
    several: Path, tmp_path: Path
) -> None:
    keys = {"evaluation": str(tmp_path), "examples": 0}
    run_evaluate(
        several, models=f"one, {several}/models/two", compare="visrank-mean,popularity", **keys
    )
    found = metrics(tmp_path)
    assert found["models"].keys() == {"one", "two", *MODELS} - {"curatornet", "oracle"}
    assert {"one - two", "one - random", "visrank-mean - popularity"} <= found["paired"].keys()
    assert "two - random" not in found["paired"]
    run_evaluate(several, model=str(several / "models" / "two"), **keys)
    alone = metrics(tmp_path)
    for label, expected in {"two": "curatornet", "random": "random"}.items():
        for name, figure in alone["models"][expected].items():
            assert found["models"][label][name] == pytest.approx(figure, rel=1e-12)
    assert found["models"]["one"]["auc"] != found["models"]["two"]["auc"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"models": "one,by-item"}, "by-item was made from the split.*and one from"),
        ({"models": "one,fewer"}, "fewer was made from the interactions.*and one from"),
        ({"models": "one,retaken"}, "retaken was made from the features.*and one from"),
        ({"models": "one,one"}, "'one' for more than one row"),
        ({"models": "one,random"}, "'random' for more than one row"),
        ({"models": "one,absent"}, "no complete model"),
        ({"models": "one", "model": "two"}, "both --model and --models"),
        ({"models": ","}, "expected at least one"),
        ({"compare": "random"}, "expected two rows"),
        ({"compare": "random,oracle-of-delphi"}, "'oracle-of-delphi' in --compare"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(
    several: Path, tmp_path: Path, keys: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_evaluate(several, evaluation=str(tmp_path), **keys)
    assert not list(tmp_path.iterdir())


def test_report_is_one_page_with_pictures(evaluated: Path) -> None:
    page = (evaluated / "evaluation" / "report.html").read_text()
    pictures = re.findall(r"data:image/webp;base64,[^)]*", page)
    assert len(pictures) > 20
    assert len(set(pictures)) == len(pictures)
    assert "http" not in re.sub(r"base64,[^)]*|http-equiv", "", page)
    for model in MODELS:
        assert model in page
    for heading in (
        *(
            "Lists of <bdi>curatornet</bdi>",
            "By profile size",
            "What the lists are like",
            "Visual clusters",
        ),
        *("Differences between models", "Training", "Data facts", "Timings"),
    ):
        assert heading in page


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"val_auc": 0.7, "epochs": 3, "best_epoch": 3}, True),
        ({"val_auc": 0.7, "epochs": 3, "best_epoch": 1}, False),
        ({"val_auc": None, "epochs": 3, "best_epoch": 3}, False),
        ({"val_auc": 0.7, "epochs": 0}, False),
    ],
)
def test_model_was_improving_if_its_last_validated_epoch_was_the_best(
    several: Path, tmp_path: Path, metrics: dict[str, float | None], expected: bool
) -> None:
    model = Path(copy(several, tmp_path, "models")) / "models/one"
    (model / "metrics.json").write_text(json.dumps(metrics))
    assert was_improving(Store.at(str(model))) == expected


def test_held_out_item_is_ringed_exactly_if_its_rank_is_in_the_list(evaluated: Path) -> None:
    data = prepare_evaluation(inputs(evaluated, "one"))
    taken = pd.read_parquet(evaluated / "interactions.parquet").groupby("user_id")["item_id"]
    users = find_examples(data, 40, "visrank-mean", None)
    assert len({user.user_id for user in users}) == 40
    per_user = pd.read_parquet(evaluated / "evaluation" / "per_user.parquet")
    auc = per_user.set_index(["model", "user_id"])["auc"]
    for user in users:
        listed = [entry.item.item_id for entry in user.recommended]
        assert len(set(listed)) == len(listed) == 12
        assert all(entry.score is None for entry in user.recommended)  # means nothing to readers
        for entry in user.held_out:
            assert entry.hit == (entry.item.item_id in listed) == (entry.rank <= 12)
            if entry.hit:
                assert listed[entry.rank - 1] == entry.item.item_id
        held_out = {entry.item.item_id for entry in user.held_out}
        reasons = {entry.because.item_id for entry in user.recommended if entry.because}
        assert len(user.profile) == min(user.profile_size, 9)
        assert reasons <= {item.item_id for item in user.profile} or len(reasons) > 9
        assert {item.item_id for item in user.profile} | held_out <= set(
            taken.get_group(user.user_id)
        )
        assert not {item.item_id for item in user.profile} & {*listed, *held_out}
        assert user.auc == pytest.approx(auc["curatornet", user.user_id])
        assert user.rival_auc == pytest.approx(auc["visrank-mean", user.user_id])


def test_evaluation_is_compared_with_the_one_before_and_hides_users(
    several: Path, tmp_path: Path
) -> None:
    workspace = copy(several, tmp_path / "shop", "features", "interactions.parquet", "models")
    target = Path(workspace) / "evaluation"
    keys = {"examples": 20, "hash_users": True}
    for name, before in (("one", None), ("two", "one")):
        run_evaluate(workspace, model=f"{workspace}/models/{name}", **keys)
        found = json.loads((target / "_evaluation.json").read_text())
        assert found["model_id"] == name
        assert found["means"]["auc"] == metrics(target)["models"]["curatornet"]["auc"]["mean"]
        assert (found["before"] or {}).get("model_id") == before
    page = (target / "report.html").read_text()
    assert "This evaluation and the one before" in page
    ids = re.findall(r'data-user="([^"]*)"', page)
    assert len(set(ids)) == 20
    assert all(re.fullmatch("[0-9a-f]{12}", user) for user in ids)
    assert not [user for user in held_out_users(several) if user in page]
    digest = metrics(target)["digests"]["curatornet"]
    assert digest not in page
    assert hash_user_id("user-1", digest) != hash_user_id("user-1", "another model")


def test_ablation_trains_missing_variants_and_compares_them(
    trained: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Training a variant takes seconds; tests/pipelines/test_ablate.py tests which ones there are.
    kept = ("guidelines", "positive-in-profile")
    every = ablate.sampling_variants
    monkeypatch.setattr(ablate, "sampling_variants", lambda *a: {n: every(*a)[n] for n in kept})
    names = ("features", "models", "interactions.parquet", "items.parquet", "images", "truth")
    workspace = Path(copy(trained, tmp_path / "shop", *names))
    latest = (workspace / "models" / "_latest.json").read_bytes()
    own = json.loads(latest)["model_id"]
    run_evaluate(workspace, ablate=True, examples=0)
    found = metrics(workspace / "evaluation")
    variants = {name.removeprefix(f"{own}-") for name in found["models"] if own in name}
    assert variants == {own, *kept}
    assert f"{own} - {own}-guidelines" in found["paired"]
    assert (workspace / "models" / "_latest.json").read_bytes() == latest
    capfd.readouterr()
    run_evaluate(workspace, ablate=True, examples=0)
    assert capfd.readouterr().out.count("is trained already") == len(variants) - 1
    assert metrics(workspace / "evaluation") == found
