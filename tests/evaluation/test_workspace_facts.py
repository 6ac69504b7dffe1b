"""What the report takes from the rest of a workspace."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pyarrow as pa
import pytest

from tests.integration.workspace import copy
from tests.publication.runs import PASSED, draft_manifest, published_run_id, write_files
from tests.stepping import MemoryStore
from visrec.config import plain
from visrec.evaluation.workspace_facts import FactSources, read_facts
from visrec.features.table import read_manifest
from visrec.interactions.log import ReadReport
from visrec.interactions.split import SplitConfig
from visrec.publication.completion import finish_run
from visrec.publication.gate import Gate
from visrec.publication.manifest import HELD_BACK
from visrec.publication.publish import publish_run
from visrec.publication.run_spec import run_store
from visrec.sources.interactions import REPEATED
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store


@pytest.fixture
def shop(recommended: Path, tmp_path: Path) -> Store:
    names = ("features", "models", "recommendations")
    return Store.at(copy(recommended, tmp_path / "shop", *names))


def sources(shop: Store) -> FactSources:
    return FactSources(
        models={"curatornet": shop / "models" / "one"},
        features=shop / "features",
        sweeps=shop / "sweeps",
        recommendations=shop / "recommendations",
        summaries=shop / "summaries",
    )


REPORT = ReadReport(1000, {REPEATED: 3, "without a user_id": 0})


def test_facts_of_a_workspace_are_read(shop: Store) -> None:
    shop.write_json("summaries/train.json", {"wall_s": {"train": 3.5}})
    shop.write_json("summaries/evaluate.json", {"wall_s": {"rank": 9.9}})
    facts = read_facts(sources(shop), REPORT, "evaluate")
    assert facts.data["Interactions read"] == "1,000"
    assert facts.data["Rows left out"] == "3 repeats of a user and item (the first time counts)"
    assert facts.data["Held out"] == "the last basket of each user"
    assert facts.data["Training data until"].endswith("UTC")
    (curve,) = facts.curves
    history = shop.read_json("models/one/metrics.json")["history"]
    assert curve.val_auc == [epoch["val_auc"] for epoch in history]
    assert curve.loss == [epoch["loss"] for epoch in history]
    assert facts.publication is not None
    assert (facts.publication.run.run_id, facts.publication.before) == ("first", None)
    assert facts.held_back is None
    assert facts.rejected is not None
    assert facts.rejected.by_reason == {}
    assert facts.seconds == {"train": {"train": 3.5}}
    assert facts.sweeps == []


@pytest.mark.parametrize(
    ("split", "is_marked", "held_out"),
    [
        (SplitConfig(by="item"), False, "the last item of each user"),
        (SplitConfig(), True, "the rows that the evaluation column marks"),
        (SplitConfig(at="2026-11-01"), False, "what was taken from 2026-11-01 on of each user"),
    ],
)
def test_report_says_what_was_held_out(
    shop: Store, split: SplitConfig, is_marked: bool, held_out: str
) -> None:
    config = shop.read_json("models/one/config.json")
    data = config["provenance"]
    data["split"] = plain(split)
    data["interactions"]["has_marked_test_rows"] = is_marked
    shop.write_json("models/one/config.json", config)
    assert read_facts(sources(shop), REPORT, "evaluate").data["Held out"] == held_out


def test_workspace_without_publication_has_other_facts(shop: Store) -> None:
    (shop / "recommendations").delete_all()
    facts = read_facts(sources(shop), REPORT, "evaluate")
    assert facts.publication is None
    assert len(facts.curves) == 1


@pytest.mark.parametrize(
    ("held_back_at", "is_shown"), [("2999-01-01", True), ("2000-01-01", False)]
)
def test_run_that_was_held_back_is_shown_until_another_is_published(
    shop: Store, held_back_at: str, is_shown: bool
) -> None:
    gates = [Gate("a", 1, 0, "failed"), Gate("b", 1, 1, "passed")]
    record = {"gates": [gate.to_dict() for gate in gates], "held_back_at": held_back_at}
    (shop / "recommendations" / "run=second").write_json(HELD_BACK, record)
    found = read_facts(sources(shop), REPORT, "evaluate").held_back
    assert (found is not None) == is_shown
    if found:
        assert (found.run_id, [gate.name for gate in found.gates]) == ("second", ["a"])


def test_facts_of_a_publication_are_of_one_run_while_the_pointer_moves(shop: Store) -> None:
    lists, steps = MemoryStore("s3://shop"), count()
    for run_id in ("r1", "r2"):
        run = run_store(lists, run_id)
        files = write_files(run, {"part-00000.parquet": b"x"})
        finish_run(run, draft_manifest(run_id=run_id, files=files), [PASSED])
    publish_run(lists, "r1")

    def publish_the_other(_: str) -> None:
        if next(steps) == 1:  # the pointer was read
            publish_run(lists, "r2")

    moving = replace(sources(shop), recommendations=replace(lists, pause=publish_the_other))
    publication = read_facts(moving, REPORT, "evaluate").publication
    assert publication is not None
    assert (publication.run.run_id, publication.before) == ("r1", None)
    assert published_run_id(lists) == "r2"


def test_rejected_pictures_are_counted_by_reason(shop: Store) -> None:
    reasons = ["corrupt"] * 60 + ["truncated"] * 7
    table = pa.table(
        [[f"i{n}" for n in range(67)], pa.nulls(67), reasons, ["why"] * 67, pa.nulls(67)],
        schema=REJECTED,
    )
    features = shop / "features"
    features.write_table("_rejected/part-1.parquet", table)
    manifest = {**read_manifest(features).to_dict(), "rejected": {"_rejected/part-1.parquet": 67}}
    features.write_json("_manifest.json", manifest)
    found = read_facts(sources(shop), REPORT, "evaluate").rejected
    assert found is not None
    assert found.by_reason == {"corrupt": 60, "truncated": 7}
    assert [picture.item_id for picture in found.examples] == [f"i{n}" for n in range(50)]


def test_trials_of_a_sweep_have_the_searched_keys(shop: Store) -> None:
    trials = pa.table(
        {
            "trial": pa.array([0, 1], pa.int32()),
            "train.learning_rate": [0.00123456, 0.5],
            "model.loss": ["softmax", "bpr"],
            "best_val_auc": [0.9, float("nan")],
            "epochs": pa.array([3, 1], pa.int32()),
            "status": ["finished", "diverged"],
            "seconds": [1.0, 2.0],
            "error": pa.nulls(2, pa.string()),
        }
    )
    (shop / "sweeps" / "wide").write_table("trials.parquet", trials)
    (sweep,) = read_facts(sources(shop), REPORT, "evaluate").sweeps
    assert sweep.name == "wide"
    first, second = sweep.trials
    assert first.values == {"train.learning_rate": "0.00123", "model.loss": "softmax"}
    assert (first.auc, second.auc, second.status) == (0.9, None, "diverged")


def test_damaged_files_are_named_and_cost_nothing_else(shop: Store) -> None:
    shop.write("recommendations/_latest.json", b"{")
    shop.write("summaries/train.json", b"{}")
    shop.write_json("models/one/metrics.json", {"history": [{}]})
    facts = read_facts(sources(shop), REPORT, "evaluate")
    assert facts.publication is None
    assert len(facts.curves) == 0
    curves, publications, summaries = facts.unreadable
    assert curves == "The training curves could not be read: KeyError: 'val_auc'"
    assert "The publications could not be read: " in publications
    assert "_latest.json" in publications
    assert summaries == "The summaries of jobs could not be read: KeyError: 'wall_s'"
