"""What a job tells: text, JSON lines, or only what matters."""

import ast
import json
import sys
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.conftest import CHECKOUT
from visrec.cli import output
from visrec.cli.job import JobConfig
from visrec.cli.launch import launch
from visrec.cli.output import choose_output, say
from visrec.cli.progress_line import StepProgress
from visrec.cli.summary import VERSION, Summary
from visrec.errors import GateError


@pytest.fixture(autouse=True)
def text_again() -> Iterator[None]:
    yield
    choose_output("", quiet=False, log_json=False)


def job(config: JobConfig, summary: Summary) -> None:
    say("half way", done=1, kinds={"b", "a"}, share=float("nan"))
    say("look out", "warning")
    summary.rows = {"rows": 3}
    if config.debug:
        raise GateError("held back")
    summary.not_published = "another run stays" if config.local else None


def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workspace: object,
    *flags: str,
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["visrec job", "--workspace", str(workspace), *flags])
    with pytest.raises(SystemExit) as end:
        launch(job, JobConfig, needs_ray=False)
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out, captured.err


def test_text_is_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    code, out, err = run(monkeypatch, capsys, tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("half way\nlook out\n")
    assert "rows                   3" in out


def test_quiet_job_tells_warnings_and_errors_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    assert run(monkeypatch, capsys, tmp_path, "--quiet") == (0, "look out\n", "")
    code, out, err = run(monkeypatch, capsys, tmp_path, "--quiet", "--local")
    assert (code, out) == (4, "look out\n")
    assert err.endswith(": another run stays\n")


@pytest.mark.parametrize(
    ("flags", "code", "events"),
    [
        ((), 0, [None, None, "summary", "end"]),
        (("--quiet",), 0, [None, "end"]),
        (("--local",), 4, [None, None, "summary", "end"]),
        (("--no-such-key",), 2, ["end"]),
    ],
)
def test_json_lines_are_objects_and_the_last_one_has_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: object,
    flags: tuple[str, ...],
    code: int,
    events: list[str | None],
) -> None:
    found, out, err = run(monkeypatch, capsys, tmp_path, "--log-json", *flags)
    lines = [json.loads(line) for line in out.splitlines()]
    assert (found, err) == (code, "")
    assert [line.get("event") for line in lines] == events
    assert lines[-1]["exit_code"] == code
    assert lines[-1]["level"] == ("error" if code else "info")
    for line in lines:
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
        assert line["job"]
    if events[0] is None and "--quiet" not in flags:
        assert lines[0] == {
            "time": lines[0]["time"], "level": "info", "job": lines[0]["job"],
            "text": "half way", "done": 1, "kinds": ["a", "b"], "share": None,
        }  # fmt: skip
        assert lines[2]["summary"]["rows"] == 3
        assert lines[2]["summary"]["version"] == VERSION


def test_progress_has_its_numbers_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_output("export", quiet=False, log_json=True)
    monkeypatch.setattr("visrec.cli.progress_line._LINE_S", 0.0)
    progress = StepProgress("export", "lists")
    progress.report(10, 30)
    progress.report(20, 30)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["event"], first["seconds_left"]) == ("progress", None)
    assert (second["done"], second["total"], second["unit"]) == (20, 30, "lists")
    assert second["seconds_left"] >= 0


def test_terminal_line_is_for_people_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert output.is_terminal()
    for quiet, log_json in ((True, False), (False, True)):
        choose_output("train", quiet=quiet, log_json=log_json)
        assert not output.is_terminal()


def test_message_of_a_file_of_config_is_json_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    path = f"{tmp_path}/job.yaml"
    with open(path, "w") as file:
        file.write("log_json: true\ndebug: true\n")
    code, out, _ = run(monkeypatch, capsys, tmp_path, "--config", path)
    last = json.loads(out.splitlines()[-1])
    assert (code, last["text"], last["exit_code"]) == (3, "held back", 3)


def test_no_job_prints_past_the_output() -> None:
    """A plain line among JSON lines cannot be parsed, and --quiet does not hide it."""
    may_print = {"cli/output.py", "cli/progress_line.py", "cli/help_pages.py", "commands.py"}
    may_print.add("pipelines/submit.py")  # shows the output of a job, as it comes
    package = CHECKOUT / "visrec"
    for path in package.rglob("*.py"):
        names = {
            node.id for node in ast.walk(ast.parse(path.read_text())) if type(node) is ast.Name
        }
        assert "print" not in names or str(path.relative_to(package)) in may_print, path
