"""deploy/Dockerfile, instruction by instruction: nothing here can build it."""

import os
import shutil
import subprocess
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest

from visrec.native import compiled

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def instructions() -> list[tuple[str, str]]:
    """Its instructions in order, as word and rest; continued lines joined, comments left out."""
    text = (CHECKOUT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def every(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in instructions if found == word]


def copied(instructions: list[tuple[str, str]]) -> list[str]:
    """What it copies of the checkout, as named."""
    words = [copy.split() for copy in every(instructions, "COPY")]
    assert not every(instructions, "ADD")
    return [name for copy in words for name in copy[:-1] if not name.startswith("--")]


def left_out(path: PurePosixPath, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves a file out: the last pattern that matches its own path, or that
    of a folder above, decides, and one with `!` in front lets it in.

    A pattern is held against the whole path; `**/` in front of it stands for any folders.
    """
    left = False
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        if any(_matches(part, bare) for part in [path, *path.parents][:-1]):
            left = not pattern.startswith("!")
    return left


def _matches(part: PurePosixPath, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(part.name, pattern.removeprefix("**/"))
    return len(part.parts) == len(PurePosixPath(pattern).parts) and fnmatch(str(part), pattern)


def sent_but_ignored(folder: Path, names: list[str]) -> list[str]:
    """The files that would be copied into an image though git ignores them."""
    lines = (folder / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    files = [
        file.relative_to(folder).as_posix()
        for name in names
        for file in [folder / name, *sorted((folder / name).rglob("*"))]
        if file.is_file()
    ]
    sent = [file for file in files if not left_out(PurePosixPath(file), patterns)]
    assert sent
    # 0: some are ignored; 1: none is. Anything else is no answer.
    asked = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=folder,
        input="\n".join(sent),
        capture_output=True,
        text=True,
    )
    assert asked.returncode in (0, 1), asked.stderr
    return asked.stdout.splitlines()


def test_it_starts_from_this_ray_and_the_python_of_cluster_yaml(
    instructions: list[tuple[str, str]],
) -> None:
    assert every(instructions, "FROM") == [f"rayproject/ray:{version('ray')}-py311${{VARIANT}}"]
    assert every(instructions, "ARG") == ['VARIANT=""']
    cluster = (CHECKOUT / "cluster.yaml").read_text()
    for variant in ("", "-gpu"):
        assert f"rayproject/ray:{version('ray')}-py311{variant}\n" in cluster


def test_it_installs_the_project_in_the_locked_versions(
    instructions: list[tuple[str, str]],
) -> None:
    (install,) = [run for run in every(instructions, "RUN") if "pip install" in run]
    assert "--constraint requirements.lock" in install
    assert f"ray=={version('ray')}" in (CHECKOUT / "requirements.lock").read_text().split()
    # What setuptools needs is there before: the readme is named in pyproject.toml.
    order = [word if word != "RUN" else rest for word, rest in instructions]
    assert order.index(install) > max(i for i, word in enumerate(order) if word == "COPY")
    assert {"pyproject.toml", "requirements.lock", "README.md"} <= set(copied(instructions))


def test_a_job_finds_its_files_where_it_starts(instructions: list[tuple[str, str]]) -> None:
    folders = {"visrec", "jobs", "configs", "tune_spaces"}
    assert folders <= set(copied(instructions))
    assert all((CHECKOUT / name).exists() for name in copied(instructions))
    for copy in every(instructions, "COPY"):
        *_, last, target = copy.split()
        assert target == ("./" if last not in folders else last)
    assert every(instructions, "WORKDIR") == ["/home/ray/visrec"]


def test_there_is_a_compiler_that_native_finds(
    instructions: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (system,) = [run for run in every(instructions, "RUN") if "apt-get install" in run]
    assert "g++" in system.split()
    if shutil.which("g++") is None:
        pytest.skip("no g++ here to try it with")
    # With g++ alone on the path, as there, a source is compiled into the home of whoever runs it.
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("g++", "as", "ld"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    library, reason = compiled(source)
    assert library is not None, reason
    assert library.one() == 1
    assert list((tmp_path / "home" / ".cache" / "visrec").glob("one-*.so"))
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # of a user that the system has no name of
    other = shutil.copy(source, tmp_path / "other.cpp")
    assert compiled(other) == (None, "no home directory to keep it in; set HOME or XDG_CACHE_HOME")


def test_it_ends_as_a_user_that_is_not_root(instructions: list[tuple[str, str]]) -> None:
    users = every(instructions, "USER")
    assert int(users[-1].partition(":")[0]) > 0
    # Root installs from the system's packages and does nothing else.
    user, by_root = "", []
    for word, rest in instructions:
        user = rest if word == "USER" else user
        by_root += [rest] if user == "root" and word == "RUN" else []
    assert len(by_root) == 1
    assert "apt-get" in by_root[0]
    owners = [copy.split()[0] for copy in every(instructions, "COPY")]
    assert set(owners) == {f"--chown={users[-1]}"}


def test_nothing_that_git_ignores_is_copied(instructions: list[tuple[str, str]]) -> None:
    assert sent_but_ignored(CHECKOUT, copied(instructions)) == []


def test_workspace_beside_the_code_stays_out_of_the_build(
    instructions: list[tuple[str, str]],
) -> None:
    lines = (CHECKOUT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert left_out(PurePosixPath("shop/images/a.jpg"), patterns)
    assert not [name for name in copied(instructions) if left_out(PurePosixPath(name), patterns)]


def test_what_git_ignores_would_be_found(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True, env={**os.environ})
    (tmp_path / ".gitignore").write_text("__pycache__/\nruns/\n*.key\n")
    for name in ("lib/a.py", "lib/__pycache__/a.pyc", "lib/deep/__pycache__/b.pyc", "lib/my.key"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text("# nothing\nruns\n")
    assert len(sent_but_ignored(tmp_path, ["lib"])) == 3
    (tmp_path / ".dockerignore").write_text("**/__pycache__\n")
    assert sent_but_ignored(tmp_path, ["lib"]) == ["lib/my.key"]
    (tmp_path / ".dockerignore").write_text("**/__pycache__\nlib/*.key\n")
    assert sent_but_ignored(tmp_path, ["lib"]) == []


def test_no_secret_is_built_in(instructions: list[tuple[str, str]]) -> None:
    names = [
        rest.partition("=")[0] for word in ("ENV", "ARG") for rest in every(instructions, word)
    ]
    assert sorted(names) == ["RAY_USAGE_STATS_ENABLED", "VARIANT"]
