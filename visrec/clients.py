"""How stores are reached: credentials, clients of S3, and what their errors mean to a reader."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import boto3
import pyarrow.fs as pafs
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
)

from visrec.errors import StorageError

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


@lru_cache(maxsize=1)
def _session(_pid: int) -> boto3.Session:
    return boto3.Session()


def credentials() -> tuple[str | None, str | None, str | None, str | None]:
    """Access key, secret key, token and region as boto3 finds (and renews) them."""
    session = _session(os.getpid())
    found = session.get_credentials()
    if found is None:
        raise StorageError(f"Could not reach S3: {_NO_CREDENTIALS}")
    frozen = found.get_frozen_credentials()
    return frozen.access_key, frozen.secret_key, frozen.token, session.region_name


@lru_cache(maxsize=4)
def arrow_s3(
    access: str | None,
    secret: str | None,
    token: str | None,
    region: str | None,
    endpoint: str | None,
) -> pafs.S3FileSystem:
    scheme, _, host = (endpoint or "").partition("://")
    return pafs.S3FileSystem(
        access_key=access,
        secret_key=secret,
        session_token=token,
        region=region or "us-east-1",
        endpoint_override=host or None,
        scheme=scheme or "https",
        connect_timeout=5,
        request_timeout=60,
    )


@lru_cache(maxsize=4)
def boto_s3(pid: int, endpoint: str | None) -> Any:
    # A store that cannot be reached must not hold a job for minutes; five attempts ride out a
    # short outage (botocore's "standard" mode backs off up to 20 s between them). Stores other than
    # AWS seldom serve a host name per bucket, nor AWS's newer default checksums.
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 5},
        max_pool_connections=32,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    return _session(pid).client("s3", endpoint_url=endpoint, config=config)


def forget_credentials() -> None:
    """Drops cached clients, so that a changed environment is read again."""
    for cached in (_session, arrow_s3, boto_s3):
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
    if _is_refusal(error):
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "AWS")
        return (
            f"the store at {endpoint} refused these credentials (access denied). Expected an "
            "access key that may do this here: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the "
            "profile or role, and the bucket's policy."
        )
    if isinstance(error, NoCredentialsError):
        return _NO_CREDENTIALS
    silences = (EndpointConnectionError, ConnectTimeoutError, HTTPClientError)
    if isinstance(error, silences) or "NETWORK_CONNECTION" in text:
        return (
            f"no answer from {os.environ.get('AWS_ENDPOINT_URL', 'AWS')}; check AWS_ENDPOINT_URL."
        )
    return text


def _is_refusal(error: Exception) -> bool:
    # By the code alone: a 403 elsewhere in the message may be part of a file's name or a port.
    if isinstance(error, ClientError):
        return code(error) in _REFUSED
    marks = [*(f"AWS Error {code}" for code in _REFUSED), "(HTTP status 403)"]
    return any(mark in str(error) for mark in marks)
