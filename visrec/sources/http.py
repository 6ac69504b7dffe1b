"""Pictures at `http://` and `https://` addresses: limited in time and size, requested again if a
server fails, and not transferred again if unchanged.

A request is repeated after a pause that doubles each time, and after a `Retry-After` at the
earliest. A server that says "too many requests" gets fewer at once, and slowly more again. After
some pictures in a row that a server did not give, it is asked only once for each of the others.

Private addresses are allowed, since shops have servers of their own, but a redirect leads to no
other scheme. User info in an address is sent as a password, and never shown.
"""

import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, LocationValueError
from urllib3.util import Retry, Timeout, Url, parse_url

from visrec.errors import InputError, StorageError
from visrec.storage.s3_settings import mask_secrets

# Of one process to one server, at most. S3 answers in about 20 ms, and one core decodes 100/s.
PARALLEL_REQUESTS = 16
ATTEMPTS = 8  # with the pauses below: a server may fail for half a minute
ATTEMPTS_IN_VAIN = 10  # pictures in a row without an answer, until a server is asked only once
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 60.0  # seconds
_MAX_REDIRECTS = 5
_TIMEOUT = Timeout(connect=10, read=30)  # seconds without any answer
_PICTURE_SECONDS = 120.0  # for the bytes of one picture, however they come
_PIECE = 1 << 16  # bytes that are read at once

TOO_LARGE = "too_many_bytes"  # the `code` of the error about a picture beyond the limit
_MAY_PASS = {
    408,
    425,
    429,
}  # statuses, in addition to those from 500 on, that another try may change
_BUSY = {429, 503}
_REDIRECTS = {301, 302, 303, 307, 308}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The bytes of a picture, or that they have not changed.

    Attributes:
        data: None if the picture is the one that the validators of the request belong to.
        etag: validator of these bytes, null if the server gave none.
        last_modified: likewise.
        is_whole: whether the server said how many bytes there are; otherwise some may be missing.
    """

    data: bytes | None
    etag: str | None = None
    last_modified: str | None = None
    is_whole: bool = True


def is_http(uri: str) -> bool:
    """Whether this is an address for `fetch`."""
    return uri[:8].lower().startswith(("http://", "https://"))


def fetch(
    uri: str, max_bytes: int, etag: str | None = None, last_modified: str | None = None
) -> Answer:
    """Asks for a picture.

    Args:
        uri: its address.
        max_bytes: no more is read.
        etag: validator of the bytes that are known already.
        last_modified: likewise.

    Raises:
        StorageError: the server does not give the picture. `code` is `TOO_LARGE` if it has more
            than `max_bytes` bytes.
        InputError: the environment names a proxy that is not an HTTP proxy.
    """
    headers = {"User-Agent": "visrec", "Accept": "image/*,*/*;q=0.8"}
    # Compressed pictures hardly get smaller, and their length would be unknown.
    headers |= {"Accept-Encoding": "identity"}
    headers |= {"If-None-Match": etag} if etag else {}
    headers |= {"If-Modified-Since": last_modified} if last_modified else {}
    host = _HOSTS.setdefault(_host_name(uri), _Host())
    with host.slot():
        return _fetch_patiently(uri, headers, max_bytes, host)


def _fetch_patiently(uri: str, headers: Mapping[str, str], max_bytes: int, host: "_Host") -> Answer:
    attempts = host.attempts
    for attempt in range(1, attempts + 1):
        try:
            answer = _request(uri, headers, max_bytes)
        except StorageError:  # an answer too, and a quick one
            host.answered()
            raise
        except _TemporaryError as error:
            host.failed(is_busy=error.is_busy)
            if attempt == attempts:
                host.gave_up()
                raise _error(uri, f"{error.reason} (asked {attempt} times)") from error
            pause = _FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            time.sleep(min(max(pause, error.wait), _LONGEST_PAUSE))
        else:
            host.answered()
            return answer
    raise AssertionError("a server is asked at least once")


class _TemporaryError(Exception):
    """Another try may succeed.

    Attributes:
        reason: what happened.
        wait: seconds after which the server wants to be asked again.
        is_busy: whether the server asked for fewer requests.
    """

    def __init__(self, reason: str, wait: float = 0, *, is_busy: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.is_busy = reason, wait, is_busy


def hide_secrets(uri: str) -> str:
    """The address without a password and without its query, which is a secret if the address is
    presigned; an @ in a path, as in `shoe@2x.jpg`, stays."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    has_user = not re.fullmatch(r"[^@:]*(:\d*)?|\[[^@]*\](:\d*)?", authority)
    if has_user and "@" not in authority:  # a password with a slash, perhaps
        return mask_secrets(uri)
    host = f"***@{authority.rpartition('@')[2]}" if has_user else authority
    path = rest[len(authority) :]
    if is_http(uri):  # elsewhere a question mark is part of a name
        path = re.sub(r"\?.*", "?...", path, flags=re.DOTALL)
    return f"{scheme}{separator}{host}{path}"


def _error(uri: str, reason: str, code: str | None = None) -> StorageError:
    shown = hide_secrets(uri)
    return StorageError(f"Could not fetch {shown}: {reason}.", path=shown, code=code, reason=reason)


# One request.


def _request(uri: str, headers: Mapping[str, str], max_bytes: int) -> Answer:
    """One request, and what it is redirected to.

    Raises:
        StorageError: the server refuses, and another try would not help.
        _TemporaryError: it may.
    """
    address = uri
    trusted = None
    for _ in range(_MAX_REDIRECTS + 1):
        url = _parse(uri, address)
        origin = (url.scheme, url.host, url.port)
        # A password is for the server that it was given for.
        credentials = url.auth or (trusted[1] if trusted and trusted[0] == origin else None)
        trusted = trusted or (origin, credentials)
        with _open(uri, url, {**headers, **_authorization(credentials)}) as response:
            if response.status not in _REDIRECTS:
                return _answer(uri, response, max_bytes, is_conditional=_has_validators(headers))
            address = urljoin(url._replace(auth=None).url, response.headers.get("Location", ""))
            if not is_http(address):
                scheme = urlsplit(address).scheme
                raise _error(uri, f"the server redirects to {scheme}://, which is not followed")
    raise _error(uri, f"the server redirects more than {_MAX_REDIRECTS} times")


def _parse(uri: str, address: str) -> Url:
    try:
        url = parse_url(address)
    except LocationValueError as error:
        raise _error(uri, "it is not a valid address") from error
    if not url.host:
        raise _error(uri, "the address names no server")
    return url._replace(fragment=None)


def _authorization(credentials: str | None) -> dict[str, str]:
    if credentials is None:
        return {}
    return dict(urllib3.make_headers(basic_auth=unquote(credentials)))


def _has_validators(headers: Mapping[str, str]) -> bool:
    return not headers.keys().isdisjoint(("If-None-Match", "If-Modified-Since"))


@contextmanager
def _open(
    uri: str, url: Url, headers: Mapping[str, str]
) -> Iterator[urllib3.response.BaseHTTPResponse]:
    """The response to a request; errors of the connection, also while it is read, are temporary."""
    try:
        pool = _pool(_proxy(url))
        response = pool.request(
            "GET",
            url._replace(auth=None).url,
            headers=headers,
            preload_content=False,
            redirect=False,
            retries=False,
            timeout=_TIMEOUT,
        )
        try:
            yield response
        except BaseException:
            response.close()
            raise
        if response.status == HTTPStatus.OK:
            response.release_conn()
        else:
            response.close()  # its body was not read, and may have any length
    except LocationValueError as error:
        raise _error(uri, "it is not a valid address") from error
    except (HTTPError, OSError) as error:
        raise _TemporaryError(_describe(error)) from error


def _describe(error: Exception) -> str:
    """An error of urllib3 without the address of the object that it happened in."""
    text = " ".join(str(error).split()).rpartition(">: ")[2]
    return f"{type(error).__name__}: {text}".rstrip(".")


def _answer(
    uri: str,
    response: urllib3.response.BaseHTTPResponse,
    max_bytes: int,
    *,
    is_conditional: bool,
) -> Answer:
    status, headers = response.status, response.headers
    etag, last_modified = headers.get("ETag"), headers.get("Last-Modified")
    if status == HTTPStatus.NOT_MODIFIED and is_conditional:
        return Answer(data=None, etag=etag, last_modified=last_modified)
    if status == HTTPStatus.OK:
        is_whole = "Content-Length" in headers or "Transfer-Encoding" in headers
        data = _read(uri, response, max_bytes)
        return Answer(data=data, etag=etag, last_modified=last_modified, is_whole=is_whole)
    reason = f"the server answered {status} {response.reason or ''}".rstrip()
    if status in _MAY_PASS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _TemporaryError(reason, _retry_after(response), is_busy=status in _BUSY)
    raise _error(uri, reason)


def _read(uri: str, response: urllib3.response.BaseHTTPResponse, max_bytes: int) -> bytes:
    too_large = _error(uri, f"the picture has more than {max_bytes} bytes", TOO_LARGE)
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    pieces = []
    size = 0
    deadline = time.monotonic() + _PICTURE_SECONDS
    while piece := response.read1(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise too_large
        if time.monotonic() > deadline:
            raise _TemporaryError(f"only {size} bytes came in {_PICTURE_SECONDS:.0f} s")
    return b"".join(pieces)


def _retry_after(response: urllib3.response.BaseHTTPResponse) -> float:
    """Seconds after which the server wants to be asked again; 0 if it does not say."""
    try:
        return Retry(retry_after_max=int(_LONGEST_PAUSE)).get_retry_after(response) or 0.0
    except InvalidHeader:
        return 0.0


# Connections.


@cache
def _pool(proxy: str | None) -> urllib3.PoolManager:
    """The connections of this process, which all threads share."""
    if proxy is None:
        return urllib3.PoolManager(maxsize=PARALLEL_REQUESTS)
    credentials = parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=unquote(credentials) if credentials else None)
    return urllib3.ProxyManager(proxy, maxsize=PARALLEL_REQUESTS, proxy_headers=headers)


def _proxy(url: Url) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for an address; as for curl it is an
    HTTP proxy if it does not say what it is.

    Raises:
        InputError: it is another kind of proxy.
    """
    proxy = getproxies().get(url.scheme or "")
    if proxy is None or proxy_bypass(url.netloc or ""):
        return None
    full = proxy if "://" in proxy else f"http://{proxy.removeprefix('//')}"
    if not is_http(full):
        raise InputError(
            f"Found {url.scheme}_proxy {hide_secrets(full)!r}; expected an HTTP proxy such as "
            f"http://proxy.example:3128, or NO_PROXY with {url.host} if it needs no proxy."
        )
    return full


class _Host:
    """How one server is treated by the threads of this process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limit = float(PARALLEL_REQUESTS)
        self._active = 0
        self._in_vain = 0

    @property
    def attempts(self) -> int:
        """How often it is asked for one picture."""
        return ATTEMPTS if self._in_vain < ATTEMPTS_IN_VAIN else 1

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Waits until another request may begin. Pauses between tries keep their slot."""
        with self._changed:
            self._changed.wait_for(lambda: self._active < int(self._limit))
            self._active += 1
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def answered(self) -> None:
        """Allows more requests at once: one more after as many answers as are allowed now."""
        with self._changed:
            self._in_vain = 0
            self._limit = min(self._limit + 1 / self._limit, PARALLEL_REQUESTS)

    def failed(self, *, is_busy: bool) -> None:
        """Allows half as many requests at once if the server is busy."""
        if is_busy:
            with self._changed:
                self._limit = max(self._limit / 2, 1.0)

    def gave_up(self) -> None:
        """Counts a picture without an answer."""
        with self._changed:
            self._in_vain += 1


_HOSTS: dict[str, _Host] = {}


def _host_name(uri: str) -> str:
    """The part of an address that names the server, in lower case."""
    rest = uri.partition("://")[2]
    return re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2].lower()
