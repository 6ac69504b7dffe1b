"""The files that `ray job submit --working-dir .` packs: the code, and no workspace beside it."""

import shutil
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

from tests.conftest import CHECKOUT

CODE = ("visrec", "jobs", "configs", "tune_spaces")


def test_package_contains_only_code_and_configuration(tmp_path: Path) -> None:
    clone, package = tmp_path / "clone", tmp_path / "package.zip"
    for name in CODE:
        shutil.copytree(CHECKOUT / name, clone / name)
    for name in ("pyproject.toml", ".rayignore", ".gitignore", "README.md"):
        shutil.copy2(CHECKOUT / name, clone / name)
    for name in ("shop/images/a.jpg", "runs/demo/x", ".venv/lib/y", "tests/z.py", "my/visrec/w"):
        (clone / name).parent.mkdir(parents=True)
        (clone / name).write_bytes(bytes(1 << 20))
    (clone / "my-night.yaml").write_text("keep: 7\n")
    create_package(str(clone), package, include_gitignore=True)
    with zipfile.ZipFile(package) as file:
        packed = {name for name in file.namelist() if not name.endswith("/")}
    expected = {
        str(path.relative_to(clone))
        for name in CODE
        for path in (clone / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == {*expected, "pyproject.toml", "my-night.yaml"}
