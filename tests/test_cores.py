"""The cores that this process may use, in control groups that are made of files."""

import os
from pathlib import Path

import pytest

from visrec.cli import resources
from visrec.cli.job import JobConfig
from visrec.cores import usable_cores
from visrec.recommend.score import ScoreResources


def groups(root: Path, group: str, quotas: dict[str, str]) -> str:
    """A directory as the root of a system whose control groups have these quotas."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    for name, quota in quotas.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(f"{quota}\n")
    return str(root)


@pytest.mark.parametrize(
    ("group", "quotas", "expected"),
    [
        ("/", {}, 8),
        ("/", {".": "max 100000"}, 8),
        ("/", {".": "200000 100000"}, 2),
        ("/", {".": "150000 100000"}, 2),
        ("/", {".": "10000 100000"}, 1),
        ("/", {".": "1600000 100000"}, 8),
        ("/pod/box", {"pod": "300000 100000", "pod/box": "max 100000"}, 3),
        ("/pod/box", {"pod": "max 100000", "pod/box": "400000 100000"}, 4),
        ("/../other", {"pod": "100000 100000"}, 8),
    ],
)
def test_cores_are_those_of_affinity_and_quotas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, quotas: dict[str, str],
    expected: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores(groups(tmp_path, group, quotas)) == expected


def test_system_without_control_groups_has_the_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert usable_cores(str(tmp_path)) == 2


def test_job_on_a_large_host_starts_as_many_workers_as_it_has_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(resources, "cluster_total", lambda _: 64)
    config = JobConfig(local=True)
    assert resources.count_workers(config, ScoreResources(cpus_per_worker=1), 64) == 3


def test_no_module_counts_the_cores_of_the_host() -> None:
    package = Path(resources.__file__).parents[1]
    assert not [path for path in package.rglob("*.py") if "os.cpu_count" in path.read_text()]
