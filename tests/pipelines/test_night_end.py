"""The end of a night is told to those who watch it, by the process that worked on it."""

from pathlib import Path

import pytest

from visrec.cli.launch import JobEnd
from visrec.cli.notify import NotifyConfig
from visrec.errors import BusyError, GateError
from visrec.pipelines import night_end
from visrec.pipelines.night_end import METRICS_FILE, tell
from visrec.pipelines.nightly import NightlyJob


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the messages that are sent."""
    sent: list[str] = []

    def notify(_config: NotifyConfig, title: str, _body: str) -> bool:
        sent.append(title)
        return True

    monkeypatch.setattr(night_end, "notify", notify)
    return sent


def test_night_that_a_gate_holds_back_is_told(tmp_path: Path, titles: list[str]) -> None:
    night = NightlyJob(workspace=str(tmp_path), as_of="2026-01-02")
    tell(night, JobEnd("nightly", 3, "held", GateError("held"), 1.0))
    assert titles == ["visrec: the night 2026-01-02 was held back by a gate"]
    assert 'visrec_last_exit_code{job="nightly"} 3' in (tmp_path / METRICS_FILE).read_text()


def test_start_that_finds_another_process_at_work_tells_nothing(
    tmp_path: Path, titles: list[str]
) -> None:
    night = NightlyJob(workspace=str(tmp_path), as_of="2026-01-02", exit_if_running=3)
    tell(night, JobEnd("nightly", 3, "busy", BusyError("busy"), 1.0))
    assert not titles
    assert not (tmp_path / METRICS_FILE).exists()
