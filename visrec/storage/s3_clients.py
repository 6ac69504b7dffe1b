"""How stores are reached: credentials, clients of S3, and what their errors mean to a reader."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ProxyConnectionError,
    SSLError,
)

from visrec.errors import StorageError
from visrec.storage.s3_settings import (
    S3Settings,
    configured_endpoint,
    forget_settings,
    masked,
    session,
    settings_of,
)

MISSING = {"404", "NoSuchKey", "NotFound"}
LOST = {"412", "PreconditionFailed"}
BUSY = {"409", "ConditionalRequestConflict"}
_REFUSED = {
    *("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"),
    *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"),  # pyarrow's names
}
_NO_CREDENTIALS = (
    "there are no S3 credentials; expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, an AWS "
    "profile, or a role of this machine."
)


_KEYS = ("access key", "secret key", "session token")


def credentials() -> tuple[str | None, str | None, str | None]:
    """Access key, secret key and token as boto3 finds (and renews) them.

    Raises:
        StorageError: there are none, they cannot be fetched, or no request can carry them.
    """
    try:
        found = session(os.getpid()).get_credentials()
        frozen = found and found.get_frozen_credentials()
    # Of a token's file that is missing, or the output of a credential_process that is no JSON.
    except (BotoCoreError, OSError, ValueError, KeyError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
        raise StorageError(
            f"Could not reach S3: its credentials cannot be fetched ({text}). Check the AWS_* "
            "variables, the AWS profile, or the role of this machine."
        ) from error
    if frozen is None:
        raise StorageError(f"Could not reach S3: {_NO_CREDENTIALS}")
    keys = frozen.access_key, frozen.secret_key, frozen.token
    for key, name in zip(keys, _KEYS, strict=True):
        if key and not re.fullmatch(r"[!-~]+", key):
            raise StorageError(
                f"Could not reach S3: the {name} has white space, such as the end of a line, or a "
                "character outside ASCII in it; expected the key alone. Check the variable, file "
                "or secret that it comes from."
            )
    return keys


@lru_cache(maxsize=4)
def arrow_s3(
    settings: S3Settings, access: str | None, secret: str | None, token: str | None
) -> pafs.S3FileSystem:
    address = urlsplit(settings.endpoint.value) if settings.endpoint else None
    return pafs.S3FileSystem(
        access_key=access,
        secret_key=secret,
        session_token=token,
        region=settings.region,
        endpoint_override=address.netloc if address else None,
        scheme=address.scheme if address else "https",
        tls_ca_file_path=settings.ca_file.value,
        proxy_options=settings.arrow_proxy,
        force_virtual_addressing=settings.addressing == "virtual",
        connect_timeout=5,
        request_timeout=60,
    )


@lru_cache(maxsize=4)
def boto_s3(pid: int, settings: S3Settings) -> Any:
    # A store that cannot be reached must not hold a job for minutes; five attempts ride out a
    # short outage (botocore's "standard" mode backs off up to 20 s between them). Stores other than
    # AWS seldom know AWS's newer default checksums.
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 5},
        max_pool_connections=32,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies=settings.boto_proxies,
        s3={"addressing_style": settings.addressing},
    )
    return session(pid).create_client(
        "s3",
        region_name=settings.region,
        endpoint_url=settings.endpoint.value if settings.endpoint else None,
        verify=settings.ca_file.value,
        config=config,
    )


def forget_credentials() -> None:
    """Drops cached clients, so that a changed environment is read again."""
    forget_settings()
    for cached in (arrow_s3, boto_s3):
        cached.cache_clear()


def code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def translated(action: str, uri: str) -> Iterator[None]:
    """Any failure of a store as one paragraph that says what to look at."""
    try:
        yield
    except (ClientError, BotoCoreError, OSError) as error:
        raise StorageError(f"Could not {action} {uri}: {_explain(error, uri)}") from error


def _explain(error: Exception, uri: str) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".") + "."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free some space, or point --workspace at another disk."
    if isinstance(error, FileNotFoundError) or (
        isinstance(error, ClientError) and code(error) in {*MISSING, "NoSuchBucket"}
    ):
        what = "bucket" if "NoSuchBucket" in text else "file"
        return f"there is no such {what}."
    if not uri.startswith("s3://"):
        if isinstance(error, PermissionError):
            return "permission denied for this user; check the folder's owner and mode."
        return text
    return _explain_s3(error, text)


def _explain_s3(error: Exception, text: str) -> str:
    endpoint = configured_endpoint()
    settings = settings_of(os.getpid(), endpoint and endpoint.value)
    if _is_refusal(error):
        return (
            f"the store at {settings.store} refused these credentials (access denied). Expected an "
            "access key that may do this here: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the "
            "profile or role, and the bucket's policy."
        )
    if isinstance(error, NoCredentialsError):
        return _NO_CREDENTIALS
    if isinstance(error, SSLError) or "curlCode: 35" in text or "curlCode: 60" in text:
        return _explain_tls(settings, text)
    if "PermanentRedirect" in text or "(HTTP status 301)" in text:
        return (
            f"the bucket is in another region than {settings.region}; set AWS_DEFAULT_REGION to "
            "the bucket's."
        )
    silences = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, HTTPClientError)
    if isinstance(error, silences) or "NETWORK_CONNECTION" in text:
        return _explain_silence(settings)
    return text


def _explain_tls(settings: S3Settings, text: str) -> str:
    if "WRONG_VERSION_NUMBER" in text or "curlCode: 35" in text:
        source = settings.endpoint.source if settings.endpoint else "HTTPS_PROXY"
        return (
            f"{settings.store} did not answer with TLS; expected https:// only where the store "
            f"speaks it. Check {source}."
        )
    return (
        f"the certificate of {settings.store} is not trusted; expected one for this host that an "
        f"authority in {settings.ca_file.value} ({settings.ca_file.source}) has signed. Set "
        "AWS_CA_BUNDLE to a PEM file with the store's authority."
    )


def _explain_silence(settings: S3Settings) -> str:
    source = settings.endpoint.source if settings.endpoint else "AWS_ENDPOINT_URL"
    if settings.proxy is None:
        return f"no answer from {settings.store}; check {source}."
    return (
        f"no answer from {settings.store} through the proxy {masked(settings.proxy.value)}; check "
        f"{settings.proxy.source}, NO_PROXY and {source}."
    )


def _is_refusal(error: Exception) -> bool:
    # By the code alone: a 403 elsewhere in the message may be part of a file's name or a port.
    if isinstance(error, ClientError):
        return code(error) in _REFUSED
    marks = [*(f"AWS Error {code}" for code in _REFUSED), "(HTTP status 403)"]
    return any(mark in str(error) for mark in marks)
