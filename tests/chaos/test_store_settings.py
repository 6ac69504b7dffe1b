"""One configuration of the store for every client, whatever way it is set (promise 27).

Each setting is tried with boto3 (small objects), pyarrow (tables) and Ray Train's own storage on a
real S3 server. Either all of them get through, or one sentence names the variable.
"""

import base64
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from ray.train._internal.storage import StorageContext

from tests.chaos.harness import measured
from tests.conftest import NO_AWS_CONFIG
from tests.proxy import FaultProxy
from tests.servers import SeaweedFS
from tests.storage.test_store import refusal
from tests.tls import Tunnel, tls_relay
from visrec.errors import InputError, StorageError, VisrecError
from visrec.storage.preflight import check_store, clean_up, scratch_store
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

pytestmark = [pytest.mark.s3, pytest.mark.chaos]

TABLE = pa.table({"item_id": ["a", "b"]})
SECRET = "canary-password"


@dataclass
class Site:
    """The store's addresses: of itself, behind TLS, behind proxies; and a folder for files."""

    server: SeaweedFS
    tls: str
    proxy: FaultProxy
    tunnel: Tunnel
    folder: Path

    def set(self, monkeypatch: pytest.MonkeyPatch, env: Mapping[str, str], config: str) -> None:
        """The server's keys, and no other setting than these."""
        keys = self.server.env()
        del keys["AWS_ENDPOINT_URL"]
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):  # of another test's store
            monkeypatch.delenv(name, raising=False)
        for name, value in {**NO_AWS_CONFIG, **keys, **env}.items():
            monkeypatch.setenv(name, value.format(**self.places))
        if config:
            (self.folder / "config").write_text(config.format(**self.places))
            monkeypatch.setenv("AWS_CONFIG_FILE", str(self.folder / "config"))
        forget_credentials()

    @property
    def places(self) -> dict[str, str]:
        endpoint = self.server.endpoint
        return {
            "endpoint": endpoint,
            "host": endpoint.removeprefix("http://"),
            "tls": self.tls,
            "ca": str(self.folder / "ca.pem"),
            "proxy": self.proxy.endpoint,
            "proxy_host": self.proxy.endpoint.removeprefix("http://"),
            "tunnel": f"127.0.0.1:{self.tunnel.port}",
            "secret": SECRET,
        }


@pytest.fixture(scope="module")
def site(s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    s3.client().create_bucket(Bucket="settings")
    folder = tmp_path_factory.mktemp("settings")
    with (
        tls_relay(s3.endpoint, folder) as front,
        FaultProxy(s3.endpoint) as proxy,
        Tunnel() as tunnel,
    ):
        yield Site(s3, f"https://127.0.0.1:{front.port}", proxy, tunnel, folder)


def passes_all_clients(night: str) -> None:
    """What boto3 wrote pyarrow reads, and what Ray's storage wrote boto3 reads."""
    store = Store.at(night)
    store.write_table("x.parquet", TABLE)  # by boto3
    assert store.read_table("x.parquet").equals(TABLE)  # by pyarrow
    filesystem, path = store.arrow_filesystem()
    files = pickle.loads(pickle.dumps(filesystem))  # noqa: S301  # as in a worker
    StorageContext(path, "run", storage_filesystem=files)  # writes a marker, and reads it
    with files.open_output_stream(f"{path}/run/checkpoint") as stream:
        stream.write(b"weights")
    assert store.read("run/checkpoint") == b"weights"


DIRECT = {"AWS_ENDPOINT_URL": "{endpoint}"}
PROFILE = "[default]\nendpoint_url = {endpoint}\n"
SERVICES = "[default]\nservices = s\n[services s]\ns3 =\n  endpoint_url = {endpoint}\n"
TRUSTED = {"AWS_ENDPOINT_URL": "{tls}", "AWS_CA_BUNDLE": "{ca}"}
# Variables, the profile, and through which proxy the requests should go.
GOOD: dict[str, tuple[dict[str, str], str, str]] = {
    "endpoint of the variable": (DIRECT, "", ""),
    "endpoint of the variable of S3": (
        {"AWS_ENDPOINT_URL_S3": "{endpoint}", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "", "",
    ),
    "endpoint in upper case": ({"AWS_ENDPOINT_URL": "HTTP://{host}"}, "", ""),
    "endpoint with a slash": ({"AWS_ENDPOINT_URL": "{endpoint}/"}, "", ""),
    "endpoint of the profile": ({}, PROFILE, ""),
    "endpoint of the profile's services": ({}, SERVICES, ""),
    "endpoint and region of a named profile": (
        {"AWS_PROFILE": "shop"},
        "[profile shop]\nregion = eu-west-3\nendpoint_url = {endpoint}\n",
        "",
    ),
    "addressing by path": (DIRECT, "[default]\ns3 =\n  addressing_style = path\n", ""),
    "authority of the variable": (TRUSTED, "", ""),
    "authority of requests": (
        {"AWS_ENDPOINT_URL": "{tls}", "REQUESTS_CA_BUNDLE": "{ca}"}, "", "",
    ),
    "authority of the profile": (
        {}, "[default]\nendpoint_url = {tls}\nca_bundle = {ca}\n", "",
    ),
    "proxy": ({**DIRECT, "HTTP_PROXY": "{proxy}"}, "", "proxy"),
    "proxy without a scheme": ({**DIRECT, "http_proxy": "{proxy_host}"}, "", "proxy"),
    "proxy with a password": (
        {**DIRECT, "HTTP_PROXY": "http://me:{secret}@{proxy_host}"}, "", "proxy",
    ),
    "proxy not for this host": (
        {**DIRECT, "HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}, "", "",
    ),
    "proxy for the other scheme": ({**DIRECT, "HTTPS_PROXY": "http://127.0.0.1:1"}, "", ""),
    "tunnel to TLS": ({**TRUSTED, "HTTPS_PROXY": "http://{tunnel}"}, "", "tunnel"),
    "tunnel with a password": (
        {**TRUSTED, "HTTPS_PROXY": "http://me:{secret}%21@{tunnel}"}, "", "tunnel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_clients_agree_on_a_setting(
    site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    env, config, through = GOOD[case]
    site.set(monkeypatch, env, config)
    site.proxy.forwarded = 0
    site.tunnel.requests.clear()
    passes_all_clients(f"s3://settings/{abs(hash(case))}")
    assert (site.proxy.forwarded >= 5) == (through == "proxy")
    # One connection of boto3 and one of pyarrow at least.
    assert (len(site.tunnel.requests) >= 2) == (through == "tunnel")
    if case == "tunnel with a password":
        login = base64.b64encode(f"me:{SECRET}!".encode()).decode()
        assert all(f"Proxy-Authorization: Basic {login}" in head for head in site.tunnel.requests)
    assert SECRET not in "".join(capfd.readouterr())
    measured(27, settings_tried=1, clients_agreeing=3)


BAD: dict[str, tuple[dict[str, str], str, tuple[str, ...]]] = {
    "endpoint without a scheme": (
        {"AWS_ENDPOINT_URL": "localhost:9000"}, "", ("AWS_ENDPOINT_URL", "http://localhost:9000"),
    ),
    "endpoint of S3 without a scheme": (
        {"AWS_ENDPOINT_URL_S3": "store"}, "", ("AWS_ENDPOINT_URL_S3", "http://store"),
    ),
    "endpoint with a path": ({"AWS_ENDPOINT_URL": "{endpoint}/s3"}, "", ("AWS_ENDPOINT_URL",)),
    "endpoint with a password": (
        {"AWS_ENDPOINT_URL": "http://me:{secret}@{host}"}, "", ("AWS_ENDPOINT_URL", "***@"),
    ),
    "endpoint with a password and no scheme": (
        {"AWS_ENDPOINT_URL": "me:{secret}@{host}"}, "", ("AWS_ENDPOINT_URL", "***@"),
    ),
    "endpoint with no such port": ({"AWS_ENDPOINT_URL": "http://h:99999"}, "", ("99999",)),
    "endpoint that ends in a line": ({"AWS_ENDPOINT_URL": "{endpoint}\n"}, "", ("\\n",)),
    "endpoint of another protocol": ({"AWS_ENDPOINT_URL": "s3://shop"}, "", ("s3://shop",)),
    "endpoint of a profile": (
        {}, "[default]\nendpoint_url = localhost:1\n", ("endpoint_url of the AWS profile",),
    ),
    "profile that is not there": ({**DIRECT, "AWS_PROFILE": "nobody"}, "", ("AWS_PROFILE",)),
    "configuration that is none": (DIRECT, "endpoint_url\n= [", ("AWS_CONFIG_FILE",)),
    "authority that is not there": (
        {**TRUSTED, "AWS_CA_BUNDLE": "{ca}.gone"}, "", ("AWS_CA_BUNDLE", "No such file"),
    ),
    "authority that is no certificate": (
        {**TRUSTED, "AWS_CA_BUNDLE": "/dev/null"}, "", ("AWS_CA_BUNDLE", "no certificate"),
    ),
    "authority that is a folder": ({**TRUSTED, "AWS_CA_BUNDLE": "/"}, "", ("AWS_CA_BUNDLE",)),
    "authority of a profile": (
        {}, "[default]\nendpoint_url = {tls}\nca_bundle = /gone.pem\n", ("ca_bundle", "/gone.pem"),
    ),
    "proxy of another protocol": (
        {**DIRECT, "HTTP_PROXY": "socks5://me:{secret}@{proxy_host}"}, "", ("HTTP_PROXY", "***@"),
    ),
    "region with a blank": ({**DIRECT, "AWS_DEFAULT_REGION": "eu west"}, "", ("DEFAULT_REGION",)),
    "addressing of no kind": (
        DIRECT, "[default]\ns3 =\n  addressing_style = odd\n", ("addressing_style",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_setting_that_no_client_can_use_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    env, config, words = BAD[case]
    site.set(monkeypatch, env, config)
    message = refusal(lambda: Store.at("s3://settings/bad"), InputError)
    for word in words:
        assert word in message
    assert SECRET not in message
    measured(27, settings_tried=1, settings_refused=1)


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"AWS_ENDPOINT_URL": "{tls}"}, ("not trusted", "AWS_CA_BUNDLE")),
        ({"AWS_ENDPOINT_URL": "https://{host}"}, ("TLS", "https://", "AWS_ENDPOINT_URL")),
        (
            {**DIRECT, "HTTP_PROXY": "http://me:{secret}@127.0.0.1:1"},
            ("through the proxy http://***@127.0.0.1:1", "HTTP_PROXY", "NO_PROXY"),
        ),
    ],
)
def test_store_that_is_not_reached_names_the_setting(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    env: Mapping[str, str],
    words: tuple[str, ...],
    reads: bool,
) -> None:
    site.set(monkeypatch, env, "")
    store = Store.at("s3://settings/away")
    # One by pyarrow, one by boto3: both say the same.
    action = store.read_table if reads else store.read
    message = refusal(lambda: action("x"), StorageError)
    for word in words:
        assert word in message
    assert SECRET not in message
    measured(27, settings_tried=1, settings_refused=1)


def test_doctor_passes_a_store_of_a_private_authority(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.set(monkeypatch, TRUSTED, "")
    workspace = Store.at("s3://settings/doctor")
    scratch = scratch_store(workspace)
    findings = [*check_store(workspace, scratch), clean_up(scratch)]
    assert [str(finding) for finding in findings if not finding.passed] == []
    assert "multipart upload" in {finding.name for finding in findings}


def test_password_in_a_location_is_in_no_message() -> None:
    for night in (f"s3://key:{SECRET}@shop/w", f"http://key:{SECRET}@shop/w"):
        with pytest.raises(VisrecError) as caught:
            Store.at(night)
        assert SECRET not in str(caught.value)
        measured(27, settings_tried=1, settings_refused=1)
