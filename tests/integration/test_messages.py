"""What jobs print when something is wrong: one paragraph, an exit code, no stack trace.

The jobs are real processes. They start side by side, because importing Ray and torch takes most of
their time.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from tests.conftest import CHECKOUT, NO_AWS_CONFIG
from tests.integration.workspace import copy
from tests.servers import SeaweedFS

Completed = subprocess.CompletedProcess[str]


def run_job(name: str, *flags: str, env: dict[str, str] | None = None) -> Completed:
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", *flags],
        cwd=CHECKOUT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# Runs jobs whose arguments come as JSON, and prints exit code, output and error of each. Signal
# handlers are for a process with one job.
_RUN_JOBS = """
import contextlib, io, json, runpy, sys
from visrec.cli import signals
signals.exit_on_signals = lambda: None
results = []
for name, *flags in json.load(sys.stdin):
    output, error, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [f"jobs/{name}.py", *flags]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    results.append((code, output.getvalue(), error.getvalue()))
json.dump(results, sys.stdout)
"""


def run_jobs(*commands: tuple[str, ...]) -> list[Completed]:
    """Runs several jobs, one after another, in a single new process: they share its imports."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN_JOBS],
        cwd=CHECKOUT,
        input=json.dumps(commands),
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    results = zip(commands, json.loads(done.stdout), strict=True)
    return [Completed(command, *result) for command, result in results]


def assert_refused(done: Completed, *words: str, code: int = 2) -> None:
    """Checks that a job printed one paragraph on standard error, with these words."""
    text = done.stderr.strip()
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


BAD_FLAGS = {
    "unknown key": (["--train.epoks", "3"], ["train.epoks", "--help"]),
    "wrong type": (["--train.epochs", "many"], ["epochs", "many", "--help"]),
    "impossible value": (
        ["--train.epochs", "0"],
        ["--train.epochs 0", "expected a whole number"],
    ),
    "unknown model": (
        ["--model.name", "oracle"],
        ["--model.name 'oracle'", "curatornet", "visrank"],
    ),
    "key of another model": (
        ["--model.name", "visrank", "--model.item_width", "3"],
        ["item_width", "--help"],
    ),
    "missing YAML": (["--config", "no-such.yaml"], ["no-such.yaml"]),
}


@pytest.fixture(scope="module")
def bad_flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Completed]:
    workspace = str(tmp_path_factory.mktemp("bad-flags"))
    commands = [("train", "--workspace", workspace, *flags) for flags, _ in BAD_FLAGS.values()]
    return dict(zip(BAD_FLAGS, run_jobs(*commands), strict=True))


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flag_is_named(bad_flags: dict[str, Completed], case: str) -> None:
    assert_refused(bad_flags[case], *BAD_FLAGS[case][1])


def test_unknown_key_in_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("train:\n  epoks: 3\n")
    done = run_job("train", "--config", str(tmp_path / "job.yaml"))
    assert_refused(done, "train", "epoks", "--help")


JOBS = (
    *("make_gallery", "extract_features", "import_features"),
    *("train", "tune", "recommend", "evaluate", "doctor", "nightly", "rollback"),
)


@pytest.fixture(scope="module")
def helps() -> dict[str, Completed]:
    return dict(zip(JOBS, run_jobs(*((job, "--help") for job in JOBS)), strict=True))


@pytest.mark.parametrize("job", JOBS)
def test_help_has_the_meaning_and_the_default_of_every_key(
    helps: dict[str, Completed], job: str
) -> None:
    done = helps[job]
    assert done.returncode == 0
    text = " ".join(done.stdout.partition("options:")[2].split())
    # The paragraph of each key, up to the name of the next key.
    keys = [part for part in re.split(r" (?=--[a-z])", text) if re.match(r"--[\w.]+ [A-Z{]", part)]
    assert any(key.startswith("--workspace") for key in keys)
    for key in keys:
        if " CONFIG " not in f"{key} " and not key.startswith(("--config", "--help")):
            assert re.search(r"\((required, )?type:|default:", key), key
            assert re.match(r"--[\w.]+ (\{\S+\}|\S+) [a-zA-Z`(]\w*.* \(", key), key


def test_printed_config_is_read_back(tmp_path: Path) -> None:
    flags = ("--train.epochs", "7", "--model.item_width", "32", "--print_config")
    (printed,) = run_jobs(("train", *flags))
    assert printed.returncode == 0, printed.stderr
    assert yaml.safe_load(printed.stdout)["train"]["epochs"] == 7
    (tmp_path / "job.yaml").write_text(printed.stdout)
    (again,) = run_jobs(("train", "--config", str(tmp_path / "job.yaml"), "--print_config"))
    assert (again.returncode, again.stdout) == (0, printed.stdout)


# Bad input. These jobs join the Ray cluster of the tests, as submitted jobs would.


def cluster_env() -> dict[str, str]:
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="module")
def broken(
    featured: Path,
    ray_cluster: None,  # noqa: ARG001
    pool: ThreadPoolExecutor,
    s3: SeaweedFS,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, "Future[Completed]"]:
    def make_workspace(name: str, *names: str) -> Path:
        return Path(copy(featured, tmp_path_factory.mktemp("broken") / name, *names))

    headless = make_workspace("headless", "features")
    untrained = make_workspace("untrained", "features", "interactions.parquet")
    log = pq.read_table(featured / "interactions.parquet")
    pq.write_table(log.rename_columns(["client", "item_id", "timestamp"]), headless / "log.parquet")
    pq.write_table(log.slice(0, 0), headless / "empty.parquet")
    other = pa.table({"user_id": ["u"], "item_id": ["elsewhere"], "timestamp": [1]})
    pq.write_table(other, headless / "other.parquet")
    featureless = make_workspace("featureless", "interactions.parquet")
    s3.client().create_bucket(Bucket="messages")
    s3.client().put_object(Bucket="messages", Key="shop/images/a.jpg", Body=b"a picture")
    wrong_keys = {**NO_AWS_CONFIG, **s3.env(), "AWS_SECRET_ACCESS_KEY": "wrong"}
    reader = {**NO_AWS_CONFIG, **s3.readonly_env()}

    def start(job: str, workspace: object, *flags: str, **env: str) -> "Future[Completed]":
        arguments = ("--workspace", str(workspace), *flags)
        return pool.submit(run_job, job, *arguments, env={**cluster_env(), **env})

    log_at = "--interactions.path"
    return {
        "missing column": start("train", headless, log_at, str(headless / "log.parquet")),
        "empty": start("train", headless, log_at, str(headless / "empty.parquet")),
        "other items": start("train", headless, log_at, str(headless / "other.parquet")),
        "no interactions": start("train", headless),
        "no features": start("train", featureless),
        "no model": start("recommend", untrained),
        "no pictures": start("extract_features", make_workspace("unpainted", "items.parquet")),
        "wrong keys": start("extract_features", "s3://messages/shop", **wrong_keys),
        "denied": start("extract_features", "s3://messages/shop", **reader),
        "scheme": start("train", "gs://bucket/shop"),
        "too many workers": start(
            "train", make_workspace("small", "features", "interactions.parquet"),
            "--resources.workers", "512", "--local", "true",
        ),
        "debug": start("train", featureless, "--debug", "true"),
    }  # fmt: skip


MESSAGES = {
    "missing column": ["lacks the column user_id", "client", "--interactions.path"],
    "empty": ["empty", "at least one row", "--interactions.path"],
    "other items": ["None of the 1 interactions", "--interactions.path", "--features"],
    "no interactions": ["Found no interactions in", "expected a file", "--interactions.path"],
    "no features": ["no features at", "visrec extract", "--features"],
    "no model": ["no trained model at", "visrec train", "--model"],
    "no pictures": ["no picture at", "<item_id>.jpg", "--images"],
    "wrong keys": ["s3://messages/shop", "refused these credentials", "AWS_SECRET_ACCESS_KEY"],
    "denied": ["s3://messages/shop", "access denied", "bucket's policy"],
    "scheme": ["'gs://bucket/shop'", "s3://bucket/prefix"],
    "too many workers": ["--resources.workers", "on this machine"],
}


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.parametrize("case", MESSAGES)
def test_bad_input_is_named(broken: dict[str, "Future[Completed]"], case: str) -> None:
    assert_refused(broken[case].result(), *MESSAGES[case])


@pytest.mark.ray
def test_debug_shows_the_stack_trace(broken: dict[str, "Future[Completed]"]) -> None:
    done = broken["debug"].result()
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("train: Found no features at")


def test_full_disk_is_named(featured: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "visrec-test", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    try:
        done = run_job(
            "extract_features",
            *("--workspace", str(small), "--images", str(featured / "images")),
            *("--backbone.name", "random-conv", "--local"),
        )
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert_refused(done, "the disk is full", "--workspace", code=1)
