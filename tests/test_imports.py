"""Data flows one way, and so do imports; the library starts nothing and reads no flags."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

# A module imports from its own stage and from those before it. Scoring and evaluation come before
# training, since training chooses the epoch by the metrics that the models are judged by.
SHARED = (
    *(
        "errors",
        "paths",
        "config",
        "values",
        "ids",
        "ragged",
        "hashes",
        "text",
        "schemas",
        "s3_settings",
        "clients",
        "storage",
        "progress",
        "native",
    ),
    *("fitness", "lease", "claims", "pointer"),
)
STAGES = (
    *("sources", "features", "interactions", "models", "scoring", "evaluation", "training"),
    *("publish", "retention", "gates"),
)
# What runs in any process, with torch and numpy alone.
WITHOUT_RAY = (
    *("visrec.models", "visrec.interactions", "visrec.features.pictures"),
    *("visrec.features.backbones", "visrec.scoring.topk", "visrec.scoring.lists"),
    *("visrec.evaluation.metrics", "visrec.evaluation.ranking", "visrec.evaluation.report"),
    *("visrec.training.loop", "visrec.training.checkpoints", "visrec.publish"),
    *("visrec.scoring.check", "visrec.gates", "visrec.fitness", "visrec.lease"),
    *("visrec.scoring.rules", "visrec.scoring.carry", "visrec.claims"),
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


OWN = {name: imports(tree) & set(ALL) for name, tree in ALL.items()}


def stage(module: str) -> str:
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
        waiting += [*OWN.get(name, ()), *(packages & set(ALL))]
    return seen


def test_every_module_has_its_place() -> None:
    assert {stage(name) for name in LIBRARY if name != "visrec"} == {*SHARED, *STAGES}


def test_no_module_imports_itself_on_a_way_round() -> None:
    order = list(TopologicalSorter(OWN).static_order())  # raises CycleError, naming the cycle
    assert set(order) >= set(ALL)


@pytest.mark.parametrize("name", sorted(set(LIBRARY) - {"visrec"}))
def test_imports_go_back_along_the_flow_of_the_data(name: str) -> None:
    line = (*SHARED, *STAGES)
    place = line.index(stage(name))
    for imported in OWN[name]:
        assert line.index(stage(imported)) <= place, f"{name} imports {imported}"


def test_shared_modules_know_no_stage() -> None:
    for name in SHARED:
        assert {stage(imported) for imported in OWN[f"visrec.{name}"]} <= set(SHARED)


def test_imports_between_stages_are_seen_at_all() -> None:
    # Else the rule above would hold of nothing.
    used = {(stage(a), stage(b)) for a in LIBRARY for b in OWN[a] if a != "visrec"}
    assert ("training", "evaluation") in used
    assert ("evaluation", "scoring") in used
    assert ("scoring", "models") in used


@pytest.mark.parametrize("place", WITHOUT_RAY)
def test_what_does_not_need_ray_does_not_import_it(place: str) -> None:
    here = [name for name in LIBRARY if name == place or name.startswith(f"{place}.")]
    assert here
    for name in here:
        for module in reached(name):
            with_ray = {i for i in imports(ALL[module]) if i.split(".")[0] == "ray"}
            assert not with_ray, f"{name} reaches {module}, which imports ray"


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_the_library_starts_nothing_and_reads_no_flags(name: str) -> None:
    assert not {i for i in imports(LIBRARY[name]) if i.split(".")[0] in ("jobs", "tests")}
    assert not imports(LIBRARY[name]) & {"argparse", "jsonargparse"}
    for node in ast.walk(LIBRARY[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("ray", "init"), ("sys", "argv")}
        if isinstance(node, ast.ImportFrom):
            names = {(node.module, alias.name) for alias in node.names}
            assert not names & {("ray", "init"), ("sys", "argv")}


def test_importing_runs_nothing(tmp_path: Path) -> None:
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
