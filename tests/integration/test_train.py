"""Training: the number of workers and interruptions do not change the model."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.workspace import QUICK, copy, run_train
from visrec.models.artifact import load_artifact
from visrec.models.curatornet import CuratorNetConfig
from visrec.storage.store import Store


def read_history(workspace: Path, model_id: str) -> list[dict[str, float]]:
    metrics = json.loads((workspace / "models" / model_id / "metrics.json").read_text())
    epochs: list[dict[str, float]] = metrics["history"]
    return epochs


def test_artifact_has_all_files_and_its_provenance(trained: Path) -> None:
    folder = trained / "models" / "one"
    files = {path.name for path in folder.iterdir()}
    expected = {
        "model.safetensors",
        "config.json",
        "metrics.json",
        "item_ids.parquet",
        "held_out.parquet",
    }
    assert files == expected | {"_manifest.json", "_training.json"}
    assert json.loads((folder / "_training.json").read_text())["train_s"] > 0
    described = json.loads((folder / "config.json").read_text())
    assert described["model"] == {"name": "curatornet", **asdict(CuratorNetConfig())}
    provenance = described["provenance"]
    features = json.loads((trained / "features" / "_manifest.json").read_text())
    assert provenance["features"]["digest"] == features["digest"]
    assert provenance["train"]["epochs"] == QUICK.epochs
    artifact = load_artifact(Store.at(str(folder)))
    assert artifact.model_id == "one"
    assert artifact.item_ids.to_pylist() == sorted(p.stem for p in (trained / "images").iterdir())
    latest = json.loads((trained / "models" / "_latest.json").read_text())
    assert latest == {"model_id": "one", "digest": artifact.digest}


def test_training_learns_the_planted_taste(trained: Path) -> None:
    first, *_, last = read_history(trained, "one")
    assert last["loss"] < first["loss"]
    assert load_artifact(Store.at(str(trained / "models/one"))).metrics["val_auc"] > 0.6


def test_rerun_trains_nothing(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in (trained / "models" / "one").iterdir()}
    summary = run_train(trained, model_id="one")
    assert "trained already" in capsys.readouterr().out
    assert "train" not in summary.phases
    # A rerun also reports the rows that were read and left out.
    rows = pq.ParquetFile(trained / "interactions.parquet").metadata.num_rows
    assert summary.rows["interactions read"] == rows
    assert sum(summary.rows["rows left out"].values()) < rows
    assert {p.name: p.read_bytes() for p in (trained / "models" / "one").iterdir()} == before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_train_as_one_and_a_later_job_resumes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers train two epochs; the driver ends; one worker trains the third."""
    # Dropout is on: it does not depend on the worker.
    copy(trained, tmp_path, "features", "interactions.parquet")
    once = replace(QUICK, refit=False)
    run_train(tmp_path, replace(once, epochs=2), workers=2, model_id="two")
    alone, by_two = read_history(trained, "one"), read_history(tmp_path, "two")
    assert len(by_two) == 2
    for one, two in zip(alone, by_two, strict=False):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["val_auc"] == pytest.approx(one["val_auc"], abs=2e-3)
        assert two["triples"] == one["triples"]

    shutil.rmtree(tmp_path / "models" / "two")  # as if it had been interrupted
    capsys.readouterr()
    run_train(tmp_path, once, model_id="two")
    assert "resumed after epoch 2" in capsys.readouterr().out
    resumed = read_history(tmp_path, "two")
    assert resumed[:2] == by_two
    assert resumed[2]["loss"] == pytest.approx(alone[2]["loss"], rel=1e-4)
