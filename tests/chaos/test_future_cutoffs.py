"""A cutoff in the future is refused, and a published one does not silence the nights after it."""

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentError

from tests.chaos.harness import amount, measured, write_draft
from tests.publication.runs import PASSED
from visrec.cli.job import JobConfig
from visrec.cli.launch import launch
from visrec.cli.parse import parse
from visrec.errors import InputError
from visrec.pipelines import nightly
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.nightly import NightlyJob
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.pipelines.tune import TuneJob
from visrec.publication.completion import finish_run
from visrec.publication.pointer import LATEST
from visrec.publication.publish import publish_run
from visrec.publication.rollback import roll_back
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store

JOBS = {
    NightlyJob: "as_of",
    TrainJob: "interactions.as_of",
    EvaluateJob: "interactions.as_of",
    RecommendJob: "interactions.as_of",
    TuneJob: "interactions.as_of",
}


def in_days(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).date().isoformat()


def run_nightly(monkeypatch: pytest.MonkeyPatch, workspace: Path, *flags: str) -> Any:
    """The night from its command line to its exit code; a complete night needs no Ray."""
    arguments = ["jobs/nightly.py", "--workspace", str(workspace), *flags]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        launch(nightly.main, NightlyJob, needs_ray="never")
    return end.value.code


@pytest.mark.parametrize("job", JOBS)
def test_cutoff_in_the_future_is_refused(job: type[JobConfig]) -> None:
    key, refused = JOBS[job], 0
    for days in [*range(1, amount(3, 40)), 366, 13_000]:
        with pytest.raises((InputError, ArgumentError)) as caught:
            parse(job, [f"--{key}", in_days(days)])
        assert f"Found --{key} {in_days(days)}, which lies in the future" in str(caught.value)
        refused += 1
    for days in range(amount(3, 40)):
        parse(job, [f"--{key}", in_days(-days)])
    measured(23, future_dates=refused, refused=refused)


def test_time_of_today_that_has_not_come_is_refused() -> None:
    """Whatever the time zone in which it is written."""
    soon = datetime.now(UTC) + timedelta(minutes=2)
    east = soon + timedelta(hours=13)
    for text in (f"{soon:%Y-%m-%dT%H:%M:%S}", f"{east:%Y-%m-%dT%H:%M:%S}+13:00"):
        with pytest.raises((InputError, ArgumentError), match="lies in the future"):
            parse(RecommendJob, [f"--interactions.as_of={text}"])
    past = soon - timedelta(minutes=3) + timedelta(hours=13)
    parse(RecommendJob, [f"--interactions.as_of={past:%Y-%m-%dT%H:%M:%S}+13:00"])


def test_refused_night_ends_with_exit_code_2_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "shop"
    assert run_nightly(monkeypatch, workspace, "--as-of", in_days(1)) == 2
    assert f"Found --as_of {in_days(1)}, which lies in the future" in capsys.readouterr().err
    assert not workspace.exists()


@pytest.mark.parametrize("ahead", [2, 13_000])
def test_publication_of_a_future_cutoff_does_not_silence_nights(
    ahead: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As published by an older version, or by a machine whose clock was wrong."""
    lists, future = Store(str(tmp_path / "recommendations")), in_days(ahead)
    nights = [in_days(-days) for days in range(1 + amount(2, 8), 0, -1)]
    for night in (*nights, future):
        cutoff = int(datetime.fromisoformat(night).replace(tzinfo=UTC).timestamp())
        run = run_store(lists, night)
        draft = write_draft(run, {"part-0.parquet": night.encode()})
        finish_run(run, replace(draft, cutoff_timestamp=cutoff), [PASSED])
    publish_run(lists, nights[0])
    publish_run(lists, future)
    for night in nights[1:]:
        assert run_nightly(monkeypatch, tmp_path, "--as-of", night) == 4
        printed = capsys.readouterr()
        assert (
            f"nightly: The run {night} is complete and is not published: {future} stays published, "
            f"because a later night is published. The cutoff of {future} lies in the future"
        ) in printed.err
        assert "visrec rollback --run_id" in printed.err
        told = json.loads((tmp_path / "summaries" / "nightly.json").read_text())
        assert told["published"] == "no: a later night is published"
        measured(23, nights_after_a_future_date=1, silenced=0)
    # What the message says helps.
    roll_back(lists, nights[0])
    publish_run(lists, nights[1])
    assert run_nightly(monkeypatch, tmp_path, "--as-of", nights[1]) == 0
    assert lists.read_json(LATEST)["run_id"] == nights[1]
