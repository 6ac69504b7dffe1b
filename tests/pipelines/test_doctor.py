"""The doctor as a whole: on a cluster, in its report, and as a command."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from tests.conftest import CHECKOUT
from tests.servers import SeaweedFS
from tests.storage.test_store import everything_below, refusal
from visrec.cli import launch
from visrec.cli.parse import parse
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.pipelines import doctor
from visrec.pipelines.doctor import DoctorJob, examine_cluster, load_resources
from visrec.storage import s3_clients as clients
from visrec.storage.preflight import Finding, scratch_store
from visrec.storage.store import Store
from visrec.training.task import TrainResources


def train_config(folder: Path, workers: int, cpus_per_worker: int) -> str:
    """A YAML file of jobs/train.py with these resources."""
    file = folder / "train.yaml"
    file.write_text(f"resources: {{workers: {workers}, cpus_per_worker: {cpus_per_worker}}}")
    return str(file)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def examine(config: DoctorJob) -> dict[str, Finding]:
    return by_name(examine_cluster(config, Store.at(config.workspace), None))


# On the cluster of the tests: one node with 4 CPUs.


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("ray_cluster")
def test_healthy_cluster_and_store_pass_every_check(s3_env: str, tmp_path: Path) -> None:
    summary = Summary("doctor")
    small = train_config(tmp_path, workers=2, cpus_per_worker=1)
    config = DoctorJob(workspace=f"{s3_env}/shop", users=1000, items=500, train_config=small)
    doctor.main(config, summary)
    verdict = str(summary.rows.pop("verdict"))
    assert verdict.startswith(f"pass: {len(summary.rows)} findings, none failed")
    assert all(line.startswith("pass ") for line in summary.rows.values()), summary.rows
    assert "1 of 1 nodes read it" in summary.rows["workspace from nodes"]
    assert all(len(name) <= 22 for name in summary.rows)
    assert not everything_below(Store.at(s3_env))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_request_that_is_too_large_fails_and_is_not_waited_for(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    large = train_config(tmp_path_factory.mktemp("config"), workers=4, cpus_per_worker=2)
    config = DoctorJob(workspace=str(tmp_path), users=10**9, items=500, train_config=large)
    message = refusal(lambda: doctor.main(config, Summary("doctor")), InputError)
    assert "room to train: found 4 CPU in all, room for 2 of 4" in message
    assert "expected 4 x 2 CPU at once" in message
    for word in ("--resources.workers", "--train_config", "--may_grow", "memory to prepare"):
        assert word in message
    shown = capsys.readouterr().out
    assert "FAIL  4 CPU in all, room for 2 of 4" in shown
    assert "room for 1 x 1 CPU" in shown
    # The summary is written, and nothing else.
    assert everything_below(Store.at(str(tmp_path))) == {"doctor.json"}
    written = json.loads((tmp_path / "summaries" / "doctor.json").read_text())
    assert written["verdict"].startswith("FAIL: room to train")


def test_scratch_files_are_removed_when_the_job_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        assert everything_below(Store.at(str(tmp_path)))
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine_cluster", stop)
    with pytest.raises(KeyboardInterrupt):
        doctor.main(DoctorJob(workspace=str(tmp_path)), Summary("doctor"))
    assert not list(tmp_path.iterdir())


def test_findings_with_the_same_advice_share_it(tmp_path: Path) -> None:
    workspace = Store.at(str(tmp_path))
    findings = [
        *(Finding(name, "x", "y", False, "Do this.") for name in ("one", "two")),
        Finding("three", "x", "z", False, "Do that."),
        Finding("four", "x", "x", True),
    ]
    message = refusal(lambda: doctor.report(findings, workspace, Summary("doctor")), InputError)
    assert message == (
        "The checks failed. one: found x, expected y; two: found x, expected y. Do this. "
        "three: found x, expected z. Do that."
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_disk_that_nodes_do_not_share_fails(tmp_path: Path) -> None:
    workspace = Store.at(str(tmp_path))
    missing = scratch_store(workspace)  # like a disk that the node does not have
    findings = by_name(examine_cluster(DoctorJob(workspace=str(tmp_path)), workspace, missing))
    assert findings["workspace from nodes"].passed is False
    assert "FileNotFoundError" in findings["workspace from nodes"].found
    assert "every node shares" in findings["workspace from nodes"].advice


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_node_that_does_not_answer_in_time_is_named(tmp_path: Path) -> None:
    findings = examine(DoctorJob(workspace=str(tmp_path), answer_within_s=1e-6))
    address = ray.nodes()[0]["NodeManagerAddress"]
    assert findings["nodes"].passed is False
    assert findings["nodes"].found == f"0 of 1 answer, not {address}"


def test_resources_are_those_of_the_night_and_numbers_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert parse(DoctorJob, []) == DoctorJob()
    monkeypatch.chdir(CHECKOUT)  # the file names its neighbours from there
    flags = ["--config", "configs/doctor.yaml", "--workspace", str(tmp_path)]
    config = parse(DoctorJob, flags)
    train = load_resources(config).train
    assert train == TrainResources(workers=4, use_gpu=True, cpus_per_worker=4, max_failures=5)
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
    """Runs jobs/doctor.py on the cluster of the tests; returns exit code, output and error."""
    monkeypatch.setattr(launch, "ensure_ray", lambda *_: None)

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
def test_command_passes_and_leaves_only_its_summary(
    command: Callable[..., tuple[int, str, str]], s3_env: str, tmp_path: Path
) -> None:
    small = train_config(tmp_path, workers=1, cpus_per_worker=1)
    code, shown, error = command(f"{s3_env}/shop", "--train_config", small)
    assert (code, error) == (0, "")
    assert "pass: " in shown
    assert everything_below(Store.at(s3_env)) == {"doctor.json"}


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("reader", "start"),
    [
        (True, "The checks failed. write and read: found an error ("),
        (False, "Could not read s3://"),  # the keys that the workspace itself has
    ],
)
def test_command_fails_with_one_paragraph(
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    s3: SeaweedFS,
    s3_env: str,
    tmp_path: Path,
    reader: bool,
    start: str,
) -> None:
    """With keys that may only read, and with a wrong secret key."""
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    with monkeypatch.context() as patch:
        for variable, value in (s3.readonly_env() if reader else wrong).items():
            patch.setenv(variable, value)
        small = train_config(tmp_path, workers=1, cpus_per_worker=1)
        code, shown, error = command(s3_env, "--train_config", small)
    assert code == 2
    assert error.startswith(f"doctor: {start}")
    assert error.count(": found ") == reader  # a single finding
    assert "AWS_SECRET_ACCESS_KEY" in error
    assert "\n" not in error
    assert "Traceback" not in shown
    clients.forget_credentials()
    assert not everything_below(Store.at(s3_env))
    assert s3.readonly_secret_key not in shown + error
    assert s3.secret_key not in shown + error


@pytest.mark.parametrize("job", ["extract", "train", "recommend"])
def test_refused_resources_are_named_with_their_file(job: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("resources: {workers: 0}")
    config = parse(DoctorJob, [f"--{job}_config", str(file)])
    expected = f"^{file}: Found --resources.workers 0; expected a whole number in "
    with pytest.raises(InputError, match=expected):
        load_resources(config)
