"""An HTTP proxy that breaks what it is told to break, between a client and a real S3 server.

What is passed on is passed on byte by byte, so signatures stay valid: clients sign for the proxy's
own address, and the server checks the Host header that it is sent.

    with FaultProxy(server.endpoint) as proxy:
        proxy.add(Rule("reply_dropped", method="PUT", key="_manifest.json"))
        # clients use proxy.endpoint
        assert proxy.injected == {"reply_dropped": 1}
"""

import random
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Literal, Self
from urllib.parse import unquote, urlsplit

Kind = Literal["drop_before", "reply_dropped", "reset_in_body", "status_503", "delay"]

_BUSY_BODY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b"
    % (len(_BUSY_BODY), _BUSY_BODY)
)
_SILENCE = 90  # seconds after which a connection on which nothing comes is given up


@dataclass
class Rule:
    """A fault and the requests that it befalls.

    Args:
        kind: `drop_before`: the connection is closed before the server hears of the request;
            `reply_dropped`: the server did what was asked, the reply is swallowed;
            `reset_in_body`: half of the request's body is passed on, then both sides are reset;
            `status_503`: the proxy answers that the store is busy; `delay`: passed on later.
        method: of the requests, any by default.
        key: what the decoded path and query contain.
        skip: so many of them pass first.
        times: so many are hit after that; None for all.
        share: the part of them that is hit, drawn with the proxy's seed.
        seconds: of a delay.
    """

    kind: Kind
    method: str | None = None
    key: str = ""
    skip: int = 0
    times: int | None = 1
    share: float = 1.0
    seconds: float = 0.0


class FaultProxy:
    """Listens on loopback, passes on to one server, and counts what it breaks.

    Args:
        target: the server's URL.
        seed: of the shares.
    """

    def __init__(self, target: str, seed: int = 0) -> None:
        where = urlsplit(target)
        self._target = (where.hostname or "127.0.0.1", where.port or 80)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._open: set[socket.socket] = set()
        self._closing = threading.Event()
        self.injected: Counter[str] = Counter()
        self.passed = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def add(self, *rules: Rule) -> None:
        """More rules; the first that fits a request decides."""
        with self._lock:
            self._rules += rules

    def clear(self) -> None:
        """No more faults."""
        with self._lock:
            self._rules = []

    def _fault(self, method: str, key: str) -> Rule | None:
        with self._lock:
            for rule in self._rules:
                if rule.method not in (None, method) or rule.key not in key or rule.times == 0:
                    continue
                if rule.skip:
                    rule.skip -= 1
                elif self._random.random() < rule.share:
                    rule.times = None if rule.times is None else rule.times - 1
                    self.injected[rule.kind] += 1
                    return rule
            self.passed += 1
            return None

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Requests of one connection, one after another, each to a connection of its own."""
        with self._kept(client), client.makefile("rb") as incoming:
            while request := _message(incoming, client):
                method, path = request.head.split(b" ", 2)[:2]
                rule = self._fault(method.decode(), unquote(path.decode()))
                kind = None if rule is None else rule.kind
                if rule is not None and kind == "delay":
                    self._closing.wait(rule.seconds)
                if kind == "drop_before":
                    return
                if kind == "status_503":
                    client.sendall(_BUSY)
                elif not self._exchange(client, request, method == b"HEAD", kind):
                    return

    def _exchange(
        self, client: socket.socket, request: "_Message", no_body: bool, kind: Kind | None
    ) -> bool:
        """Passes a request on and its reply back; False where the connection is over."""
        server = socket.create_connection(self._target, timeout=_SILENCE)
        with self._kept(server), server.makefile("rb") as answers:
            if kind == "reset_in_body":
                server.sendall(request.head + request.body[: len(request.body) // 2])
                for side in (client, server):  # closed with time 0 to linger: RST, not FIN
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            server.sendall(request.head + request.body)
            reply = _message(answers, None, no_body)
            while reply and reply.head.startswith(b"HTTP/1.1 1"):  # go on: all was sent already
                reply = _message(answers, None, no_body)
            if reply is None or kind == "reply_dropped":
                return False
            client.sendall(reply.head + reply.body)
            return reply.ends
        return False  # the server has gone

    def _kept(self, connection: socket.socket) -> "_Kept":
        return _Kept(self, connection)


@dataclass
class _Kept:
    """A connection that is known until it ends, and whose failures end it quietly."""

    proxy: FaultProxy
    connection: socket.socket

    def __enter__(self) -> None:
        self.connection.settimeout(_SILENCE)
        with self.proxy._lock:
            self.proxy._open.add(self.connection)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        with self.proxy._lock:
            self.proxy._open.discard(self.connection)
        self.connection.close()
        return kind is not None and issubclass(kind, OSError)


@dataclass
class _Message:
    """A request or a reply as it came. `ends`: it told where, so that another may follow it."""

    head: bytes
    body: bytes
    ends: bool = True


def _message(
    stream: BinaryIO, asker: socket.socket | None, no_body: bool = False
) -> _Message | None:
    """The next message; None where there is none, or not a whole one.

    Args:
        stream: where it comes from.
        asker: who wants to hear that it may send the body, for a request; None for a reply.
        no_body: it answers a HEAD.
    """
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if asker is not None and fields.get(b"expect", b"").lower() == b"100-continue":
        asker.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if no_body or head.split(b" ")[1] in (b"204", b"304", b"100"):
        return _Message(head, b"")
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        return _Message(head, _chunks(stream))
    if asker is None and b"content-length" not in fields:
        return _Message(head, stream.read(), ends=False)
    size = int(fields.get(b"content-length", 0))
    body = stream.read(size)
    # Half a request is no request; half a reply is passed on as it is, and is the last.
    if asker is not None and len(body) < size:
        return None
    return _Message(head, body, ends=len(body) == size)


def _chunks(stream: BinaryIO) -> bytes:
    """A chunked body as it came, to the empty line behind its last chunk."""
    body = b""
    while line := stream.readline():
        body += line
        size = int(line.split(b";")[0], 16)
        if size == 0:
            while (line := stream.readline()).strip():
                body += line
            return body + line
        body += stream.read(size + 2)
    return body
