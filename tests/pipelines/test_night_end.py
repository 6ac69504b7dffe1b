"""The end of a night is reported to those who watch it, by the process that worked on it."""

import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from visrec.cli.launch import JobEnd, launch
from visrec.cli.notify import NotifyConfig
from visrec.pipelines import night_end, nightly
from visrec.pipelines.night_end import METRICS_FILE, report_end
from visrec.pipelines.nightly import NightlyJob
from visrec.storage.lease import Lease
from visrec.storage.store import Store


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the messages that are sent."""
    sent: list[str] = []

    def notify(_config: NotifyConfig, title: str, _body: str) -> bool:
        sent.append(title)
        return True

    monkeypatch.setattr(night_end, "notify", notify)
    return sent


def test_night_that_a_gate_holds_back_is_reported(tmp_path: Path, titles: list[str]) -> None:
    night = NightlyJob(workspace=str(tmp_path), as_of="2026-01-02")
    report_end(night, JobEnd("nightly", 3, "held", is_busy=False, seconds=1.0))
    assert titles == ["visrec: the night 2026-01-02 was held back by a gate"]
    assert 'visrec_last_exit_code{job="nightly"} 3' in (tmp_path / METRICS_FILE).read_text()


def test_night_that_ends_after_midnight_is_that_of_its_start(
    tmp_path: Path, titles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [datetime(2026, 1, 2, 23, 59, tzinfo=UTC)]

    class Clock(datetime):
        @classmethod
        def now(cls, _zone: object = None) -> datetime:  # type: ignore[override]
            return moment[0]

    monkeypatch.setattr(nightly, "datetime", Clock)
    night = NightlyJob(workspace=str(tmp_path))
    moment[0] += timedelta(hours=1)
    assert nightly.load_jobs(night).recommend.run_id == "2026-01-02"
    assert replace(night, keep=3).night_date() == date(2026, 1, 2)
    report_end(night, JobEnd("nightly", 1, "why", is_busy=False, seconds=1.0))
    assert titles == ["visrec: the night 2026-01-02 failed"]


@pytest.mark.parametrize("exit_code", [0, 3])
def test_start_that_finds_another_process_at_work_changes_no_record(
    tmp_path: Path, titles: list[str], monkeypatch: pytest.MonkeyPatch, exit_code: int
) -> None:
    records = [tmp_path / "summaries" / "nightly.json", tmp_path / METRICS_FILE]
    for record in records:
        record.parent.mkdir(exist_ok=True)
        record.write_text("of the other process")
    flags = f"--workspace {tmp_path} --local --as_of 2026-01-02 --exit_if_running {exit_code}"
    monkeypatch.setattr(sys, "argv", ["visrec nightly", *flags.split()])
    with Lease(Store(str(tmp_path / "nights")), "2026-01-02.lease") as other:
        assert other.held
        with pytest.raises(SystemExit) as end:
            launch(nightly.main, NightlyJob, after=report_end, needs_ray="never")
    assert end.value.code == exit_code
    assert not titles
    assert [record.read_text() for record in records] == ["of the other process"] * 2
