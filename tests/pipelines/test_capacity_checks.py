"""Checks of capacity: room for processes, memory and disk, on clusters that exist on paper."""

import dataclasses
import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.capacity import WorkloadSize
from visrec.cli.job import JobConfig
from visrec.features.extract import ExtractResources
from visrec.features.table import FEATURES_MANIFEST, Identity, Manifest
from visrec.pipelines.capacity_checks import (
    ProcessRequest,
    check_memory,
    check_room,
    check_workspace_disk,
    estimate_workload,
)
from visrec.pipelines.doctor import RunResources, requests
from visrec.pipelines.night_jobs import load_job
from visrec.pipelines.recommend_job import RecommendJob
from visrec.recommend.score import ScoreResources
from visrec.storage.preflight import Finding
from visrec.storage.store import Store
from visrec.training.task import TrainResources

DEFAULTS = RunResources(ExtractResources(), TrainResources(), ScoreResources())
GPU_BOX = {"CPU": 8.0, "GPU": 1.0, "memory": 32e9, "object_store_memory": 10e9}
CPU_BOX = {"CPU": 8.0, "memory": 16e9, "object_store_memory": 5e9}


def train_request(workers: int, cpus: float, gpus: float = 0) -> ProcessRequest:
    return ProcessRequest("train", workers, {"CPU": cpus, "GPU": gpus})


def room(request: ProcessRequest, *nodes: Mapping[str, float], may_grow: bool = False) -> Finding:
    return check_room(request, nodes, may_grow=may_grow)


def memory_findings(
    workload: WorkloadSize | None, nodes: list[Mapping[str, float]], **scoring: Any
) -> dict[str, Finding]:
    findings = check_memory(workload, nodes, ScoreResources(**scoring))
    return {finding.name: finding for finding in findings}


def test_each_gpu_worker_needs_a_gpu() -> None:
    request = train_request(2, 4.0, gpus=1.0)
    finding = room(request, GPU_BOX, CPU_BOX)
    assert finding.name == "room to train"
    assert finding.passed is False
    assert finding.found == "16 CPU and 1 GPU in all, room for 1 of 2"
    assert "2 x 4 CPU and 1 GPU at once" in finding.expected
    assert room(request, GPU_BOX, GPU_BOX).passed


def test_worker_is_not_split_between_nodes() -> None:
    finding = room(train_request(2, 6.0), {"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 6.0})
    assert finding.found.endswith("room for 1 of 2")


def test_extraction_needs_cpus_besides_its_workers() -> None:
    extract = requests(DEFAULTS)[0]
    assert extract.job == "extract"
    assert room(extract, {"CPU": 1.0}).passed is False
    assert room(extract, {"CPU": 2.0}).passed


def test_job_that_chooses_its_number_of_workers_needs_one() -> None:
    assert [request.workers for request in requests(DEFAULTS)] == [1, 1, 1]
    large = TrainResources(workers=3, cpus_per_worker=4, use_gpu=True)
    assert requests(dataclasses.replace(DEFAULTS, train=large))[1] == ProcessRequest(
        "train", 3, {"CPU": 4.0, "GPU": 1.0}
    )


def test_cluster_that_may_grow_does_not_fail() -> None:
    finding = room(train_request(99, 2.0), CPU_BOX, may_grow=True)
    assert finding.passed is None
    assert "until it grows" in finding.found


def test_memory_is_compared_with_the_right_node() -> None:
    """Shared memory with the smallest node, the one large task with the largest."""
    workload = WorkloadSize(
        users=1_000_000, items=100_000, interactions=20_000_000, feature_dim=1280
    )
    nodes = [GPU_BOX, {**CPU_BOX, "object_store_memory": 0.3e9}, {"object_store_memory": 1.0}]
    findings = memory_findings(workload, nodes)
    # 0.1 GB of interactions and 0.26 GB of features.
    assert findings["object store"].passed is False
    assert findings["object store"].found == "0.3 GB"
    assert findings["object store"].expected.startswith("0.7 GB on the smallest node")
    assert findings["memory to prepare"].passed
    assert findings["memory to recommend"].passed


@pytest.mark.parametrize(("cpus", "passes"), [(1, False), (2, True)])
def test_fewer_scoring_processes_need_less_memory(cpus: int, passes: bool) -> None:
    workload = WorkloadSize(
        users=1_000_000, items=100_000, interactions=20_000_000, feature_dim=1280
    )
    # 6 GB are enough for 8 processes of 0.6 GB, and not for 16.
    nodes = [{"CPU": 16.0, "memory": 6e9, "object_store_memory": 1e9}]
    findings = memory_findings(workload, nodes, cpus_per_worker=cpus)
    assert findings["memory to recommend"].passed is passes


def test_memory_of_an_unknown_workload_is_unknown() -> None:
    findings = memory_findings(None, [CPU_BOX])
    assert findings["memory"].passed is None
    assert "--users" in findings["memory"].expected


def test_workload_is_unknown_in_an_empty_workspace(tmp_path: Path) -> None:
    assert estimate_workload(RecommendJob(workspace=str(tmp_path)), 0, 0, 0) is None


def test_workload_is_as_given(tmp_path: Path) -> None:
    assert estimate_workload(RecommendJob(workspace=str(tmp_path)), 10, 7, 0) == WorkloadSize(
        users=10, items=7, interactions=200, feature_dim=1280
    )


def test_workload_is_estimated_from_the_workspace(tmp_path: Path) -> None:
    workspace, job = Store.at(str(tmp_path)), RecommendJob(workspace=str(tmp_path))
    identity = Identity(
        backbone="b", weights_digest="w", preprocessing={}, precision="float32", dim=64
    )
    manifest = Manifest(
        identity=identity, files={"a": 30, "b": 12}, rejected={}, settings={}, digest=""
    )
    (workspace / "features").write_json(FEATURES_MANIFEST, manifest.to_dict())
    (tmp_path / "interactions.parquet").mkdir()
    for part in range(20):  # more files than are opened
        pq.write_table(
            pa.table({"x": range(50)}), tmp_path / f"interactions.parquet/{part}.parquet"
        )
    assert estimate_workload(job, 0, 0, 0) == WorkloadSize(
        users=50, items=42, interactions=1000, feature_dim=64
    )
    (tmp_path / "interactions.parquet/0.parquet").write_bytes(b"no Parquet")
    assert estimate_workload(job, 0, 0, 0) is None


@pytest.mark.parametrize("name", ["orders.csv", "orders.csv.gz"])
def test_workload_is_estimated_from_text_elsewhere(tmp_path: Path, name: str) -> None:
    """As `visrec.yaml` names it."""
    text = b"user_id,item_id,timestamp\n" + b"u1,i1,1600000000\n" * 100_000
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/visrec.yaml").write_text(f"interactions: {{path: {path}}}")
    job = load_job(RecommendJob, None, JobConfig(workspace=str(tmp_path / "shop")))
    found = estimate_workload(job, 0, 7, 0)
    assert found is not None
    assert found.interactions == pytest.approx(100_000, rel=0.01)


def test_disk_of_a_workspace_that_does_not_exist_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    workspace = Store(str(tmp_path / "a" / "b"))
    assert check_workspace_disk(workspace, None).passed
    huge = WorkloadSize(users=10**12, items=1, interactions=1, feature_dim=1)
    assert check_workspace_disk(workspace, huge).passed is False
