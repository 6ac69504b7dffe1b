"""A real HTTP server for tests, on loopback: it serves pictures, and fails as servers do.

with PictureServer({"/a.jpg": Page(data)}, Faults(fail_every=20)) as server:
    fetch(server.uri("/a.jpg"), max_bytes)
"""

import hashlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass
class Faults:
    """How often the server fails; 0 is never.

    Attributes:
        fail_every: one of so many requests gets 500, is cut off in its body, or is hung up on, in
            turn.
        requests_per_s: above this rate requests get 429.
        retry_after: header of these answers.
    """

    fail_every: int = 0
    requests_per_s: float = 0
    retry_after: str = "0"


@dataclass
class Page:
    """What is served at one path.

    Attributes:
        data: the body.
        etag: whether it has an ETag, from its content.
        modified: its Last-Modified as seconds; None for no such header.
        status: the status of the answer, and of every answer to this path.
        headers: more of them.
        has_length: whether the answer says how long it is.
    """

    data: bytes = b""
    etag: bool = True
    modified: float | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    has_length: bool = True

    def validators(self) -> dict[str, str]:
        found = {"ETag": f'"{hashlib.sha256(self.data).hexdigest()[:16]}"'} if self.etag else {}
        if self.modified is not None:
            found["Last-Modified"] = formatdate(self.modified, usegmt=True)
        return found


class PictureServer:
    """Serves pages by path, and counts the answers by status and the requests of each path."""

    def __init__(self, pages: dict[str, Page], faults: Faults | None = None) -> None:
        self.pages, self.faults = pages, faults or Faults()
        self.statuses: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.authorizations: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self._tokens, self._refilled = 0.0, time.monotonic()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                """Says nothing: the answers are counted."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    def uri(self, path: str, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.port}{path}"

    def forget(self) -> None:
        """Starts to count anew."""
        with self._lock:
            self.statuses.clear()
            self.requests.clear()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        page = self.pages.get(handler.path, Page(status=404))
        fault = self._fault(handler)
        is_known = page.status == 200 and self._is_known(handler, page)
        if fault == "cut off" and (page.status != 200 or is_known):
            fault = ""  # there is nothing to cut
        if fault:
            self._count(fault)
        if fault == "hang up":
            handler.close_connection = True
            handler.connection.close()
        elif fault in ("429", "500"):
            self._send(handler, Page(status=int(fault)), self._retry_after(fault))
        elif is_known:
            self._send(handler, Page(status=304), page.validators())
        else:
            cut = len(page.data) // 2 if fault == "cut off" else None
            self._send(handler, page, page.validators() if page.status == 200 else {}, cut)

    def _count(self, status: str) -> None:
        with self._lock:
            self.statuses[status] += 1

    def _retry_after(self, fault: str) -> dict[str, str]:
        return {"Retry-After": self.faults.retry_after} if fault == "429" else {}

    def _fault(self, handler: BaseHTTPRequestHandler) -> str:
        with self._lock:
            self.requests[handler.path] += 1
            self.authorizations[handler.path] = handler.headers.get("Authorization")
            now, rate = time.monotonic(), self.faults.requests_per_s
            if rate:
                self._tokens = min(self._tokens + (now - self._refilled) * rate, rate / 5)
                self._refilled = now
                if self._tokens < 1:
                    return "429"
                self._tokens -= 1
            every, number = self.faults.fail_every, self.requests.total()
            if every and not number % every:
                return ("500", "cut off", "hang up")[number // every % 3]
            return ""

    def _is_known(self, handler: BaseHTTPRequestHandler, page: Page) -> bool:
        sent, validators = handler.headers, page.validators()
        if (etag := sent.get("If-None-Match")) is not None:
            return etag == validators.get("ETag")
        since = sent.get("If-Modified-Since")
        return since is not None and since == validators.get("Last-Modified")

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        page: Page,
        headers: dict[str, str],
        cut: int | None = None,
    ) -> None:
        if cut is None and page.status not in (429, 500):
            self._count(str(page.status))
        handler.send_response(page.status)
        for name, value in {**headers, **page.headers}.items():
            handler.send_header(name, value)
        if page.has_length:
            handler.send_header("Content-Length", str(len(page.data)))
        else:
            handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(page.data[:cut])
        if cut is not None:
            handler.close_connection = True
