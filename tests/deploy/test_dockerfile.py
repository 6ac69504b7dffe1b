"""deploy/Dockerfile, instruction by instruction, because nothing here can build it."""

import os
import shutil
import subprocess
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest

from visrec.native import compile_and_load

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def instructions() -> list[tuple[str, str]]:
    """Its instructions in order, as keyword and arguments, without comments."""
    text = (CHECKOUT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def every(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in instructions if found == word]


def copied(instructions: list[tuple[str, str]]) -> list[str]:
    """The names of the files and folders that are copied from the checkout."""
    words = [copy.split() for copy in every(instructions, "COPY")]
    assert not every(instructions, "ADD")
    return [name for copy in words for name in copy[:-1] if not name.startswith("--")]


def is_ignored(path: PurePosixPath, patterns: list[str]) -> bool:
    """Whether .dockerignore excludes a file.

    The last pattern decides that matches its path or that of a folder above; one with `!` in front
    includes it. A pattern must match the whole path; `**/` in front stands for any folders.
    """
    ignored = False
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        if any(_matches(part, bare) for part in [path, *path.parents][:-1]):
            ignored = not pattern.startswith("!")
    return ignored


def _matches(part: PurePosixPath, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(part.name, pattern.removeprefix("**/"))
    return len(part.parts) == len(PurePosixPath(pattern).parts) and fnmatch(str(part), pattern)


def sent_but_ignored(folder: Path, names: list[str]) -> list[str]:
    """The files that would be copied into an image although git ignores them."""
    lines = (folder / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    files = [
        file.relative_to(folder).as_posix()
        for name in names
        for file in [folder / name, *sorted((folder / name).rglob("*"))]
        if file.is_file()
    ]
    sent = [file for file in files if not is_ignored(PurePosixPath(file), patterns)]
    assert sent
    # 0: some files are ignored; 1: none is. Any other exit code is an error.
    asked = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=folder,
        input="\n".join(sent),
        capture_output=True,
        text=True,
    )
    assert asked.returncode in (0, 1), asked.stderr
    return asked.stdout.splitlines()


def test_image_starts_from_the_installed_ray_and_the_python_of_cluster_yaml(
    instructions: list[tuple[str, str]],
) -> None:
    assert every(instructions, "FROM") == [f"rayproject/ray:{version('ray')}-py311${{VARIANT}}"]
    assert every(instructions, "ARG") == ['VARIANT=""']
    cluster = (CHECKOUT / "cluster.yaml").read_text()
    for variant in ("", "-gpu"):
        assert f"rayproject/ray:{version('ray')}-py311{variant}\n" in cluster


def test_image_installs_the_project_with_the_locked_versions(
    instructions: list[tuple[str, str]],
) -> None:
    (install,) = [run for run in every(instructions, "RUN") if "pip install" in run]
    assert "--constraint requirements.lock" in install
    assert f"ray=={version('ray')}" in (CHECKOUT / "requirements.lock").read_text().split()
    # The files that setuptools needs are copied first; pyproject.toml names the readme.
    order = [word if word != "RUN" else rest for word, rest in instructions]
    assert order.index(install) > max(i for i, word in enumerate(order) if word == "COPY")
    assert {"pyproject.toml", "requirements.lock", "README.md"} <= set(copied(instructions))


def test_job_finds_its_files_in_the_working_directory(instructions: list[tuple[str, str]]) -> None:
    folders = {"visrec", "jobs", "configs", "tune_spaces"}
    assert folders <= set(copied(instructions))
    assert all((CHECKOUT / name).exists() for name in copied(instructions))
    for copy in every(instructions, "COPY"):
        *_, last, target = copy.split()
        assert target == ("./" if last not in folders else last)
    assert every(instructions, "WORKDIR") == ["/home/ray/visrec"]


def test_image_has_a_compiler_that_native_finds(
    instructions: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (system,) = [run for run in every(instructions, "RUN") if "apt-get install" in run]
    assert "g++" in system.split()
    if shutil.which("g++") is None:
        pytest.skip("no g++ here to try it with")
    # With only g++ on the path, as in the image, a source is compiled into the user's home.
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("g++", "as", "ld"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    library, reason = compile_and_load(source)
    assert library is not None, reason
    assert library.one() == 1
    assert list((tmp_path / "home" / ".cache" / "visrec").glob("one-*.so"))
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(
        "pwd.getpwuid", {}.__getitem__
    )  # as for a user without a name in the system
    other = shutil.copy(source, tmp_path / "other.cpp")
    assert compile_and_load(other) == (
        None,
        "no home directory to cache it in; set HOME or XDG_CACHE_HOME",
    )


def test_image_runs_as_a_user_other_than_root(instructions: list[tuple[str, str]]) -> None:
    users = every(instructions, "USER")
    assert int(users[-1].partition(":")[0]) > 0
    # Root only installs system packages.
    user, by_root = "", []
    for word, rest in instructions:
        user = rest if word == "USER" else user
        by_root += [rest] if user == "root" and word == "RUN" else []
    assert len(by_root) == 1
    assert "apt-get" in by_root[0]
    owners = [copy.split()[0] for copy in every(instructions, "COPY")]
    assert set(owners) == {f"--chown={users[-1]}"}


def test_no_file_that_git_ignores_is_copied(instructions: list[tuple[str, str]]) -> None:
    assert sent_but_ignored(CHECKOUT, copied(instructions)) == []


def test_workspace_besides_the_code_is_not_in_the_build_context(
    instructions: list[tuple[str, str]],
) -> None:
    lines = (CHECKOUT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert is_ignored(PurePosixPath("shop/images/a.jpg"), patterns)
    assert not [name for name in copied(instructions) if is_ignored(PurePosixPath(name), patterns)]


def test_file_that_git_ignores_would_be_found(tmp_path: Path) -> None:
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


def test_image_contains_no_secret(instructions: list[tuple[str, str]]) -> None:
    names = [
        rest.partition("=")[0] for word in ("ENV", "ARG") for rest in every(instructions, word)
    ]
    assert sorted(names) == ["RAY_USAGE_STATS_ENABLED", "VARIANT"]
