"""The record of an evaluation: which earlier one the next one is compared with."""

from dataclasses import replace
from pathlib import Path

import pytest

from visrec.errors import InputError
from visrec.evaluation.record import RECORD, EvaluationRecord, find_previous, read_evaluation
from visrec.storage.store import Store

DAY = 86_400


def record(name: str, day: int, made_at: str = "2026-11-21T03:00:00+00:00") -> EvaluationRecord:
    return EvaluationRecord(
        model_id=name,
        digest=f"digest of {name}",
        data_until=day * DAY,
        made_at=made_at,
        users=5,
        items=9,
        means={"auc": 0.8},
        rival="popularity",
        rival_means={"auc": 0.7},
    )


def write(folder: Path, written: EvaluationRecord) -> Store:
    store = Store.at(str(folder))
    store.write_json(RECORD, written.to_dict())
    return store


def test_record_comes_back_with_the_one_before(tmp_path: Path) -> None:
    written = replace(record("b", 2), before=record("a", 1))
    assert read_evaluation(write(tmp_path, written)) == written


def test_evaluation_before_is_the_last_one_of_earlier_data(tmp_path: Path) -> None:
    days = [("a", 1), ("b", 2), ("c", 4)]
    stores = [write(tmp_path / name, record(name, day)) for name, day in days]
    found = find_previous(stores, "digest of tonight", 3 * DAY, print)
    assert found is not None
    assert found.model_id == "b"  # c knows more than tonight's model


def test_of_models_of_the_same_data_the_last_one_counts(tmp_path: Path) -> None:
    times = [("late", "2026-11-22T03:00:00+00:00"), ("early", "2026-11-21T03:00:00+00:00")]
    stores = [write(tmp_path / name, record(name, 1, made)) for name, made in times]
    found = find_previous(stores, "digest of tonight", DAY, print)
    assert found is not None
    assert found.model_id == "late"


def test_evaluation_of_the_same_model_keeps_what_was_before(tmp_path: Path) -> None:
    own = replace(record("b", 2), before=record("a", 1))
    found = find_previous([write(tmp_path, own)], own.digest, own.data_until, print)
    assert found == record("a", 1)


def test_no_chain_of_evaluations_is_stored(tmp_path: Path) -> None:
    stored = replace(record("b", 2), before=record("a", 1))
    found = find_previous([write(tmp_path, stored)], "digest of tonight", 3 * DAY, print)
    assert found == record("b", 2)


def test_damaged_record_is_told_and_counts_as_absent(tmp_path: Path) -> None:
    damaged, said = Store.at(str(tmp_path / "damaged")), list[str]()
    damaged.write(RECORD, b"{")
    stores = [damaged, write(tmp_path / "a", record("a", 1))]
    assert find_previous(stores, "digest of tonight", 3 * DAY, said.append) == record("a", 1)
    assert len(said) == 1
    assert "damaged" in said[0]


def test_first_evaluation_has_none_before(tmp_path: Path) -> None:
    assert find_previous([Store.at(str(tmp_path))], "d", DAY, print) is None


def test_record_of_another_version_is_left_alone_and_a_damaged_one_is_refused(
    tmp_path: Path,
) -> None:
    store = Store.at(str(tmp_path))
    store.write_json(RECORD, {"version": 99})
    assert read_evaluation(store) is None
    store.write_json(RECORD, {"version": 1, "before": None})
    with pytest.raises(InputError, match="is not the record that visrec wrote"):
        read_evaluation(store)
