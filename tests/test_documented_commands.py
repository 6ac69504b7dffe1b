"""Every command in the documentation is one that its own parser takes.

Commands in code blocks are parsed whole; of those in running text, which may be cut short, the name
and the keys are checked. Those that need neither Ray nor another machine are run here, as they
stand. Those of the first path in the README are run one after another: see
integration/test_own_data.py, and integration/test_chain.py for the demo.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.conftest import CHECKOUT
from tests.exports.lists import made_lists, publish
from visrec import commands
from visrec.cli import launch
from visrec.cli.keys import check_flags, config_keys
from visrec.cli.parse import parse
from visrec.commands import COMMANDS
from visrec.errors import InputError
from visrec.models import MODELS
from visrec.storage.store import Store

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
    table = {"model", "hybrid", "visrank-mean", "popularity", "oracle"}
    assert {first for first in firsts if re.fullmatch(r"[a-z.][\w./-]*", first)} <= known | table


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


# Commands that start no Ray and, on this disk, end within a second.
CHEAP = {"init", "check", "import", "rollback", "export"}
CHEAP_LINES = sorted(
    {
        words
        for _, words in OURS
        if words[0] in CHEAP and is_complete(list(words)) and not any("://" in w for w in words)
    }
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the commands of the documentation find in the folder in which they run."""
    lines = ["user_id,item_id,timestamp,customer_email,sku"]
    for number, item in enumerate("abcdef"):
        lines += [f"{user},{item},{1_700_000_000 + number},{user},{item}" for user in ("ann", "bo")]
    for path in (tmp_path / "photos", tmp_path / "shop/images"):
        path.mkdir(parents=True)
        for item in "abcdef":
            (path / f"{item}.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "shop/interactions.csv").write_text("\n".join(lines))
    (tmp_path / "orders.csv").write_text(
        "customer_email,sku,ordered_at\nann,a,2026-11-01\nbo,b,2026-11-02\n"
    )
    (tmp_path / "orders_export.csv").write_text(
        "Name,Email,Created at,Lineitem sku,Lineitem name\n"
        "#1,ann@shop.org,2026-11-01 10:00:00 +0100,a,A\n"
    )
    ratings = "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n"
    movies = "movieId,title,genres\n31,Dangerous Minds (1995),Drama\n"
    (tmp_path / "ml-latest-small").mkdir()
    (tmp_path / "ml-latest-small/ratings.csv").write_text(ratings)
    (tmp_path / "ml-latest-small/movies.csv").write_text(movies)
    for day in ("2026-11-20", "2026-11-21"):
        publish(Store.at(f"{tmp_path}/shop/recommendations"), day, made_lists(5))
    similar = Store.at(f"{tmp_path}/shop/similar_items")
    publish(similar, "2026-11-21", made_lists(5), kind="item_to_item")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", CHEAP_LINES, ids=shlex.join)
def test_commands_without_ray_are_run_as_they_stand(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    if words[0] == "import" or "photos" in words:  # which make the workspace
        shutil.rmtree(folder / "shop")
    monkeypatch.setattr(commands, "exit_on_signals", lambda: None)
    monkeypatch.setattr(launch, "ignore_signals", lambda: None)  # they are pytest's
    monkeypatch.setattr(sys, "argv", ["visrec", *words])
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert end.value.code == 0


def test_every_cheap_command_of_the_documentation_is_run() -> None:
    assert {words[0] for words in CHEAP_LINES} == CHEAP
    assert ("init", "shop", "--interactions.path", "orders.csv", "--images", "photos") in (
        CHEAP_LINES
    )


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
