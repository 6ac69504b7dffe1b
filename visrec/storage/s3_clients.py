"""Clients of S3 and their credentials.

boto3 makes small requests and conditional writes, pyarrow reads and writes large files, and Ray
uses pyarrow's file system for checkpoints. Both clients take their credentials from boto3's chain.
"""

import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from visrec.errors import StorageError
from visrec.storage.s3_settings import S3Settings, forget_settings, read_settings, session

MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
NO_CREDENTIALS = (
    "there are no S3 credentials; expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, an AWS "
    "profile, or a role of this machine."
)
_CREDENTIAL_NAMES = ("access key", "secret key", "session token")


def boto_client(endpoint: str | None) -> Any:
    """A boto3 client of S3, which has no static type.

    Args:
        endpoint: URL of the store, None for AWS.

    Raises:
        StorageError: there are no usable credentials.
    """
    credentials()  # its messages are clearer than boto3's
    return _boto_client(os.getpid(), read_settings(os.getpid(), endpoint))


def arrow_filesystem(endpoint: str | None) -> pafs.S3FileSystem:
    """pyarrow's file system of S3, with the credentials of this moment.

    Args:
        endpoint: URL of the store, None for AWS.

    Raises:
        StorageError: there are no usable credentials.
    """
    return _arrow_filesystem(read_settings(os.getpid(), endpoint), *credentials())


def credentials() -> tuple[str | None, str | None, str | None]:
    """Access key, secret key and session token as boto3 finds and renews them.

    Raises:
        StorageError: there are none, they cannot be fetched, or an HTTP header cannot hold them.
    """
    try:
        found = session(os.getpid()).get_credentials()
        frozen = found and found.get_frozen_credentials()
    # The file of a token may be missing, or the output of a credential_process may not be JSON.
    except (BotoCoreError, OSError, ValueError, KeyError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
        reason = (
            f"its credentials cannot be fetched ({text}). Check the AWS_* variables, the AWS "
            "profile, or the role of this machine."
        )
        raise _unreachable(reason, type(error).__name__) from error
    if frozen is None:
        raise _unreachable(NO_CREDENTIALS)
    keys = frozen.access_key, frozen.secret_key, frozen.token
    for key, name in zip(keys, _CREDENTIAL_NAMES, strict=True):
        if key and not re.fullmatch(r"[!-~]+", key):
            raise _unreachable(
                f"the {name} has white space, such as a newline at its end, or a character outside "
                "ASCII in it; expected the key alone. Check the variable, file or secret that it "
                "comes from."
            )
    return keys


def _unreachable(reason: str, code: str | None = None) -> StorageError:
    return StorageError(f"Could not reach S3: {reason}", code=code, reason=reason)


@lru_cache(maxsize=4)
def _arrow_filesystem(
    settings: S3Settings, access_key: str | None, secret_key: str | None, token: str | None
) -> pafs.S3FileSystem:
    address = urlsplit(settings.endpoint.value) if settings.endpoint else None
    return pafs.S3FileSystem(
        access_key=access_key,
        secret_key=secret_key,
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
def _boto_client(pid: int, settings: S3Settings) -> Any:
    # An unreachable store must not hold up a job for minutes; five attempts survive a short outage,
    # since botocore's "standard" mode waits up to 20 s between them. Few stores other than AWS
    # support AWS's newer default checksums.
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
    """Drops all cached clients and settings, so that the environment is read again."""
    forget_settings()
    for cached in (_arrow_filesystem, _boto_client):
        cached.cache_clear()


def error_code(error: Exception) -> str:
    """The error code that S3 answered with; empty for any other error."""
    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))
