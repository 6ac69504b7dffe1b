"""The charts of the report, drawn from what a training and a sweep have stored."""

import math
from pathlib import Path

import pytest

from tests.training import provenance
from tests.training.test_task import EPOCH
from visrec.config import plain
from visrec.evaluation.charts import plot_curve
from visrec.evaluation.workspace_facts import _read_curve
from visrec.storage.store import Store
from visrec.training.fit import training_metrics
from visrec.training.loop import Progress


def trained(store: Store, aucs: list[float], best_epoch: int, loss: float = 0.5) -> Store:
    """The record of a training with these validation AUCs; the last epoch has this loss."""
    history = [{**EPOCH, "val_auc": auc} for auc in aucs]
    history[-1]["loss"] = loss
    progress = Progress(history=history, best_epoch=best_epoch, best_auc=aucs[best_epoch - 1])
    store.write_json("config.json", {"provenance": provenance().to_dict()})
    store.write_json("metrics.json", plain(training_metrics(progress)))
    return store


def test_training_without_validation_is_drawn_by_its_loss(tmp_path: Path) -> None:
    curve = _read_curve("m", trained(Store.at(str(tmp_path)), [math.nan] * 3, best_epoch=3))
    drawn = plot_curve(curve)
    assert drawn is not None
    assert drawn.sentence == "Trained for 3 epochs."
    assert [chart.caption for chart in drawn.plots] == ["Training loss by epoch"]


@pytest.mark.parametrize("loss", [0.5, math.nan, math.inf])
def test_training_that_diverged_is_drawn_up_to_then(tmp_path: Path, loss: float) -> None:
    curve = _read_curve(
        "m", trained(Store.at(str(tmp_path)), [0.7, 0.8, math.nan], best_epoch=2, loss=loss)
    )
    drawn = plot_curve(curve)
    assert drawn is not None
    assert "epoch 2 was the best, with a validation AUC of 0.8000" in drawn.sentence
    auc, losses = drawn.plots
    assert (len(auc.points), len(losses.points)) == (2, 3 if math.isfinite(loss) else 2)
