"""Records of trials: written once, read as written; the best trial, the table and the plot."""

import io
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from visrec.storage.store import Store
from visrec.tuning.records import (
    STATUSES,
    Status,
    TrialRecord,
    best_trial,
    plot_sweep,
    read_records,
    trials_table,
    write_record,
)
from visrec.tuning.spaces import Choice, Range, Space


def record(number: int, *aucs: float, status: Status = "finished", **values: Any) -> TrialRecord:
    history = tuple({"val_auc": auc, "loss": 1.0, "seconds": 0.5} for auc in aucs)
    return TrialRecord(number, values, history, status)


def test_best_trial_has_the_highest_auc_of_any_epoch_and_comes_first_of_equals() -> None:
    records = [record(0, 0.6), record(3, 0.5, 0.8, 0.7), record(2, 0.8), record(1, 0.79)]
    assert best_trial(records) == records[2]


@pytest.mark.parametrize("status", STATUSES)
def test_trial_that_diverged_or_failed_is_never_the_best(status: Status) -> None:
    records = [record(0, 0.6), record(1, 0.9, status=status)]
    best = best_trial(records)
    assert best is not None
    assert best.number == (1 if status in ("finished", "stopped") else 0)


def test_there_is_no_best_trial_without_an_eligible_one() -> None:
    assert best_trial([]) is None
    assert best_trial([record(0), record(1, 0.7, status="diverged")]) is None


def test_records_are_read_as_written_and_a_second_write_changes_nothing(store: Store) -> None:
    records = {
        0: record(0, 0.6, 0.7, rate=1e-3),
        4: record(4, status="failed", rate=0.1),
        7: record(7, 0.1, rate=0.2),
    }
    assert read_records(store, 10) == {}
    for trial in records.values():
        write_record(store, trial)
    write_record(store, record(4, 0.99, rate=0.3))
    assert read_records(store, 10) == records
    assert set(read_records(store, 7)) == {0, 4}


def test_epoch_that_diverged_has_a_nan_again_when_it_is_read(store: Store) -> None:
    write_record(store, record(1, 0.7, math.nan))
    read = read_records(store, 2)[1]
    assert math.isnan(read.history[1]["val_auc"])
    assert read.auc == 0.7


def test_table_has_one_row_per_trial() -> None:
    space: Space = {"rate": Range(0, 1, log=False), "size": Choice((1, 2)), "mix": Choice(({},))}
    records = [
        record(0, 0.5, 0.7, 0.6, rate=0.1, size=1, mix={"b": 1, "a": 2}),
        record(1, status="failed", rate=1, size=2, mix={}),
    ]
    table = trials_table(records, space)
    assert table.schema == pa.schema(
        {
            "trial": pa.int32(),
            "rate": pa.float64(),
            "size": pa.int64(),
            "mix": pa.string(),
            "best_val_auc": pa.float64(),
            "epochs": pa.int32(),
            "status": pa.string(),
            "seconds": pa.float64(),
            "error": pa.string(),
        }
    )
    first, second = table.to_pylist()
    assert list(first.values()) == [0, 0.1, 1, '{"a": 2, "b": 1}', 0.7, 3, "finished", 1.5, None]
    assert math.isnan(second["best_val_auc"])
    assert (second["epochs"], second["status"]) == (0, "failed")


PLANE: Space = {
    "train.learning_rate": Range(1e-4, 1e-2, log=True),
    "train.weight_decay": Range(1e-6, 1e-2, log=True),
}


@pytest.mark.parametrize(
    ("space", "columns", "rows"),
    [
        (PLANE, 1, 1),
        ({**PLANE, "train.precision": Choice(("float32", "bfloat16"))}, 2, 1),
        ({"train.learning_rate": PLANE["train.learning_rate"]}, 1, 1),
        ({"train.seed": Choice((0, 1)), "train.ema_decay": Range(0, 1, log=False)}, 2, 1),
        ({**PLANE, **{f"train.{n}": Choice((0, 1)) for n in range(3)}}, 3, 2),
    ],
)
def test_plot_has_a_panel_for_the_plane_and_one_for_each_other_key(
    space: Space, columns: int, rows: int
) -> None:
    values_of_trials = [
        {"train.learning_rate": 1e-3, "train.weight_decay": 0.0, "train.precision": "float32"},
        {"train.learning_rate": 5e-3, "train.weight_decay": 1e-5, "train.precision": "bfloat16"},
    ]
    others = {"train.seed": 1, "train.ema_decay": 0.5, **{f"train.{n}": n for n in range(3)}}
    records = [
        TrialRecord(n, {**values, **others}, record(n, 0.5 + n / 10).history, "finished")
        for n, values in enumerate(values_of_trials)
    ]
    png = Image.open(io.BytesIO(plot_sweep(records, space)))
    assert png.format == "PNG"
    assert png.size == (round(5.2 * columns * 120), round(4.2 * rows * 120))


def test_record_is_one_file_named_by_the_number(tmp_path: Path) -> None:
    write_record(Store.at(str(tmp_path)), record(12, 0.5))
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")] == [
        "trials/00012.json"
    ]
