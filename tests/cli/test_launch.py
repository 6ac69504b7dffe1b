"""Exit codes, and the visrec error below those of Ray."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
import ray

from visrec import commands
from visrec.cli import cluster
from visrec.cli.help_pages import with_help_page
from visrec.cli.job import JobConfig
from visrec.cli.launch import JobEnd, launch, visrec_cause
from visrec.cli.summary import Summary
from visrec.errors import InputError, VisrecError
from visrec.pipelines import train
from visrec.pipelines.rollback import RollbackJob
from visrec.pipelines.train import TrainJob


@pytest.mark.ray
def test_visrec_cause_is_found_below_errors_of_ray(ray_cluster: None) -> None:  # noqa: ARG001
    @ray.remote
    def inner() -> None:
        raise InputError("the one that counts")

    @ray.remote
    def outer() -> None:
        ray.get(inner.remote())

    for task in (inner, outer):
        with pytest.raises(InputError) as caught:
            ray.get(task.remote())
        cause = visrec_cause(caught.value)
        assert type(cause) is InputError
        assert str(cause) == "the one that counts"


def test_garbage_is_collected_again_once_a_job_runs(tmp_path: Path) -> None:
    seen: list[bool] = []

    @with_help_page
    def command() -> NoReturn:
        seen.append(gc.isenabled())
        launch(lambda *_: seen.append(gc.isenabled()), RollbackJob, needs_ray="never")

    with (
        mock.patch.object(sys, "argv", ["visrec rollback", "--workspace", str(tmp_path)]),
        pytest.raises(SystemExit) as end,
    ):
        command()
    assert end.value.code == 0
    assert seen == [False, True]


@pytest.mark.parametrize(
    "arguments", [["shop"], ["shop", "--run_id", "r1"], ["--workspace", "shop"]]
)
def test_first_argument_is_the_workspace_if_it_is_no_flag(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["visrec rollback", *arguments])
    seen: list[RollbackJob] = []
    with pytest.raises(SystemExit) as end:
        launch(lambda config, _: seen.append(config), RollbackJob, needs_ray="never")
    assert end.value.code == 0
    assert [config.workspace for config in seen] == ["shop"]


def test_job_without_a_cluster_exits_with_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "on_ray", lambda: False)  # the tests' own is not this job's
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--workspace", "/nowhere"])
    with pytest.raises(SystemExit) as end:
        launch(train.main, TrainJob)
    assert end.value.code == 2
    text = capsys.readouterr().err.strip()
    assert text.startswith("train: Found no Ray cluster to join")
    assert "--local" in text
    assert "\n" not in text


def test_visrec_cause_of_a_foreign_error_is_none() -> None:
    assert visrec_cause(ValueError("not ours")) is None
    error = ValueError("not ours")
    error.__context__ = error  # such loops exist, and must end
    assert visrec_cause(error) is None
    assert isinstance(visrec_cause(VisrecError("ours")), VisrecError)


@pytest.mark.parametrize("in_a_task", [True, False])
def test_lost_process_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_a_task: bool
) -> None:
    lost = ray.exceptions.WorkerCrashedError()

    def main(_config: RollbackJob, _summary: Summary) -> None:
        raise ray.exceptions.RayTaskError("task", "remote stack", lost) if in_a_task else lost

    with (
        mock.patch.object(sys, "argv", ["visrec rollback", "--workspace", str(tmp_path)]),
        pytest.raises(SystemExit) as end,
    ):
        launch(main, RollbackJob, needs_ray="never")
    assert end.value.code == 1
    text = capsys.readouterr().err
    assert "unexpected error" not in text
    assert "was lost" in text
    assert "(WorkerCrashedError)" in text


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_missing_workspace_is_told_first_if_the_input_would_be_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_there: bool, is_elsewhere: bool
) -> None:
    workspace, runs = tmp_path / "shp", tmp_path / "elsewhere"
    if is_there:
        workspace.mkdir()
    flags = ["--recommendations", str(runs)] if is_elsewhere else []
    with (
        mock.patch.object(sys, "argv", ["visrec rollback", "--workspace", str(workspace), *flags]),
        pytest.raises(SystemExit) as end,
    ):
        commands.rollback()
    assert end.value.code == 2
    told = f"rollback: There is no folder {workspace} (--workspace). Found no publication at all"
    assert (told in capsys.readouterr().err) == (not is_there and not is_elsewhere)
    assert workspace.exists() == is_there


@pytest.mark.parametrize(("only_reads", "exit_code"), [(True, 0), (False, 1)])
def test_summary_is_shown_if_it_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], only_reads: bool, exit_code: int
) -> None:
    (tmp_path / "summaries").touch()  # where a directory would have to be

    def main(_config: RollbackJob, summary: Summary) -> None:
        summary.has_written = not only_reads
        summary.rows = {"what": "done"}

    with (
        mock.patch.object(sys, "argv", ["visrec rollback", "--workspace", str(tmp_path)]),
        pytest.raises(SystemExit) as end,
    ):
        launch(main, RollbackJob, needs_ray="never", only_reads=only_reads)
    assert end.value.code == exit_code
    shown = capsys.readouterr()
    assert "what                   done" in shown.out
    assert f"Could not write {tmp_path}/summaries/" in shown.out + shown.err


@pytest.mark.parametrize(
    "error", [OSError("of mailto://u:s3cr3t@x"), VisrecError("cannot be written")]
)
def test_job_whose_end_cannot_be_reported_keeps_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def after(_config: JobConfig, _end: JobEnd) -> None:
        raise error

    with (
        mock.patch.object(sys, "argv", ["visrec rollback", "--workspace", str(tmp_path)]),
        pytest.raises(SystemExit) as end,
    ):
        launch(lambda *_: None, RollbackJob, after=after, needs_ray="never")
    assert end.value.code == 0
    text = capsys.readouterr().err
    assert "its end could not be reported" in text
    assert "s3cr3t" not in text


@pytest.mark.parametrize("command", [commands.check, commands.explain])
def test_commands_that_only_read_say_so(
    command: Callable[[], NoReturn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(*_: object, only_reads: bool = False, **__: object) -> NoReturn:
        raise SystemExit(only_reads)

    monkeypatch.setattr("visrec.cli.launch.launch", launched)
    monkeypatch.setattr(sys, "argv", ["visrec"])
    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code is True
