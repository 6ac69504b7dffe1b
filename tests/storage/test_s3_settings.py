"""S3 settings and credentials that no client can use, or that boto3 and pyarrow read differently.

No request leaves this process, since each setting is refused first. The valid ones are tried on a
real server in `tests/chaos/test_store_settings.py`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.storage.test_store import refusal
from visrec.errors import InputError
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

KEYS = {"AWS_ACCESS_KEY_ID": "canary-key", "AWS_SECRET_ACCESS_KEY": "canary-secret"}


@pytest.fixture
def _fresh_settings() -> Iterator[None]:
    forget_credentials()
    yield
    forget_credentials()


def configure(
    monkeypatch: pytest.MonkeyPatch, folder: Path, env: Mapping[str, str], config: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (folder / "config").write_text(config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))


@pytest.mark.usefixtures("_fresh_settings")
@pytest.mark.parametrize(
    ("env", "config", "words"),
    [
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, "", ("AWS_USE_FIPS_ENDPOINT", "https://s3-fips.us")),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "", ("https://s3.dualstack.us-east-1.amaz",)),
        ({}, "s3 =\n  use_dualstack_endpoint = true\n", ("s3.use_dualstack_endpoint of the AWS",)),
        ({}, "s3 =\n  use_accelerate_endpoint = true\n", ("s3.use_accelerate_endpoint of the",)),
        ({}, "s3 = path\n", ("Found s3 = path in the AWS profile 'default'",)),
        ({}, "services = a\n[services a]\ns3 = path\n", ("Found services.s3 = path in",)),
        ({"AWS_ENDPOINT_URL": "http://my_minio:9000"}, "", ("AWS_ENDPOINT_URL", "letters")),
        ({"AWS_ENDPOINT_URL": "http://-minio:9000"}, "", ("AWS_ENDPOINT_URL",)),
        ({"AWS_ENDPOINT_URL": "http://..:9000"}, "", ("AWS_ENDPOINT_URL",)),
        ({"AWS_ENDPOINT_URL": "http://[:::::1]:9000"}, "", ("AWS_ENDPOINT_URL",)),
        ({"AWS_DEFAULT_REGION": "-"}, "", ("AWS region '-'", "AWS_DEFAULT_REGION")),
    ],
)
def test_setting_that_clients_read_differently_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    env: Mapping[str, str],
    config: str,
    words: tuple[str, ...],
) -> None:
    configure(monkeypatch, tmp_path, {**KEYS, **env}, f"[default]\n{config}")
    message = refusal(lambda: Store.at("s3://shop/visrec"), InputError)
    for word in words:
        assert word in message


def test_bucket_named_dot_dot_is_refused() -> None:
    assert "did you mean s3://shop" in refusal(lambda: Store.at("s3://../shop"), InputError)


@pytest.mark.usefixtures("_fresh_settings")
@pytest.mark.parametrize("client", ["boto3", "pyarrow"])
@pytest.mark.parametrize(
    ("env", "config", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "canary-key"}, "", ("AWS_SECRET_ACCESS_KEY",)),
        ({**KEYS, "AWS_SECRET_ACCESS_KEY": "canary\n"}, "", ("the secret key has white space",)),
        ({**KEYS, "AWS_ACCESS_KEY_ID": "canary\n"}, "", ("the access key has white space",)),
        ({**KEYS, "AWS_SESSION_TOKEN": "canary€"}, "", ("the session token has",)),
        ({}, "credential_process = /bin/echo canary", ("cannot be fetched (JSONDecodeError",)),
        ({}, "credential_process = /gone", ("cannot be fetched (FileNotFoundError", "/gone")),
        ({}, "credential_process = /bin/false", ("cannot be fetched (CredentialRetrieval",)),
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/gone", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"},
            "", ("cannot be fetched (FileNotFoundError", "/gone"),
        ),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://10.1.1.1/x"}, "", ("10.1.1.1",)),
    ],
)  # fmt: skip
def test_unusable_credentials_are_reported_by_every_client(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    env: Mapping[str, str],
    config: str,
    words: tuple[str, ...],
    client: str,
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    configure(monkeypatch, tmp_path, env, f"[default]\n{config}\n")
    store = Store.at("s3://shop/visrec")
    message = refusal(store.arrow_filesystem if client == "pyarrow" else lambda: store.read("x"))
    for word in words:
        assert word in message
    assert "canary" not in message
