"""An HTTP proxy that injects faults between a client and a real S3 server.

Requests are forwarded byte by byte, so signatures stay valid: clients sign for the proxy's own
address, and the server checks the Host header that it receives.

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

FaultKind = Literal["drop_before", "reply_dropped", "reset_in_body", "status_503", "delay"]

_BUSY_BODY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b"
    % (len(_BUSY_BODY), _BUSY_BODY)
)
_TIMEOUT_S = 90  # without any bytes, after which a connection is closed


@dataclass
class FaultRule:
    """A fault and the requests that it applies to.

    Attributes:
        kind: `drop_before`: the connection is closed before the server gets the request;
            `reply_dropped`: the server handles the request, and its reply is dropped;
            `reset_in_body`: half of the request's body is forwarded, then both connections are
            reset; `status_503`: the proxy answers that the store is busy; `delay`: the request is
            forwarded after a pause.
        method: the method of the requests; None for any.
        key: substring of the decoded path and query.
        skip: number of matching requests to forward first.
        times: number of requests to fail after that; None for all.
        share: probability that a matching request fails, drawn with the proxy's seed.
        seconds: length of a delay.
    """

    kind: FaultKind
    method: str | None = None
    key: str = ""
    skip: int = 0
    times: int | None = 1
    share: float = 1.0
    seconds: float = 0.0


class FaultProxy:
    """Listens on loopback, forwards to one server, and counts the injected faults.

    Attributes:
        endpoint: URL of the proxy.
        injected: number of faults by kind.
        forwarded: number of requests that no rule applied to.
    """

    def __init__(self, target: str, seed: int = 0) -> None:
        """Prepares a proxy, which `with` starts.

        Args:
            target: URL of the server.
            seed: for rules with a share.
        """
        url = urlsplit(target)
        self._target = (url.hostname or "127.0.0.1", url.port or 80)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._rules: list[FaultRule] = []
        self._connections: set[socket.socket] = set()
        self._closing = threading.Event()
        self.injected: Counter[str] = Counter()
        self.forwarded = 0

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
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def add(self, *rules: FaultRule) -> None:
        """Adds rules; the first one that matches a request applies."""
        with self._lock:
            self._rules += rules

    def clear(self) -> None:
        """Removes all rules."""
        with self._lock:
            self._rules = []

    def _next_rule(self, method: str, key: str) -> FaultRule | None:
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
            self.forwarded += 1
            return None

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Forwards the requests of one connection in turn, each over a connection of its own."""
        with self._track(client), client.makefile("rb") as incoming:
            while request := _read_message(incoming, client):
                method, path = request.head.split(b" ", 2)[:2]
                rule = self._next_rule(method.decode(), unquote(path.decode()))
                kind = None if rule is None else rule.kind
                if rule is not None and kind == "delay":
                    self._closing.wait(rule.seconds)
                if kind == "drop_before":
                    return
                if kind == "status_503":
                    client.sendall(_BUSY)
                elif not self._forward(client, request, method == b"HEAD", kind):
                    return

    def _forward(
        self, client: socket.socket, request: "_Message", no_body: bool, kind: FaultKind | None
    ) -> bool:
        """Forwards a request and its reply; returns whether the client may send another request."""
        server = socket.create_connection(self._target, timeout=_TIMEOUT_S)
        with self._track(server), server.makefile("rb") as answers:
            if kind == "reset_in_body":
                server.sendall(request.head + request.body[: len(request.body) // 2])
                for side in (client, server):  # a linger time of 0: RST, not FIN
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            server.sendall(request.head + request.body)
            reply = _read_message(answers, None, no_body)
            while reply and reply.head.startswith(
                b"HTTP/1.1 1"
            ):  # 100 Continue: all was sent already
                reply = _read_message(answers, None, no_body)
            if reply is None or kind == "reply_dropped":
                return False
            client.sendall(reply.head + reply.body)
            return reply.has_length
        return False  # the server is gone

    def _track(self, connection: socket.socket) -> "_TrackedConnection":
        return _TrackedConnection(self, connection)


@dataclass
class _TrackedConnection:
    """A connection that the proxy can shut down, and whose errors are ignored."""

    proxy: FaultProxy
    connection: socket.socket

    def __enter__(self) -> None:
        self.connection.settimeout(_TIMEOUT_S)
        with self.proxy._lock:
            self.proxy._connections.add(self.connection)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        with self.proxy._lock:
            self.proxy._connections.discard(self.connection)
        self.connection.close()
        return kind is not None and issubclass(kind, OSError)


@dataclass
class _Message:
    """The bytes of a request or a reply.

    Attributes:
        head: request or status line and headers.
        body: as it was sent, chunked or not.
        has_length: whether the head says where the body ends, so that another message may follow.
    """

    head: bytes
    body: bytes
    has_length: bool = True


def _read_message(
    stream: BinaryIO, client: socket.socket | None, no_body: bool = False
) -> _Message | None:
    """The next message; None if there is none, or only a part of one.

    Args:
        stream: the stream of a connection.
        client: for a request, the client that may wait for 100 Continue; None for a reply.
        no_body: whether this is the reply to a HEAD request.
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
    if client is not None and fields.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if no_body or head.split(b" ")[1] in (b"204", b"304", b"100"):
        return _Message(head, b"")
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        return _Message(head, _read_chunks(stream))
    if client is None and b"content-length" not in fields:
        return _Message(head, stream.read(), has_length=False)
    size = int(fields.get(b"content-length", 0))
    body = stream.read(size)
    # A partial request is dropped; a partial reply is forwarded, and is the last one.
    if client is not None and len(body) < size:
        return None
    return _Message(head, body, has_length=len(body) == size)


def _read_chunks(stream: BinaryIO) -> bytes:
    """A chunked body as it was sent, up to the empty line after its last chunk."""
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
