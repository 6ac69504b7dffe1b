"""What is packed: by `ray job submit --working-dir .`, and into the wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

from tests.conftest import CHECKOUT
from visrec.isas import compiler, of_machine
from visrec.retrieval.kernel import _SOURCE

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
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    assert packed == {*expected, "pyproject.toml", "my-night.yaml"}


def test_wheel_has_configurations_spaces_sources_and_the_command(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in CODE:
        shutil.copytree(CHECKOUT / name, clone / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy2(CHECKOUT / name, clone / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(clone)], check=True)
    (wheel,) = tmp_path.glob("visrec-*.whl")
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
        (entry_points,) = (name for name in packed if name.endswith("/entry_points.txt"))
        assert "visrec = visrec.commands:main" in file.read(entry_points).decode()
    for source in ("configs", "tune_spaces"):
        files = {f"visrec/{source}/{path.name}" for path in (CHECKOUT / source).glob("*.yaml")}
        assert files
        assert files <= packed
    others = [
        p
        for p in (CHECKOUT / "visrec").rglob("*")
        if p.suffix in {".cpp", ".h", ".html", ".py", ".txt"}
    ]
    assert {str(path.relative_to(CHECKOUT)) for path in others} <= packed
    if compiler():
        libraries = {isa.library_name(_SOURCE) for isa in of_machine()}
        assert {f"visrec/retrieval/{name}" for name in libraries} <= packed
        for source in (CHECKOUT / "visrec").rglob("*.cpp"):
            start = f"{source.parent.relative_to(CHECKOUT)}/{source.stem}-"
            assert [name for name in packed if name.startswith(start) and name.endswith(".so")]
        assert "-abi3-" in wheel.name  # one wheel for all versions of Python
    assert any(name.endswith("/licenses/LICENSE") for name in packed)
    assert not [name for name in packed if name.startswith(("jobs/", "tests/", "configs/"))]
