"""Data flows one way, and so do imports; the library starts nothing and reads no flags."""

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

# A module imports from its own folder and from those before it, which is the order of the story.
LEAVES = (
    *("errors", "paths", "config", "ids", "jagged", "hashes", "text", "progress", "isas"),
    *("scratch", "native", "tasks", "cores", "threads", "capacity", "yaml_text"),
)
FOLDERS = (
    *(
        "storage",
        "sources",
        "importers",
        "features",
        "interactions",
        "models",
        "retrieval",
        "sampling",
    ),
    *("training", "tuning", "publication", "exports", "recommend", "evaluation", "demo", "cli"),
    *("pipelines", "commands", "__main__", "workspace"),
)
# What runs in any process, with torch and numpy alone.
WITHOUT_RAY = (
    *("visrec.models", "visrec.interactions", "visrec.sampling", "visrec.features.decode"),
    *("visrec.features.backbones", "visrec.retrieval.topk", "visrec.publication.list_tables"),
    *("visrec.retrieval.metrics", "visrec.retrieval.ranks", "visrec.evaluation.report"),
    *("visrec.training.loop", "visrec.training.checkpoints", "visrec.publication.publish"),
    *("visrec.publication.verify", "visrec.publication.gate_context", "visrec.publication.claims"),
    *("visrec.storage.preflight", "visrec.storage.lease", "visrec.retrieval.rules"),
    *("visrec.recommend.incremental", "visrec.exports"),
)


def modules(package: str) -> dict[str, ast.Module]:
    """Every module of a package, by its dotted name."""
    found = {}
    for path in sorted((CHECKOUT / package).rglob("*.py")):
        name = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(), str(path))
    return found


LIBRARY, JOBS = modules("visrec"), modules("jobs")
ALL = {**LIBRARY, **JOBS}


def imports(tree: ast.Module) -> set[str]:
    """What a module imports anywhere in it: modules, not the names in them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(ALL)
            found |= submodules or {str(node.module)}
    return found


# The package itself imports nothing.
OWN = {name: imports(tree) & (set(ALL) - {"visrec"}) for name, tree in ALL.items()}


def folder(module: str) -> str:
    """The folder of `visrec` that a module is in, or its own name where it is in none."""
    return module.split(".")[1]


def reached(module: str) -> set[str]:
    """All that importing a module imports, itself and the packages it is in included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        packages = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
        # `visrec` itself imports only when `Workspace` is asked for.
        waiting += [*OWN.get(name, ()), *(packages & set(ALL) - {"visrec"})]
    return seen


def test_every_module_has_a_place_in_the_order() -> None:
    assert {folder(name) for name in LIBRARY if name != "visrec"} == {*LEAVES, *FOLDERS}


def test_tree_of_the_docs_has_every_module_and_no_other() -> None:
    named, here = set(), Path()
    for line in (CHECKOUT / "docs/tree.md").read_text().splitlines():
        if line.startswith("  "):
            found = re.match(r"  ((?:[\w/.]+(?:, )?)+)", line)
            named |= {here / name for name in found[1].split(", ")} if found else set()
        elif line:
            here = Path(line.split()[0])
            named.add(here)
    written = [p.relative_to(CHECKOUT) for p in (CHECKOUT / "visrec").rglob("*.py")]
    # A folder within a folder is named as a whole.
    wanted = {p.parent if len(p.parts) > 3 else p for p in written if p.name != "__init__.py"}
    assert wanted - named == set()
    sources = {p for p in named if p.suffix in (".py", ".cpp")}
    assert {p for p in sources if not (CHECKOUT / p).exists()} == set()


def test_function_that_the_docs_name_is_in_its_file() -> None:
    text = (CHECKOUT / "docs/architecture.md").read_text()
    found = re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, | and )?)+)", text)
    assert len(found) > 50
    for path, names in found:
        source = (CHECKOUT / "visrec" / path).read_text()
        for name in re.findall(r"\w+", names.replace(" and ", " ")):
            assert re.search(rf"\b(def|class) {name}\b|\b{name}\(", source), f"{path}: {name}"


def test_imports_have_no_cycle() -> None:
    order = list(TopologicalSorter(OWN).static_order())  # raises CycleError, naming the cycle
    assert set(order) >= set(ALL)


@pytest.mark.parametrize("name", sorted(set(LIBRARY) - {"visrec"}))
def test_module_imports_only_from_its_folder_and_earlier_ones(name: str) -> None:
    order = (*LEAVES, *FOLDERS)
    for imported in OWN[name]:
        assert order.index(folder(imported)) <= order.index(folder(name)), f"{imported} in {name}"


def test_leaf_imports_no_folder() -> None:
    for name in LEAVES:
        assert {folder(imported) for imported in OWN[f"visrec.{name}"]} <= set(LEAVES)


def test_imports_between_folders_are_seen_at_all() -> None:
    # Otherwise the rules above would hold of nothing.
    used = {(folder(a), folder(b)) for a in LIBRARY for b in OWN[a] if a != "visrec"}
    assert {("retrieval", "models"), ("training", "retrieval"), ("cli", "models")} <= used


def test_job_is_a_short_script_that_imports_no_job() -> None:
    for name in set(JOBS) - {"jobs"}:
        assert not {imported for imported in OWN[name] if imported.startswith("jobs")}
        assert len((CHECKOUT / f"{name.replace('.', '/')}.py").read_text().splitlines()) <= 40


@pytest.mark.parametrize("place", WITHOUT_RAY)
def test_module_that_needs_no_ray_imports_none(place: str) -> None:
    here = [name for name in LIBRARY if name == place or name.startswith(f"{place}.")]
    assert here
    for name in here:
        # `visrec.tasks` imports Ray only in a process that has started it.
        for module in reached(name) - {"visrec.tasks"}:
            with_ray = {i for i in imports(ALL[module]) if i.split(".")[0] == "ray"}
            assert not with_ray, f"{name} reaches {module}, which imports ray"


@pytest.mark.parametrize(
    "name", sorted(n for n in LIBRARY if folder(f"{n}.") not in ("cli", "commands", "__main__"))
)
def test_only_the_command_line_starts_ray_and_reads_flags(name: str) -> None:
    assert not {i for i in imports(LIBRARY[name]) if i.split(".")[0] in ("jobs", "tests")}
    assert not imports(LIBRARY[name]) & {"argparse", "jsonargparse"}
    for node in ast.walk(LIBRARY[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("ray", "init"), ("sys", "argv")}
        if isinstance(node, ast.ImportFrom):
            names = {(node.module, alias.name) for alias in node.names}
            assert not names & {("ray", "init"), ("sys", "argv")}


def test_import_runs_nothing(tmp_path: Path) -> None:
    code = (
        "import importlib, sys, threading\n"
        "import ray\n"
        "before = threading.active_count()\n"
        f"for name in {sorted(ALL)!r}: importlib.import_module(name)\n"
        "assert not ray.is_initialized()\n"
        "assert threading.active_count() == before\n"
    )
    paths = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, "--workspace", "must-not-be-read"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_torch_wait_without_a_loop_unless_the_user_wants_it(
    given: str | None, expected: str
) -> None:
    code = "import os, sys, visrec; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {"PYTHONPATH": str(CHECKOUT), **({} if given is None else {"OMP_WAIT_POLICY": given})}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", expected]
