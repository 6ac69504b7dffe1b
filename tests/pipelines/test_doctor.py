"""What the doctor finds of a cluster and of a size, and that it says so instead of waiting."""

import json
import platform
import runpy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tests.conftest import CHECKOUT
from tests.servers import SeaweedFS
from tests.storage.test_store import everything_below, refusal
from visrec.capacity import WorkloadSize
from visrec.cli import launch
from visrec.cli.parse import parse
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.features.table import MANIFEST, Identity, Manifest
from visrec.pipelines import doctor
from visrec.pipelines.doctor import DoctorJob, Node, ToTrain, examine_cluster, schedulable, size_of
from visrec.recommend.score import ScoreResources
from visrec.storage import s3_clients as clients
from visrec.storage.preflight import Finding, scratch_store
from visrec.storage.store import Store
from visrec.training.ray_train import TrainResources

SMALL = TrainResources(workers=2, cpus_per_worker=1)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def examined(config: DoctorJob) -> dict[str, Finding]:
    return by_name(examine_cluster(config, Store.at(config.workspace), None))


# On the Ray of the other tests: one node of 4 CPUs.


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("ray_cluster")
def test_healthy_cluster_and_store_pass_every_check(s3_env: str) -> None:
    summary = Summary("doctor")
    config = DoctorJob(workspace=f"{s3_env}/shop", users=1000, items=500, train=SMALL)
    doctor.main(config, summary)
    verdict = str(summary.rows.pop("verdict"))
    assert verdict.startswith(f"pass: {len(summary.rows)} findings, none failed")
    assert all(line.startswith("pass ") for line in summary.rows.values()), summary.rows
    assert "1 of 1 nodes read it" in summary.rows["workspace from nodes"]
    assert all(len(name) <= 22 for name in summary.rows)
    assert not everything_below(Store.at(s3_env))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_too_large_a_config_is_named_and_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = TrainResources(workers=3, cpus_per_worker=2)
    config = DoctorJob(workspace=str(tmp_path), users=10**9, items=500, train=train)
    message = refusal(lambda: doctor.main(config, Summary("doctor")), InputError)
    assert "room to train: found 4 CPU in all, room for 2 of 3" in message
    assert "expected 3 x 2 CPU at once" in message
    for word in ("--train.workers", "--train.cpus_per_worker", "--may_grow", "memory to prepare"):
        assert word in message
    shown = capsys.readouterr().out
    assert "FAIL 4 CPU in all, room for 2 of 3" in shown
    assert "room for 1 x 1 CPU" in shown
    # The summary is there for whoever reads it, and nothing else.
    assert everything_below(Store.at(str(tmp_path))) == {"doctor.json"}
    written = json.loads((tmp_path / "summaries" / "doctor.json").read_text())
    assert written["verdict"].startswith("FAIL: room to train")


def test_trials_are_removed_when_the_job_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        assert everything_below(Store.at(str(tmp_path)))
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine_cluster", stop)
    with pytest.raises(KeyboardInterrupt):
        doctor.main(DoctorJob(workspace=str(tmp_path)), Summary("doctor"))
    assert not list(tmp_path.iterdir())


def test_advice_for_several_findings_is_given_once(tmp_path: Path) -> None:
    workspace = Store.at(str(tmp_path))
    findings = [
        *(Finding(name, "x", "y", False, "Do this.") for name in ("one", "two")),
        Finding("three", "x", "z", False, "Do that."),
        Finding("four", "x", "x", True),
    ]
    message = refusal(lambda: doctor._conclude(findings, workspace, Summary("doctor")), InputError)
    assert message == (
        "The checks failed. one: found x, expected y; two: found x, expected y. Do this. "
        "three: found x, expected z. Do that."
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_disk_that_nodes_do_not_share_is_named(tmp_path: Path) -> None:
    workspace = Store.at(str(tmp_path))
    nowhere = scratch_store(workspace)  # as a node sees a disk that it does not have
    findings = by_name(examine_cluster(DoctorJob(workspace=str(tmp_path)), workspace, nowhere))
    assert findings["workspace from nodes"].passed is False
    assert "FileNotFoundError" in findings["workspace from nodes"].found
    assert "every node shares" in findings["workspace from nodes"].advice


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_node_that_does_not_answer_is_named(tmp_path: Path) -> None:
    findings = examined(DoctorJob(workspace=str(tmp_path), answer_within_s=1e-6))
    address = ray.nodes()[0]["NodeManagerAddress"]
    assert findings["nodes"].passed is False
    assert findings["nodes"].found == f"0 of 1 answer, not {address}"


# What jobs ask for, on clusters of paper.

GPU_BOX = {"CPU": 8.0, "GPU": 1.0, "memory": 32e9, "object_store_memory": 10e9}
CPU_BOX = {"CPU": 8.0, "memory": 16e9, "object_store_memory": 5e9}


def on_paper(nodes: list[Mapping[str, float]], **keys: Any) -> dict[str, Finding]:
    return by_name(schedulable(DoctorJob(**keys), nodes))


def test_gpus_count_where_they_are_asked_for() -> None:
    train = TrainResources(workers=2, cpus_per_worker=4, use_gpu=True)
    short = on_paper([GPU_BOX, CPU_BOX], train=train)["room to train"]
    assert short.passed is False
    assert short.found == "16 CPU and 1 GPU in all, room for 1 of 2"
    assert "2 x 4 CPU and 1 GPU at once" in short.expected
    assert on_paper([GPU_BOX, GPU_BOX], train=train)["room to train"].passed


def test_a_worker_is_not_split_between_nodes() -> None:
    train = TrainResources(workers=2, cpus_per_worker=6)
    assert on_paper([{"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 6.0}], train=train)[
        "room to train"
    ].found.endswith("room for 1 of 2")


def test_extraction_needs_cpus_beside_its_network() -> None:
    assert on_paper([{"CPU": 2.0}])["room to extract"].passed is False
    assert on_paper([{"CPU": 3.0}])["room to extract"].passed


def test_cluster_that_may_grow_does_not_fail() -> None:
    findings = on_paper([CPU_BOX], train=TrainResources(workers=99), may_grow=True)
    assert findings["room to train"].passed is None
    assert "until it grows" in findings["room to train"].found


def test_memory_is_held_against_each_node() -> None:
    """Shared memory against the smallest node, the one large task against the largest."""
    size = WorkloadSize(users=1_000_000, items=100_000, interactions=20_000_000, feature_dim=1280)
    nodes = [GPU_BOX, {**CPU_BOX, "object_store_memory": 0.3e9}, {"object_store_memory": 1.0}]
    findings = by_name(list(doctor._memory(DoctorJob(), size, nodes)))
    assert findings["object store"].passed is False  # 0.1 GB of interactions, 0.26 GB of features
    assert findings["object store"].found == "0.3 GB"
    assert findings["object store"].expected.startswith("0.4 GB on the smallest node")
    assert findings["memory to prepare"].passed
    assert findings["memory to recommend"].passed
    # 6 GB hold 8 processes of 0.6 GB, and not 16.
    tight = [{"CPU": 16.0, "memory": 6e9, "object_store_memory": 1e9}]
    for cpus, passed in ((1, False), (2, True)):
        config = DoctorJob(recommend=ScoreResources(cpus_per_worker=cpus))
        assert by_name(list(doctor._memory(config, size, tight)))["memory to recommend"].passed is passed


def test_size_is_given_or_read_or_unknown(tmp_path: Path) -> None:
    config = DoctorJob(workspace=str(tmp_path))
    assert size_of(config) is None
    (finding,) = doctor._memory(config, None, [CPU_BOX])
    assert finding.passed is None
    assert "--users" in finding.expected
    given = DoctorJob(workspace=str(tmp_path), users=10, items=7)
    assert size_of(given) == WorkloadSize(users=10, items=7, interactions=200, feature_dim=1280)
    identity = Identity(
        backbone="b", weights_digest="w", preprocessing={}, precision="float32", dim=64
    )
    manifest = Manifest(
        identity=identity, files={"a": 30, "b": 12}, rejected={}, settings={}, digest=""
    )
    Store.at(str(tmp_path / "features")).write_json(MANIFEST, manifest.to_dict())
    (tmp_path / "interactions.parquet").mkdir()
    for part in range(20):  # more files than are opened
        pq.write_table(
            pa.table({"x": range(50)}), tmp_path / f"interactions.parquet/{part}.parquet"
        )
    assert size_of(config) == WorkloadSize(users=50, items=42, interactions=1000, feature_dim=64)
    (tmp_path / "interactions.parquet/0.parquet").write_bytes(b"no Parquet")
    assert size_of(config) is None


# What nodes tell of themselves.

HERE = {
    "python": platform.python_version(),
    **{name: doctor.importlib.metadata.version(name) for name in doctor.PACKAGES},
}


def node(address: str = "192.0.2.1", **told: Any) -> Node:
    usual: dict[str, Any] = {
        "versions": HERE,
        "auth": "token",
        "clock_off": 0.0,
        "disk_free": 10**10,
        "disk_used": 0.5,
        "store_trouble": "",
    }
    return Node(address=address, **{**usual, **told})


ODD_NODES = {
    "versions": (node("192.0.2.2", versions={**HERE, "ray": "2.9.0"}), "ray 2.9.0 on 192.0.2.2"),
    "clocks": (node("192.0.2.2", clock_off=600.0), "600 s off on 192.0.2.2"),
    "token auth": (node("192.0.2.2", auth="unset"), "RAY_AUTH_MODE unset on 192.0.2.2"),
    "disk of Ray's session": (node("192.0.2.2", disk_used=0.97), "full to 97% on 192.0.2.2"),
}


@pytest.mark.parametrize("name", ODD_NODES)
def test_the_node_that_is_unlike_the_others_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(doctor, "_jobs_api_without_token", lambda: 401)
    odd, found = ODD_NODES[name]
    for nodes, failed in (([node(), node("192.0.2.3")], set()), ([node(), odd], {name})):
        findings = [
            *(doctor._versions(nodes), doctor._clocks(nodes)),
            *(doctor._token(DoctorJob(), nodes), doctor._session_disk(nodes)),
        ]
        assert {finding.name for finding in findings if not finding.passed} == failed
    assert found in by_name(findings)[name].found
    assert by_name(findings)[name].advice


@pytest.fixture
def jobs_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A Jobs API that answers with a chosen status, and keeps what it was sent."""
    api: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api["path"], api["token"] = self.path, self.headers.get("Authorization")
            self.send_response(api["status"])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{server.server_port}"
        monkeypatch.setattr(ray._private.worker, "get_dashboard_url", lambda: url)
        yield api
        server.shutdown()


@pytest.mark.parametrize(("status", "passed"), [(401, True), (403, True), (200, False)])
def test_cluster_without_a_token_check_fails(
    jobs_api: dict[str, Any], status: int, passed: bool
) -> None:
    jobs_api["status"] = status
    finding = doctor._token(DoctorJob(), [node()])
    assert finding.passed is passed
    assert (jobs_api["path"], jobs_api["token"]) == ("/api/jobs/", None)
    assert ("let in (200)" in finding.found) is not passed


def test_configuration() -> None:
    assert parse(DoctorJob, []) == DoctorJob()
    config = parse(DoctorJob, ["--config", str(CHECKOUT / "configs" / "doctor.yaml")])
    assert config.train == ToTrain(workers=4, use_gpu=True, cpus_per_worker=4)
    assert config.items == 100_000
    with pytest.raises(InputError, match="--users -1"):
        DoctorJob(users=-1)
    with pytest.raises(InputError, match="--answer_within_s 0"):
        DoctorJob(answer_within_s=0)


# As a command, in this process: another one would only import Ray and torch again.


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs jobs/doctor.py on the Ray that is there: exit code, standard output and error."""
    monkeypatch.setattr(launch, "start_ray", lambda *_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        clients.forget_credentials()
        monkeypatch.setattr(sys, "argv", ["jobs/doctor.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(CHECKOUT / "jobs" / "doctor.py"), run_name="__main__")
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err.strip()

    return run


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("ray_cluster")
def test_command_says_fit_and_leaves_its_summary(
    command: Callable[..., tuple[int, str, str]], s3_env: str
) -> None:
    code, shown, error = command(f"{s3_env}/shop", "--train.cpus_per_worker", "1")
    assert (code, error) == (0, "")
    assert "pass: " in shown
    assert everything_below(Store.at(s3_env)) == {"doctor.json"}


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("reader", "name"), [(True, "write and read"), (False, "list")])
def test_command_says_why_not_in_one_paragraph(
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    s3: SeaweedFS,
    s3_env: str,
    reader: bool,
    name: str,
) -> None:
    """With keys that may only read, and with a wrong one."""
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    with monkeypatch.context() as patch:
        for variable, value in (s3.readonly_env() if reader else wrong).items():
            patch.setenv(variable, value)
        code, shown, error = command(s3_env, "--train.cpus_per_worker", "1")
    assert code == 2
    assert error.startswith(f"doctor: The checks failed. {name}: found an error (")
    assert error.count(": found ") == 1  # and nothing else
    assert "AWS_SECRET_ACCESS_KEY" in error
    assert "\n" not in error
    assert "Traceback" not in shown
    clients.forget_credentials()
    assert not everything_below(Store.at(s3_env))
    done_with = shown + error
    assert s3.readonly_secret_key not in done_with
    assert s3.secret_key not in done_with


@pytest.mark.parametrize(
    "flag", ["--extract.workers", "--train.workers", "--recommend.cpus_per_worker"]
)
def test_refused_resources_are_named_by_the_doctors_own_keys(flag: str) -> None:
    with pytest.raises(InputError, match=f"^Found {flag} 0; expected a whole number in "):
        parse(DoctorJob, [flag, "0"])
