"""The job: its keys, exit codes and summary; and the exports at the end of a night."""

import json
import sys
from pathlib import Path

import pytest

from tests.exports.lists import made_lists, make_run, publish, seen
from visrec.cli.launch import launch
from visrec.cli.summary import Summary
from visrec.errors import VisrecError
from visrec.pipelines import nightly
from visrec.pipelines.export import ExportJob, check, export_or_raise, main
from visrec.pipelines.nightly import NightlyJob
from visrec.publication.pointer import read_pointer
from visrec.storage.store import Store


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the job."""
    monkeypatch.setattr(sys, "argv", ["jobs/export.py", *arguments])
    monkeypatch.setattr("visrec.cli.launch.ignore_signals", lambda: None)  # they are pytest's
    with pytest.raises(SystemExit) as end:
        launch(main, ExportJob, check=check, needs_ray="never")
    assert isinstance(end.value.code, int)
    return end.value.code


def test_job_exports_and_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lists, to = made_lists(10), tmp_path / "out.jsonl"
    publish(Store.at(str(tmp_path / "recommendations")), "r1", lists)
    assert run(monkeypatch, "--workspace", str(tmp_path), "--to", str(to)) == 0
    shown = capsys.readouterr().out
    assert f"to                     {to}\n" in shown
    assert "exported run           r1\n" in shown
    assert "lists written          10\n" in shown
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert {row["user_id"]: row["items"] for row in rows} == seen(lists)
    summary = json.loads((tmp_path / "summaries" / "export.json").read_text())
    assert (summary["exported run"], summary["lists written"]) == ("r1", 10)
    # Similar items are in another folder.
    similar = str(tmp_path / "similar_items")
    publish(Store.at(similar), "s1", made_lists(5), kind="item_to_item")
    flags = ("--to", str(to), "--only-changed", "true", "--recommendations", similar)
    assert run(monkeypatch, "--workspace", str(tmp_path), *flags) == 0
    assert "exported run           s1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "export: Found the target '' (--to, or --export_to of a night); expected postgresql"),
        (("--to", "lists.txt"), "export: Found the target 'lists.txt' (--to, or"),
        (("--to", "lists.csv"), "export: Found no published run in"),
        (("--to", "redis://:s3cr3t/@x"), "export: The URL of the target (--to, or --export_to"),
        (("--too", "redis://:s3cr3t@x"), "export: Found --too; did you mean --to?"),
    ],
)
def test_job_that_cannot_begin_exits_with_2_and_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    assert run(monkeypatch, "--workspace", str(tmp_path), *flags) == 2
    text = capsys.readouterr().err.strip()
    assert text.startswith(message)
    assert "\n" not in text
    assert "s3cr3t" not in text


def test_server_that_does_not_answer_is_exit_code_2_as_nothing_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(Store.at(str(tmp_path / "recommendations")), "r1", made_lists(10))
    flags = ("--workspace", str(tmp_path), "--to", "redis://:s3cr3t@127.0.0.1:1/0", "--debug")
    assert run(monkeypatch, *flags) == 2
    shown = capsys.readouterr()
    assert "Could not export to redis://127.0.0.1:1/0: ConnectionError" in shown.err
    assert "s3cr3t" not in shown.err + shown.out


def test_target_that_fails_stops_no_other_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recommendations, to = Store.at(str(tmp_path / "recommendations")), tmp_path / "out.csv"
    publish(recommendations, "r1", made_lists(10))
    urls, leases = ["redis://127.0.0.1:1/0", str(to)], Store.at(str(tmp_path / "exports"))
    with pytest.raises(VisrecError, match=r"not be exported to redis://127.0.0.1:1/0; the"):
        export_or_raise(urls, recommendations, leases)
    assert "Could not export to redis://127.0.0.1:1/0" in capsys.readouterr().err
    assert to.exists()
    rows = export_or_raise(urls[1:], recommendations, leases)
    assert rows == {f"at {to}": "r1, 10 lists written"}


def test_night_is_published_before_it_exports_and_exports_at_its_next_start(tmp_path: Path) -> None:
    """A night that is complete, so that no step needs Ray."""
    night, recommendations = "2026-11-20", Store.at(str(tmp_path / "recommendations"))
    make_run(recommendations, night, made_lists(10))
    to = [str(tmp_path / "out.csv"), "redis://127.0.0.1:1/0"]
    keys = {"workspace": str(tmp_path), "as_of": night}
    with pytest.raises(VisrecError, match="Start it again; it will only export"):
        nightly.main(NightlyJob(**keys, export_to=to), Summary("nightly"))
    assert read_pointer(recommendations)[0].run_id == night
    assert (tmp_path / "nights" / f"{night}.json").exists()
    assert len(Path(to[0]).read_text().splitlines()) == 1 + 30
    summary = Summary("nightly")
    nightly.main(NightlyJob(**keys, export_to=to[:1]), summary)
    assert summary.rows[f"at {to[0]}"] == f"{night}, 10 lists written"
