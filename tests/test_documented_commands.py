"""Every command in the documentation is one that its own parser takes.

Commands in code blocks are parsed whole; of those in running text, which may be cut short, the name
and the keys are checked. Those of the first path in the README are run: see
integration/test_own_data.py, and integration/test_chain.py for the demo.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.conftest import CHECKOUT
from visrec import commands
from visrec.cli import launch
from visrec.cli.keys import check_flags, config_keys
from visrec.cli.parse import parse
from visrec.commands import COMMANDS
from visrec.errors import InputError
from visrec.models import MODELS

PAGES = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "deploy/README.md")),
    *sorted((CHECKOUT / "docs").glob("*.md")),
]
# First words of other programs' commands in code blocks.
OTHERS = {
    *("git", "ray", "docker", "kubectl", "export", "source", "pip", "sed", "pkill", "sh", "cd"),
    *(".venv/bin/python", "python3.11"),
}
SCRIPTS = {
    path.stem: re.findall(r"commands\.(\w+)\(\)", path.read_text())[0]
    for path in (CHECKOUT / "jobs").glob("[a-z]*.py")
}
FUNCTIONS = {call.__name__: name for name, call in COMMANDS.items()}


def blocks(text: str) -> Iterator[str]:
    """The commands in a page's code blocks without a language, lines joined where they go on."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S):
        if language in ("", "sh", "bash"):
            yield from block.replace("\\\n", " ").splitlines()


def words_of(line: str) -> list[list[str]]:
    """The commands of a line of a shell, as words; comments are dropped."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a line of output, not a command
        return []
    found: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|", ";"):
            found.append([])
        else:
            found[-1].append(word)
    return [each for each in found if each]


def as_command(words: list[str]) -> list[str] | None:
    """The name and the flags of one of our commands; None for another program's."""
    if "--" in words and words[:3] == ["ray", "job", "submit"]:
        return as_command(words[words.index("--") + 1 :])
    if words[:2] == ["visrec", "submit"]:
        return words[2:]
    if words[0] == "visrec":
        return words[1:]
    script = re.fullmatch(r"jobs/(\w+)\.py", words[1]) if len(words) > 1 else None
    if words[0] == "python" and script:
        return [FUNCTIONS[SCRIPTS[script[1]]], *words[2:]]
    return None


def documented() -> Iterator[tuple[str, str]]:
    """Each command in a code block, and in the docstring that is a command's help."""
    for page in PAGES:
        for line in blocks(page.read_text()):
            yield page.name, line
    for path in sorted((CHECKOUT / "visrec/pipelines").glob("*.py")):
        docstring = path.read_text().partition('"""\n')[0]
        for line in docstring.splitlines():
            if line.startswith("visrec "):
                yield path.name, line


def is_complete(words: list[str]) -> bool:
    return not any("..." in word or word.isupper() or word in "…|" for word in words)


LINES = [
    (place, words)
    for place, line in documented()
    for words in words_of(line)
    if line.strip() and not line.startswith((" ", "|", "<"))
]
OURS = sorted({(place, tuple(w)) for place, words in LINES if (w := as_command(words))})


def test_no_command_is_overlooked() -> None:
    known = OTHERS | {"make", "python", "visrec"}
    places = {place for place, words in LINES if as_command(words)}
    assert {"README.md", "operations.md", "train.py", "nightly.py"} <= places
    assert len(OURS) > 50
    firsts = {words[0] for place, words in LINES if place in ("README.md", "operations.md")}
    assert {first for first in firsts if re.fullmatch(r"[a-z.][\w./-]*", first)} <= known | {
        *(word for word in firsts if word in ("model", "curatornet", "popularity", "random")),
        *(word for word in firsts if word in ("visrank-mean", "oracle")),
    }


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations of the commands that are called, which do nothing else."""
    found: list[Any] = []

    def parse_only(main: object, job_type: type[Any], **_: object) -> NoReturn:  # noqa: ARG001
        found.append(parse(job_type, sys.argv[1:]))
        sys.exit(0)

    monkeypatch.setattr(launch, "launch", parse_only)
    monkeypatch.setattr(commands, "exit_on_signals", lambda: None)
    monkeypatch.chdir(CHECKOUT)
    return found


def test_commands_in_code_blocks_are_what_their_parsers_take(
    parsed: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    best = tmp_path / "best.yaml"  # a sweep's
    best.write_text("model: {name: curatornet}\n")
    for place, documented_words in OURS:
        words = [str(best) if "SWEEP" in word else word for word in documented_words]
        if not is_complete(words):
            continue
        monkeypatch.setattr(sys, "argv", ["visrec", *words])
        with pytest.raises(SystemExit) as end:
            commands.main()
        assert end.value.code == 0, f"{place}: visrec {shlex.join(words)}"
    assert len(parsed) > 40


def test_keys_in_running_text_exist() -> None:
    """Of `visrec rollback --run_id`, say, whose value is left out."""
    jobs = {}
    for path in (CHECKOUT / "visrec/pipelines").glob("*.py"):
        module = import_module(f"visrec.pipelines.{path.stem}")
        for name, job in vars(module).items():
            if name.endswith("Job") and getattr(job, "__module__", "") == module.__name__:
                jobs[path.stem] = job
    jobs["recommend"] = jobs["recommend_job"]
    checked = 0
    for page in PAGES:
        for text in re.findall(r"`visrec ([a-z][^`]*)`", page.read_text()):
            name, *words = text.split()
            if name == "submit" and words:
                name, *words = words
            if name == "COMMAND" or "|" in text or "..." in name:
                continue
            assert name in COMMANDS, f"{page.name}: visrec {text}"
            module = re.search(r"pipelines\.(\w+)", _source(name))
            assert module is not None or name == "submit"
            job = jobs.get(module[1]) if module else None
            if job is None:
                continue
            keys = config_keys(job)
            if "model.name" in keys:
                for model in MODELS.values():
                    keys |= config_keys(model.Config, "model.")
            try:
                check_flags([word for word in words if word.startswith("--")], keys)
            except InputError as error:
                raise AssertionError(f"{page.name}: visrec {text}: {error}") from error
            checked += 1
    assert checked > 20


def _source(name: str) -> str:
    """The names that a command's function imports."""
    import inspect

    text = inspect.getsource(COMMANDS[name])
    return "\n".join(line for line in text.splitlines() if "Job" in line) or text
