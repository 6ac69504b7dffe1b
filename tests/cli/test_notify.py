"""Messages through Apprise, to a real HTTP server."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from visrec.cli.notify import NotifyConfig, notify, require_notifier
from visrec.errors import InputError

Received = list[dict[str, Any]]


@pytest.fixture
def service() -> Iterator[tuple[str, Received]]:
    """An address that takes Apprise's JSON messages, and the messages that it has taken."""
    received: Received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/full" else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def test_message_reaches_the_service(service: tuple[str, Received]) -> None:
    url, received = service
    config = NotifyConfig(url=url)
    require_notifier(config)
    assert notify(config, "a night failed", "because of this")
    assert received[0]["title"] == "a night failed"
    assert received[0]["message"] == "because of this"


def test_refused_message_is_reported(service: tuple[str, Received]) -> None:
    url, _ = service
    assert not notify(NotifyConfig(url=f"{url}/full"), "title", "body")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nowhere://user:secret@host", r"nowhere://\.\.\."),
        ("mailto:user:secret@host", r"mailto:\.\.\."),
        ("secret/secret", r"\.\.\."),
    ],
)
def test_unknown_service_is_refused_without_its_secrets(url: str, shown: str) -> None:
    with pytest.raises(InputError, match=rf"Found --notify\.url {shown}, which is not") as caught:
        require_notifier(NotifyConfig(url=url))
    assert "secret" not in str(caught.value)


def test_nobody_is_told_without_a_url() -> None:
    require_notifier(NotifyConfig())
    assert notify(NotifyConfig(), "title", "body")
