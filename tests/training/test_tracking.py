"""A report beside the training that it judges, in a real MLflow store."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from visrec.models.artifact import TIMES
from visrec.storage.store import Store
from visrec.training.tracking import MlflowTracker, attach_report


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The directory of a model, and a tracking server that keeps its runs in another one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a server or a database
    monkeypatch.chdir(tmp_path)
    return Store.at(str(tmp_path / "models" / "mine"))


def test_report_is_an_artifact_of_the_run_of_the_training(model: Store, tmp_path: Path) -> None:
    tracker = MlflowTracker("mine", None, {"train.epochs": 3})
    tracker.finish()
    model.write_json(TIMES, {"train_s": 1.5, "tracker": "mlflow", "tracker_run": tracker.run_id})
    assert attach_report(model, "report.html", "<html>é</html>") is None
    client = MlflowClient()
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["report.html"]
    path = client.download_artifacts(tracker.run_id, "report.html", str(tmp_path))
    assert Path(path).read_text() == "<html>é</html>"
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("model")
def test_trainings_that_begin_at_the_same_time_share_the_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = MlflowTracker("one", None, {})
    find, asked = MlflowClient.get_experiment_by_name, list[str]()

    def too_early_at_first(client: MlflowClient, name: str) -> object:
        asked.append(name)
        return find(client, name) if len(asked) > 1 else None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early_at_first)
    two = MlflowTracker("two", None, {})
    experiments = {
        MlflowClient().get_run(tracker.run_id).info.experiment_id for tracker in (one, two)
    }
    assert len(experiments) == 1


def test_report_of_a_lost_run_is_refused_with_a_reason(model: Store) -> None:
    model.write_json(TIMES, {"tracker": "mlflow", "tracker_run": "0" * 32})
    assert "MlflowException" in str(attach_report(model, "report.html", "<html></html>"))


@pytest.mark.parametrize("record", [None, {}, {"tracker": "tensorboard", "tracker_run": "/runs"}])
def test_model_without_a_run_of_mlflow_has_its_report_in_the_workspace_alone(
    model: Store, record: dict[str, str] | None
) -> None:
    if record is not None:
        model.write_json(TIMES, record)
    assert attach_report(model, "report.html", "<html></html>") is None
