"""What stands between a client and a store in companies: TLS of a private authority, and a proxy.

Both pass on raw bytes, so signatures stay valid: the store checks the Host header that it is sent.
"""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Front:
    """Listens on loopback and connects each client to wherever its greeting leads.

    Args:
        greet: takes an accepted connection and gives the two sides to connect, or None.
    """

    def __init__(
        self, greet: Callable[[socket.socket], tuple[socket.socket, socket.socket] | None]
    ) -> None:
        self._greet = greet
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in (self._listener, *self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):  # a client that trusts nobody here, among others
            sides = self._greet(client)
            if sides is None:
                client.close()
                return
            self._open += sides
            back = threading.Thread(target=_pump, args=sides, daemon=True)
            back.start()
            _pump(*reversed(sides))


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for side in (source, target):
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def tls_front(target: str, folder: Path) -> Front:
    """TLS before a server, for 127.0.0.1 by a certificate of the authority in `folder`/ca.pem."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(_certificate(folder))
    where = urlsplit(target)

    def greet(client: socket.socket) -> tuple[socket.socket, socket.socket]:
        secured = context.wrap_socket(client, server_side=True)
        return secured, socket.create_connection((str(where.hostname), int(where.port or 0)))

    return Front(greet)


class Tunnel(Front):
    """An HTTP proxy that connects (CONNECT) and counts for whom, and with which Authorization."""

    def __init__(self) -> None:
        super().__init__(self._connect)
        self.asked: list[str] = []

    def _connect(self, client: socket.socket) -> tuple[socket.socket, socket.socket]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        self.asked.append(head.decode())
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return client, server


def _certificate(folder: Path) -> Path:
    """Writes ca.pem, and a key with the certificate that it signed, whose path is returned."""
    authority, key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "visrec's test authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")])
    now = datetime.datetime.now(datetime.UTC)

    def signed(name: x509.Name, public: ec.EllipticCurvePublicKey, ca: bool) -> x509.Certificate:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(authority, hashes.SHA256())
        )

    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(signed(issuer, authority.public_key(), True).public_bytes(pem))
    chain = folder / "store.pem"
    chain.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed(subject, key.public_key(), False).public_bytes(pem)
    )
    return chain
