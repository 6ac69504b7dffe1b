"""Experiment trackers: rank 0 logs each epoch to MLflow, TensorBoard or Weights & Biases.

The run's id is kept in the checkpoint, so a training that was killed goes on in the same run. An
epoch is logged before its checkpoint is written: a kill between the two repeats the epoch, which
logs the same loss and AUC at the same step, and no step is ever missing.

Servers and credentials are configured by each tracker's own environment variables, such as
MLFLOW_TRACKING_URI. Weights & Biases was not run here: it needs an account.
"""

import importlib.util
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from visrec.errors import InputError
from visrec.models.artifact import TIMES
from visrec.storage.store import Store

TrackerName = Literal["mlflow", "tensorboard", "wandb"]


class Tracker(ABC):
    """One run of a tracker.

    Attributes:
        run_id: by which the run is found again.
    """

    run_id: str

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values at a step; the same step may be logged again."""

    @abstractmethod
    def finish(self) -> None:
        """Ends the run; it can be opened again by its id."""


class MlflowTracker(Tracker):
    """A run of MLflow: https://mlflow.org/docs/latest/python_api/mlflow.client.html"""

    def __init__(self, name: str, run_id: str | None, parameters: Mapping[str, object]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        if run_id is None:
            run = self._client.create_run(self._experiment_id(), run_name=name)
            run_id = str(run.info.run_id)
            for key, value in parameters.items():
                self._client.log_param(run_id, key, value)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        def existing() -> str | None:
            experiment = self._client.get_experiment_by_name("visrec")
            return experiment and str(experiment.experiment_id)

        if found := existing():
            return found
        try:
            return str(self._client.create_experiment("visrec"))
        except MlflowException:
            if found := existing():  # created by another training that began at the same time
                return found
            raise

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self.run_id, name, value, step=step)

    def finish(self) -> None:
        self._client.set_terminated(self.run_id)


class TensorBoardTracker(Tracker):
    """Event files in TENSORBOARD_LOGDIR, or in runs/tensorboard, one folder a run."""

    def __init__(self, name: str, run_id: str | None, parameters: Mapping[str, object]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = os.path.join(os.environ.get("TENSORBOARD_LOGDIR", "runs/tensorboard"), name)
        self.run_id = run_id or os.path.abspath(folder)
        self._writer: Any = SummaryWriter(self.run_id)
        if run_id is None:
            text = "\n".join(f"    {key}: {value}" for key, value in parameters.items())
            self._writer.add_text("parameters", text)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class WandbTracker(Tracker):
    """A run of Weights & Biases: https://docs.wandb.ai/models/runs/resuming"""

    def __init__(self, name: str, run_id: str | None, parameters: Mapping[str, object]) -> None:
        import wandb

        self._run: Any = wandb.init(
            project="visrec", name=name, id=run_id, resume="allow", config=dict(parameters)
        )
        self.run_id = str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


def require_tracker(name: TrackerName | None) -> None:
    """Refuses a tracker that is not installed, before any training.

    Raises:
        InputError: its package is missing.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise InputError(
            f"--track {name} needs the package {name}, which is not installed: "
            f"pip install 'visrec[{name}]'",
            key="track",
        )


@dataclass(frozen=True)
class TrackerAccess:
    """A tracker, and how a worker on another machine reaches it.

    Attributes:
        name: the name of the tracker.
        environment: the variables by which the driver reaches it.
    """

    name: TrackerName
    environment: Mapping[str, str] = field(repr=False)  # there may be passwords in it

    @classmethod
    def from_environment(cls, name: TrackerName) -> "TrackerAccess":
        """A tracker as this process reaches it."""
        prefix = f"{name.upper()}_"
        return cls(name, {k: v for k, v in os.environ.items() if k.startswith(prefix)})


def open_tracker(
    access: TrackerAccess, run_name: str, run_id: str | None, parameters: Mapping[str, object]
) -> Tracker:
    """Opens a new run, or the run of a resumed training.

    Args:
        access: the tracker.
        run_name: the name that the tracker shows.
        run_id: the id of the run that goes on; None for a new one.
        parameters: the parameters of a new run: settings by dotted key.
    """
    os.environ.update(access.environment)
    if access.name == "mlflow":
        return MlflowTracker(run_name, run_id, parameters)
    if access.name == "tensorboard":
        return TensorBoardTracker(run_name, run_id, parameters)
    return WandbTracker(run_name, run_id, parameters)


def attach_report(store: Store, name: str, html: str) -> str | None:
    """Adds a model's report to the run of its training, if MLflow has that run.

    Args:
        store: the directory of the model.
        name: the name of the artifact.
        html: the report.

    Returns:
        Why MLflow did not take it; None if it did, or the model was not tracked there.
    """
    record = store.read_json(TIMES) if store.exists(TIMES) else {}
    if record.get("tracker") != "mlflow":
        return None
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient().log_text(record["tracker_run"], html, name)
    except (MlflowException, OSError) as error:  # the report is in the workspace in any case
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def epoch_values(history: Mapping[str, float], *, is_refit: bool) -> dict[str, float]:
    """What is logged of an epoch, without values that a tracker cannot draw."""
    prefix = "refit/" if is_refit else ""
    values = {
        "loss": history["loss"],
        "val_auc": history["val_auc"],
        "learning_rate": history["learning_rate"],
        "triples_per_s": history["triples"] / history["seconds"],
    }
    return {f"{prefix}{name}": value for name, value in values.items() if math.isfinite(value)}


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Settings by dotted key."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
