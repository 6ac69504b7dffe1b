"""Examples run, and the dashboard shows metrics that exist.

Airflow and Dagster are not among the tests' packages: their examples run against stubs of the
few names that they use, and against the real packages where these are installed.
"""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import CHECKOUT
from visrec.cli.parse import parse
from visrec.pipelines.nightly import NightlyJob
from visrec.publication import prometheus

DATE = "2026-11-22"
MOMENT = datetime(2026, 11, 22, 1, 15, tzinfo=UTC)


def test_notebook_runs_from_its_first_to_its_last_cell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In this process, as a kernel would: one cell after another."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((CHECKOUT / "examples" / "quickstart.ipynb").read_text())
    names: dict[str, object] = {}
    values = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        *statements, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(statements, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            values.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
        else:
            exec(compile(ast.Module([last], []), "cell", "exec"), names)
    assert (tmp_path / "runs/quickstart/evaluation/report.html").exists()
    published = values[-1]
    assert list(published.columns) == ["user_id", "rank", "item_id", "score", "because_item_id"]
    assert not published.empty


def test_dashboard_shows_metrics_that_a_night_writes() -> None:
    dashboard = json.loads((CHECKOUT / "docs" / "grafana.json").read_text())
    shown = set()
    for panel in dashboard["panels"]:
        (target,) = panel["targets"]
        shown |= set(re.findall(r"visrec_\w+", target["expr"]))
    assert shown
    assert shown <= set(prometheus._HELP)


SUBMITTED = ["visrec", "submit", "nightly", "--config", "configs/nightly.yaml", "--as_of", DATE]


class Stop(Exception):
    """What a scheduler does not retry."""


class Failure(Exception):
    def __init__(self, message: str, allow_retries: bool) -> None:
        super().__init__(message)
        self.allow_retries = allow_retries


def same(*_: object, **__: object) -> Any:
    """A decorator that changes nothing, with arguments."""
    return lambda function: function


def run_example(
    monkeypatch: pytest.MonkeyPatch, name: str, modules: dict[str, Any], code: int
) -> tuple[dict[str, Any], list[list[str]]]:
    """The names of an example, and the commands that it ran so far; each ends with `code`."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    for module, names in modules.items():
        monkeypatch.setitem(sys.modules, module, names)
    return runpy.run_path(str(CHECKOUT / "examples" / name)), commands


def airflow(**dag_run: datetime | None) -> dict[str, Any]:
    """Stubs of Airflow, in which a task that is called runs as a part of this DAG run."""

    def task(**_: object) -> Any:
        return lambda function: lambda: function(SimpleNamespace(**dag_run))

    return {
        "airflow": SimpleNamespace(),
        "airflow.exceptions": SimpleNamespace(AirflowFailException=Stop),
        "airflow.sdk": SimpleNamespace(dag=same, task=task),
    }


@pytest.mark.parametrize(
    ("code", "error"), [(0, None), (1, RuntimeError), (2, Stop), (3, Stop), (4, Stop)]
)
def test_airflow_retries_failures_alone(
    monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception] | None
) -> None:
    modules = airflow(logical_date=MOMENT, run_after=MOMENT)
    with pytest.raises(error) if error else nullcontext():
        _, commands = run_example(monkeypatch, "airflow_dag.py", modules, code)
        assert commands == [SUBMITTED]


@pytest.mark.parametrize(
    ("logical_date", "run_after"),
    [
        (None, MOMENT),  # somebody pressed the button, and chose no date
        (MOMENT, MOMENT + timedelta(days=9)),  # and chose an earlier one
        (MOMENT.astimezone(timezone(timedelta(hours=-8))), MOMENT),
    ],
)
def test_airflow_gives_a_night_its_date(
    monkeypatch: pytest.MonkeyPatch, logical_date: datetime | None, run_after: datetime
) -> None:
    modules = airflow(logical_date=logical_date, run_after=run_after)
    _, commands = run_example(monkeypatch, "airflow_dag.py", modules, 0)
    assert commands == [SUBMITTED]


@pytest.mark.parametrize(("code", "retries"), [(0, None), (1, True), (2, False), (4, False)])
def test_dagster_retries_failures_alone(
    monkeypatch: pytest.MonkeyPatch, code: int, retries: bool | None
) -> None:
    dagster = SimpleNamespace(
        Config=SimpleNamespace, op=same, job=lambda function: function, schedule=same,
        RetryPolicy=same, Failure=Failure, Definitions=same,
        ScheduleEvaluationContext=object, RunRequest=object,
    )  # fmt: skip
    names, commands = run_example(monkeypatch, "dagster_job.py", {"dagster": dagster}, code)
    config = SimpleNamespace(as_of=DATE)
    if retries is None:
        names["night"](config)
        assert commands == [SUBMITTED]
    else:
        with pytest.raises(Failure, match=f"ended with {code}") as failed:
            names["night"](config)
        assert failed.value.allow_retries is retries


@pytest.mark.parametrize(
    ("name", "package"), [("airflow_dag.py", "airflow"), ("dagster_job.py", "dagster")]
)
def test_example_is_understood_by_the_scheduler_itself(name: str, package: str) -> None:
    pytest.importorskip(package)
    runpy.run_path(str(CHECKOUT / "examples" / name))


@pytest.mark.parametrize(
    ("codes", "starts", "code"),
    [("0", 1, 0), ("1 0", 2, 0), ("1 1 1", 3, 1), ("2", 1, 2), ("1 3", 2, 3), ("4", 1, 4)],
)
def test_cron_starts_a_night_again_after_failures_alone(
    tmp_path: Path, codes: str, starts: int, code: int
) -> None:
    (tmp_path / "codes").write_text("\n".join([*codes.split(), ""]))
    (tmp_path / "visrec").write_text(
        '#!/bin/sh\necho "$*" >> calls\ncode=$(head -n 1 codes)\nsed -i 1d codes\nexit "$code"\n'
    )
    (tmp_path / "visrec").chmod(0o755)
    done = subprocess.run(
        [CHECKOUT / "examples" / "nightly.sh", "--workspace", "shop", "--local"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "RETRY_S": "0"},
        check=False,
    )
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == starts
    assert len(set(calls)) == 1
    assert re.fullmatch(
        r"nightly --as_of \d{4}-\d\d-\d\d --quiet --workspace shop --local", calls[0]
    )


def test_crontab_names_the_script_and_flags_of_a_night() -> None:
    text = (CHECKOUT / "examples" / "nightly.crontab").read_text()
    *_, line = text.strip().splitlines()
    minute, hour, *rest, command = line.split(maxsplit=5)
    assert 0 <= int(minute) < 60
    assert 0 <= int(hour) < 24
    # An hour of UTC for the one cron that knows CRON_TZ, and advice for the others.
    assert "\nCRON_TZ=UTC\n" in text
    assert re.search(r"# Only cronie .* reads CRON_TZ\. The cron of Debian and Ubuntu", text)
    assert rest == ["*", "*", "*"]
    script, *flags = command.partition("&& ")[2].split()
    assert (CHECKOUT / "examples" / script).exists()
    assert parse(NightlyJob, flags).local
