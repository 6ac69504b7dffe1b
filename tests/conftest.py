"""Fixtures shared by all tests. The servers start with the first test that asks for them."""

import os
import secrets
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from hypothesis import settings

from tests.servers import SeaweedFS, ServerError
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

if TYPE_CHECKING:
    from tests.exports.readers import Reader
    from tests.stores import Server

# Timings never decide a test: an example may compile a kernel, and the machine may be busy.
settings.register_profile("visrec", deadline=None)
settings.load_profile("visrec")

CHECKOUT = Path(__file__).parents[1]
# No test may reach an account or a cluster of whoever runs it.
FOREIGN = (
    *("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    *("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"),
    *("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"),
    *("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
)
NO_AWS_CONFIG = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, and put everything back at the end."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def own_environment() -> Iterator[None]:
    """Keep accounts and clusters of the machine out of the tests."""
    with environment({**NO_AWS_CONFIG, "RAY_USAGE_STATS_ENABLED": "0"}):
        for name in FOREIGN:
            os.environ.pop(name, None)
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[SeaweedFS]:
    """One S3 server for the session. Tests that kill a server start their own `SeaweedFS`."""
    with SeaweedFS() as server:
        yield server


@pytest.fixture
def s3_env(monkeypatch: pytest.MonkeyPatch, s3: SeaweedFS) -> str:
    """A fresh bucket as a URI, `s3://t-<id>`, with the variables set by which it is found."""
    for name, value in {**NO_AWS_CONFIG, **s3.env()}.items():
        monkeypatch.setenv(name, value)
    # `boto3.client` keeps the keys that its first call found; `boto3.Session()` looks again.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    bucket = f"t-{uuid.uuid4().hex[:8]}"
    s3.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def ray_cluster(s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray in this process for the session, whose workers reach the `s3` server.

    Workers get the environment that was there at `ray.init`: what a test sets later does not reach
    them, so the server comes first. Its keys are the ones that `s3_env` gives.
    """
    import ray
    import ray.data

    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex(32))
    start = {
        **s3.env(),
        # A local Ray wants a token, and would write one to the home directory if it had none.
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Workers find visrec, jobs and tests wherever pytest was started.
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]),
    }
    with environment(start):
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        yield
        ray.shutdown()


@contextmanager
def without_ray() -> Iterator[None]:
    """Jobs run in this process, even if a test before has started Ray in it."""
    with pytest.MonkeyPatch.context() as patch:
        if ray := sys.modules.get("ray"):
            patch.setattr(ray, "is_initialized", lambda: False)
        yield


@pytest.fixture(autouse=True)
def ray_if_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked `ray` run their jobs on Ray, if it runs; all others in this process.

    Both make the same files (tests/integration/test_chain.py, test_recommend.py), and starting
    Ray's processes takes most of the time of a small job.
    """
    is_marked = request.node.get_closest_marker("ray") is not None
    with nullcontext() if is_marked else without_ray():
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; tests that use it are marked `data`."""
    path = Path(os.environ.get("VISREC_DATA", CHECKOUT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"The real data folder {path} is absent; VISREC_DATA names another.")
    return path


@pytest.fixture(autouse=True)
def fresh_clients() -> Iterator[None]:
    """No client made under one environment is used under another."""
    forget_credentials()
    yield
    forget_credentials()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of either kind, below a prefix."""
    on_s3 = request.param == "s3"
    base = request.getfixturevalue("s3_env") if on_s3 else str(tmp_path)
    return Store.at(f"{base}/some/prefix")


# One small workspace, taken through the chain once for all tests. Its modules are imported by those
# tests alone: they bring Ray and the jobs.


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with pictures and tables. Read only, as all of these: `copy` it to change it."""
    from tests.integration.workspace import paint

    workspace = tmp_path_factory.mktemp("gallery")
    paint(workspace)
    return workspace


@pytest.fixture(scope="session")
def featured(gallery: Path) -> Path:
    """The same, with features."""
    from tests.integration.workspace import run_extract

    with without_ray():
        summary = run_extract(gallery)
    assert summary.rows["run through the network"] == 300
    return gallery


@pytest.fixture(scope="session")
def trained(featured: Path) -> Path:
    """The same, with a model that one worker trained."""
    from tests.integration.workspace import run_train

    with without_ray():
        run_train(featured, model_id="one")
    return featured


@pytest.fixture(scope="session")
def recommended(trained: Path) -> Path:
    """The same, with recommendations of the run `first` in 8 shards."""
    from tests.integration.workspace import run_recommend

    with without_ray():
        run_recommend(trained, run_id="first", shards=8)
    return trained


@pytest.fixture(scope="session")
def evaluated(trained: Path) -> Path:
    """The same, with an evaluation."""
    from tests.integration.workspace import run_evaluate

    with without_ray():
        run_evaluate(trained)
    return trained


# Stores that a shop reads lists from. Their servers start with the first test that asks for one.


@pytest.fixture(scope="session")
def start_store() -> Iterator[Callable[[str], "Server"]]:
    """Starts a server by its name, or skips the test where it is not installed."""
    from tests import stores

    starters = {
        "postgresql": stores.postgres,
        "redis": stores.redis_server,
        "redis cluster": partial(stores.redis_server, cluster=True),
        "dynamodb": stores.dynalite,
    }
    started: dict[str, Server] = {}
    with ExitStack() as running:

        def start(name: str) -> "Server":
            try:
                if name not in started:
                    started[name] = running.enter_context(starters[name]())
            except ServerError as error:
                pytest.skip(str(error))
            return started[name]

        yield start


@pytest.fixture(params=["postgresql", "redis", "redis cluster", "dynamodb"])
def shop(
    request: pytest.FixtureRequest,
    start_store: Callable[[str], "Server"],
    monkeypatch: pytest.MonkeyPatch,
) -> "Reader":
    """A shop that reads from each store, empty; visrec finds the store in the environment."""
    from tests.exports.readers import open_shop

    found = open_shop(request.param, start_store(request.param))
    for name, value in found.env.items():
        monkeypatch.setenv(name, value)
    return found
