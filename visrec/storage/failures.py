"""Failures of a disk or an S3 store as one paragraph that says what to check."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

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

from visrec.errors import MissingFileError, StorageError
from visrec.storage.s3_clients import MISSING_CODES, NO_CREDENTIALS, error_code
from visrec.storage.s3_settings import (
    S3Settings,
    configured_endpoint,
    mask_secrets,
    read_settings,
)

_REFUSED_CODES = {
    *("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"),
    *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"),  # pyarrow's names
}
_NO_ANSWER = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, HTTPClientError)


@contextmanager
def storage_errors(action: str, path: str) -> Iterator[None]:
    """Turns every failure of a store into a `StorageError`.

    Args:
        action: what the body does, as a verb for the message.
        path: location of the file or directory.

    Raises:
        MissingFileError: the file does not exist.
        StorageError: any other failure.
    """
    try:
        yield
    except (ClientError, BotoCoreError, OSError) as error:
        missing = isinstance(error, FileNotFoundError) or error_code(error) in MISSING_CODES
        reason = _explain(error, path)
        raise (MissingFileError if missing else StorageError)(
            f"Could not {action} {path}: {reason}",
            path=path,
            code=error_code(error) or type(error).__name__,
            reason=reason,
        ) from error


def _explain(error: Exception, path: str) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".") + "."
    code = error_code(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free some space, or point --workspace at another disk."
    if isinstance(error, FileNotFoundError) or code in {*MISSING_CODES, "NoSuchBucket"}:
        return f"there is no such {'bucket' if 'NoSuchBucket' in text else 'file'}."
    if path.startswith("s3://"):
        return _explain_s3(error, text)
    if isinstance(error, PermissionError):
        return "permission denied for this user; check the folder's owner and mode."
    return text


def _explain_s3(error: Exception, text: str) -> str:
    endpoint = configured_endpoint()
    settings = read_settings(os.getpid(), endpoint and endpoint.value)
    if _is_refusal(error):
        return (
            f"the store at {settings.store} refused these credentials (access denied). Expected an "
            "access key with this permission: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the "
            "profile or role, and the bucket's policy."
        )
    if isinstance(error, NoCredentialsError):
        return NO_CREDENTIALS
    if isinstance(error, SSLError) or "curlCode: 35" in text or "curlCode: 60" in text:
        return _explain_tls(settings, text)
    if "PermanentRedirect" in text or "(HTTP status 301)" in text:
        return (
            f"the bucket is not in the region {settings.region}; set AWS_DEFAULT_REGION to the "
            "bucket's region."
        )
    if isinstance(error, _NO_ANSWER) or "NETWORK_CONNECTION" in text:
        return _explain_no_answer(settings)
    return text


def _explain_tls(settings: S3Settings, text: str) -> str:
    if "WRONG_VERSION_NUMBER" in text or "curlCode: 35" in text:
        source = settings.endpoint.source if settings.endpoint else "HTTPS_PROXY"
        return (
            f"{settings.store} did not answer with TLS; expected https:// only for a store that "
            f"uses TLS. Check {source}."
        )
    return (
        f"the certificate of {settings.store} is not trusted; expected one for this host, signed "
        f"by an authority in {settings.ca_file.value} ({settings.ca_file.source}). Set "
        "AWS_CA_BUNDLE to a PEM file with the store's authority."
    )


def _explain_no_answer(settings: S3Settings) -> str:
    source = settings.endpoint.source if settings.endpoint else "AWS_ENDPOINT_URL"
    if settings.proxy is None:
        return f"no answer from {settings.store}; check {source}."
    proxy = mask_secrets(settings.proxy.value)
    return (
        f"no answer from {settings.store} through the proxy {proxy}; check "
        f"{settings.proxy.source}, NO_PROXY and {source}."
    )


def _is_refusal(error: Exception) -> bool:
    # Only the code counts: "403" elsewhere in the message may be part of a file name or a port.
    if isinstance(error, ClientError):
        return error_code(error) in _REFUSED_CODES
    patterns = [*(f"AWS Error {code}" for code in _REFUSED_CODES), "(HTTP status 403)"]
    return any(pattern in str(error) for pattern in patterns)
