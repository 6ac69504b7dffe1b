"""What companies put between a client and a store: TLS with a private authority, and a proxy.

Both relay raw bytes, so signatures stay valid: the store checks the Host header that it receives.
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


class Relay:
    """Listens on loopback and relays each client to a server.

    Attributes:
        port: that it listens on.
    """

    def __init__(
        self, connect: Callable[[socket.socket], tuple[socket.socket, socket.socket] | None]
    ) -> None:
        """Prepares a relay, which `with` starts.

        Args:
            connect: maps an accepted connection to the two connections to join, or to None.
        """
        self._connect = connect
        self._connections: list[socket.socket] = []

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
        for connection in (self._listener, *self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):  # such as of a client that does not trust the certificate
            sides = self._connect(client)
            if sides is None:
                client.close()
                return
            self._connections += sides
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


def tls_relay(target: str, folder: Path) -> Relay:
    """TLS in front of a server, with a certificate for 127.0.0.1 signed by `folder`/ca.pem."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(_certificate(folder))
    url = urlsplit(target)

    def connect(client: socket.socket) -> tuple[socket.socket, socket.socket]:
        secured = context.wrap_socket(client, server_side=True)
        return secured, socket.create_connection((str(url.hostname), int(url.port or 0)))

    return Relay(connect)


class Tunnel(Relay):
    """An HTTP proxy for CONNECT requests, which it records.

    Attributes:
        requests: head of each request.
    """

    def __init__(self) -> None:
        super().__init__(self._open_tunnel)
        self.requests: list[str] = []

    def _open_tunnel(self, client: socket.socket) -> tuple[socket.socket, socket.socket]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        self.requests.append(head.decode())
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return client, server


def _certificate(folder: Path) -> Path:
    """Writes ca.pem and the path that is returned: a key and the certificate signed for it."""
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
