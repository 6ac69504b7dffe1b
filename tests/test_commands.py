"""The `visrec` command: which commands there are, and that scripts and commands are the same."""

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from visrec import __version__, commands
from visrec.commands import COMMANDS, main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `visrec` with these arguments."""
    monkeypatch.setattr(commands, "exit_on_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["visrec", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_help_names_every_command_on_one_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--help"], ["help"]):
        assert run(monkeypatch, *arguments) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {name} " in text for name in COMMANDS)
        assert len(text.splitlines()) <= 30
        assert max(map(len, text.splitlines())) <= 100


def test_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"visrec {__version__}\n"


def test_unknown_command_gets_a_suggestion_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "trian") == 2
    assert "'trian', which is not a command; did you mean train?" in capsys.readouterr().err
    assert run(monkeypatch, "xyz") == 2
    assert "expected one of demo, " in capsys.readouterr().err


def test_command_takes_the_keys_of_its_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "--train.epoch", "3") == 2
    assert "train: Found --train.epoch; did you mean --train.epochs?" in capsys.readouterr().err


def test_submit_without_a_command_or_a_dashboard_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "submit") == 2
    assert "Found no command to submit" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert run(monkeypatch, "submit", "nightly") == 2
    assert "expected the address of a cluster's dashboard" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script", sorted((CHECKOUT / "jobs").glob("[!_]*.py")), ids=lambda p: p.stem
)
def test_script_calls_a_command(script: Path) -> None:
    (name,) = re.findall(r"commands\.(\w+)\(\)", script.read_text())
    assert getattr(commands, name) in COMMANDS.values()


@pytest.mark.parametrize("help_flag", ["--help", "-h"])
def test_help_of_an_importer_says_what_it_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], help_flag: str
) -> None:
    for name, words in (("retail", "Shopify"), ("movielens", "ratings.csv")):
        assert run(monkeypatch, "import", name, help_flag) == 0
        text = capsys.readouterr().out
        assert words in text
        assert f"usage: visrec import {name} PATH" in text


def test_import_without_a_path_or_with_another_format_says_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["retail"], ["retail", "--workspace", "shop"]):
        assert run(monkeypatch, "import", *arguments) == 2
        error = capsys.readouterr().err
        assert "Found no path; expected the file or the folder to import, as in" in error
    assert run(monkeypatch, "import", "retial", "orders.csv") == 2
    assert "Found --format retial; expected movielens" in capsys.readouterr().err
    assert run(monkeypatch, "import") == 2
    assert "format" in capsys.readouterr().err
