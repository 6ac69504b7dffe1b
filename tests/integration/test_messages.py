"""What jobs print when something is wrong: one paragraph, an exit code, no stack trace.

Real processes from a shell's point of view. They start side by side, for most of their time is
the import of Ray and torch.
"""

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

Done = subprocess.CompletedProcess[str]


def run_job(name: str, *flags: str, env: dict[str, str] | None = None) -> Done:
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", *flags],
        cwd=CHECKOUT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def refused(done: Done, *words: str, code: int = 2) -> None:
    """The job printed one paragraph on standard error that has these words, and nothing else."""
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
def bad_flags(
    pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, "Future[Done]"]:
    workspace = str(tmp_path_factory.mktemp("bad-flags"))
    return {
        case: pool.submit(run_job, "train", "--workspace", workspace, *flags)
        for case, (flags, _) in BAD_FLAGS.items()
    }


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags_are_named(bad_flags: dict[str, "Future[Done]"], case: str) -> None:
    refused(bad_flags[case].result(), *BAD_FLAGS[case][1])


def test_unknown_key_in_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("train:\n  epoks: 3\n")
    refused(run_job("train", "--config", str(tmp_path / "job.yaml")), "train", "epoks", "--help")


JOBS = (
    *("make_gallery", "extract_features", "import_features"),
    *("train", "tune", "recommend", "evaluate", "doctor", "nightly", "rollback"),
)


@pytest.fixture(scope="module")
def helps(pool: ThreadPoolExecutor) -> dict[str, "Future[Done]"]:
    return {job: pool.submit(run_job, job, "--help") for job in JOBS}


@pytest.mark.parametrize("job", JOBS)
def test_help_gives_every_key_its_meaning_and_default(
    helps: dict[str, "Future[Done]"], job: str
) -> None:
    done = helps[job].result()
    assert done.returncode == 0
    text = " ".join(done.stdout.partition("options:")[2].split())
    # Each key's own paragraph, from its name to the next key's.
    keys = [part for part in re.split(r" (?=--[a-z])", text) if re.match(r"--[\w.]+ [A-Z{]", part)]
    assert any(key.startswith("--workspace") for key in keys)
    for key in keys:
        if " CONFIG " not in f"{key} " and not key.startswith(("--config", "--help")):
            assert re.search(r"\((required, )?type:|default:", key), key
            assert re.match(r"--[\w.]+ (\{\S+\}|\S+) [a-zA-Z`(]\w*.* \(", key), key


def test_printed_config_is_taken_back(tmp_path: Path) -> None:
    printed = run_job("train", "--train.epochs", "7", "--model.item_width", "32", "--print_config")
    assert printed.returncode == 0, printed.stderr
    assert yaml.safe_load(printed.stdout)["train"]["epochs"] == 7
    (tmp_path / "job.yaml").write_text(printed.stdout)
    again = run_job("train", "--config", str(tmp_path / "job.yaml"), "--print_config")
    assert (again.returncode, again.stdout) == (0, printed.stdout)


# Bad input: these join the Ray of the other tests, as a submitted job would, which saves its start.


def cluster_env() -> dict[str, str]:
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="module")
def broken(
    featured: Path,
    pool: ThreadPoolExecutor,
    s3: SeaweedFS,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, "Future[Done]"]:
    def workspace(name: str, *names: str) -> Path:
        return Path(copy(featured, tmp_path_factory.mktemp("broken") / name, *names))

    headless = workspace("headless", "features")
    log = pq.read_table(featured / "interactions.parquet")
    pq.write_table(log.rename_columns(["client", "item_id", "timestamp"]), headless / "log.parquet")
    pq.write_table(log.slice(0, 0), headless / "empty.parquet")
    other = pa.table({"user_id": ["u"], "item_id": ["elsewhere"], "timestamp": [1]})
    pq.write_table(other, headless / "other.parquet")
    featureless = workspace("featureless", "interactions.parquet")
    s3.client().create_bucket(Bucket="messages")
    s3.client().put_object(Bucket="messages", Key="shop/images/a.jpg", Body=b"a picture")
    wrong_keys = {**NO_AWS_CONFIG, **s3.env(), "AWS_SECRET_ACCESS_KEY": "wrong"}
    reader = {**NO_AWS_CONFIG, **s3.readonly_env()}

    def start(job: str, resolve: object, *flags: str, **env: str) -> "Future[Done]":
        every = ("--workspace", str(resolve), *flags)
        return pool.submit(run_job, job, *every, env={**cluster_env(), **env})

    log_at = "--interactions.path"
    return {
        "missing column": start("train", headless, log_at, str(headless / "log.parquet")),
        "empty": start("train", headless, log_at, str(headless / "empty.parquet")),
        "other items": start("train", headless, log_at, str(headless / "other.parquet")),
        "no interactions": start("train", headless),
        "no features": start("train", featureless),
        "no model": start("recommend", workspace("untrained", "features", "interactions.parquet")),
        "no pictures": start("extract_features", workspace("unpainted", "items.parquet")),
        "wrong keys": start("extract_features", "s3://messages/shop", **wrong_keys),
        "denied": start("extract_features", "s3://messages/shop", **reader),
        "scheme": start("train", "gs://bucket/shop"),
        "too many workers": start(
            "train", workspace("small", "features", "interactions.parquet"),
            "--resources.workers", "512", "--local", "true",
        ),
        "debug": start("train", featureless, "--debug", "true"),
    }  # fmt: skip


MESSAGES = {
    "missing column": ["lacks the column user_id", "client", "--interactions.path"],
    "empty": ["empty", "at least one row", "--interactions.path"],
    "other items": ["None of the 1 interactions", "--interactions.path", "--features"],
    "no interactions": ["Found no", "interactions.parquet", "--interactions.path"],
    "no features": ["no features at", "jobs/extract_features.py", "--features"],
    "no model": ["no trained model at", "jobs/train.py", "--model"],
    "no pictures": ["no picture at", "<item_id>.jpg", "--images"],
    "wrong keys": ["s3://messages/shop", "refused these credentials", "AWS_SECRET_ACCESS_KEY"],
    "denied": ["s3://messages/shop", "access denied", "bucket's policy"],
    "scheme": ["'gs://bucket/shop'", "s3://bucket/prefix"],
    "too many workers": ["--resources.workers", "on this machine"],
}


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.parametrize("case", MESSAGES)
def test_bad_input_is_named(broken: dict[str, "Future[Done]"], case: str) -> None:
    refused(broken[case].result(), *MESSAGES[case])


@pytest.mark.ray
def test_debug_shows_the_stack(broken: dict[str, "Future[Done]"]) -> None:
    done = broken["debug"].result()
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("train: Found no features at")


@pytest.mark.ray
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
            *("--backbone.name", "random-conv"),
            env=cluster_env(),
        )
    finally:
        subprocess.run(["umount", str(small)], check=True)
    refused(done, "the disk is full", "--workspace", code=1)
