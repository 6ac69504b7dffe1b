"""Locations as users write them: a local path, a file: URI, or an s3:// URI."""

import os
import re
from urllib.parse import unquote

from visrec.errors import InputError
from visrec.paths import expand_home, require_utf8
from visrec.storage.s3_settings import mask_secrets

_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<slashes>/*)(?P<rest>.*)", re.DOTALL)
# Hadoop's names for S3 mean the same store. `s3:/shop`, which pathlib makes of `s3://shop`, is a
# URI with a slash missing and not a folder called "s3:".
_S3_SCHEMES = ("s3", "s3a", "s3n")
_SCHEMES = (*_S3_SCHEMES, "file")
# As pathlib's `as_uri` writes it: characters that a URI cannot have are percent-encoded. RFC 8089
# also allows the host of this machine.
_FILE = re.compile(
    r"file:(//localhost(?=/)|//(?=/)|(?!//))/+(?P<path>.*)", re.DOTALL | re.IGNORECASE
)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def normalize_location(location: str) -> str:
    """The location as an absolute path or as `s3://bucket[/prefix]`, without a slash at the end.

    Raises:
        InputError: it is neither a local path nor the URI of a bucket.
    """
    if not location or "\0" in location:
        raise _not_a_location(location)
    require_utf8(location)
    uri = _URI.fullmatch(location)
    scheme = uri["scheme"].lower() if uri else ""
    if uri is None or not (uri["slashes"] or scheme in _SCHEMES):
        return os.path.abspath(expand_home(location))
    file = _FILE.fullmatch(location)
    if file is not None:
        path = "/" + unquote(file["path"], errors="surrogateescape")
        if "\0" in path:
            raise _not_a_location(location)
        require_utf8(path)
        return os.path.abspath(path)
    rest = uri["rest"].rstrip("/")
    if scheme not in _S3_SCHEMES or uri["slashes"] != "//" or not _is_bucket_and_prefix(rest):
        raise _not_a_location(location, rest if scheme in _S3_SCHEMES else "")
    return f"s3://{rest}"


def _is_bucket_and_prefix(rest: str) -> bool:
    """Whether all clients of S3 would read the same keys from this bucket and prefix."""
    bucket, *parts = rest.split("/")
    return bool(_BUCKET.fullmatch(bucket)) and not {"", ".", ".."} & set(parts)


def _not_a_location(location: str, rest: str = "") -> InputError:
    suggestion = "/".join(part for part in rest.split("/") if part not in ("", ".", ".."))
    hint = f" (did you mean s3://{suggestion}?)" if _is_bucket_and_prefix(suggestion) else ""
    shown = mask_secrets(location)
    return InputError(
        f"Found the location {shown!r}; expected a local path or s3://bucket/prefix{hint}.",
        path=shown,
    )
