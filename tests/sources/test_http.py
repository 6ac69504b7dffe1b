"""Pictures from a real HTTP server that fails, throttles, redirects and cuts off."""

import socket
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from tests.http_server import Faults, Page, PictureServer
from visrec.errors import InputError, StorageError
from visrec.sources import http
from visrec.sources.http import TOO_LARGE, Answer, fetch, hide_secrets, is_http
from visrec.sources.images import LISTING_SCHEMA, fetch_pictures

DATA = bytes(range(256)) * 400
MOST = 200_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PictureServer]:
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(http, "_HOSTS", {})
    with PictureServer({"/a.jpg": Page(DATA, modified=1e9)}) as found:
        yield found


def why(uri: str, most: int = MOST) -> StorageError:
    with pytest.raises(StorageError) as caught:
        fetch(uri, most)
    return caught.value


def test_picture_comes_with_its_validators(server: PictureServer) -> None:
    answer = fetch(server.uri("/a.jpg"), MOST)
    assert answer.data == DATA
    assert answer.etag
    assert answer.etag.startswith('"')
    assert answer.last_modified == "Sun, 09 Sep 2001 01:46:40 GMT"


@pytest.mark.parametrize("kind", ["etag", "last_modified"])
def test_unchanged_picture_is_not_sent_again(server: PictureServer, kind: str) -> None:
    server.pages["/a.jpg"].etag = kind == "etag"
    uri = server.uri("/a.jpg")
    first = fetch(uri, MOST)
    again = fetch(uri, MOST, first.etag, first.last_modified)
    assert (again.data, server.statuses) == (None, {"200": 1, "304": 1})
    server.pages["/a.jpg"] = Page(DATA[:9], modified=2e9, etag=kind == "etag")
    assert fetch(uri, MOST, first.etag, first.last_modified).data == DATA[:9]


def test_server_without_validators_sends_the_picture_again(server: PictureServer) -> None:
    server.pages["/a.jpg"] = Page(DATA, etag=False)
    assert fetch(server.uri("/a.jpg"), MOST) == Answer(data=DATA)


def test_every_kind_of_failure_is_tried_again(server: PictureServer) -> None:
    server.faults = Faults(fail_every=2)
    for _ in range(12):
        assert fetch(server.uri("/a.jpg"), MOST).data == DATA
    assert min(server.statuses[fault] for fault in ("500", "cut off", "hang up")) >= 2


def test_throttled_server_gives_all_pictures(server: PictureServer) -> None:
    server.faults = Faults(requests_per_s=150, retry_after="1")
    found: list[Answer] = []

    def work() -> None:
        found.extend(fetch(server.uri("/a.jpg"), MOST) for _ in range(12))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.data for answer in found} == {DATA}
    assert (len(found), server.statuses["200"]) == (192, 192)
    assert server.statuses["429"]


@pytest.mark.parametrize(("status", "times"), [(404, 1), (410, 1), (403, 1), (500, 8), (429, 8)])
def test_refusal_says_why_and_how_often_the_server_was_asked(
    server: PictureServer, status: int, times: int
) -> None:
    server.pages["/gone.jpg"] = Page(status=status)
    message = str(why(server.uri("/gone.jpg")))
    assert f"{server.uri('/gone.jpg')}: the server answered {status}" in message
    assert server.requests["/gone.jpg"] == times
    assert (f"asked {times} times" in message) == (times > 1)


def test_dead_server_is_asked_once_for_each_picture_in_the_end(
    server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ATTEMPTS_IN_VAIN", 3)
    server.pages["/x.jpg"] = Page(status=503)
    for _ in range(6):
        why(server.uri("/x.jpg"))
    assert server.requests["/x.jpg"] == 3 * http.ATTEMPTS + 3
    assert fetch(server.uri("/a.jpg"), MOST).data == DATA  # from now on it is patient again
    why(server.uri("/x.jpg"))
    assert server.requests["/x.jpg"] == 4 * http.ATTEMPTS + 3


def test_wait_that_a_server_asks_for_is_kept_and_bounded(
    server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(http.time, "sleep", pauses.append)
    for value, seconds in (("7", 7), ("86400", 60), ("soon", 0.1), ("-3", 0.1)):
        server.pages["/x.jpg"] = Page(status=429, headers={"Retry-After": value})
        pauses.clear()
        why(server.uri("/x.jpg"))
        assert len(pauses) == http.ATTEMPTS - 1
        assert pauses[0] == pytest.approx(seconds, abs=0.1)


def test_picture_beyond_the_limit_is_not_read(server: PictureServer) -> None:
    for has_length in (True, False):
        server.pages["/big.jpg"] = Page(DATA * 9, has_length=has_length)
        error = why(server.uri("/big.jpg"), len(DATA))
        assert error.code == TOO_LARGE
        assert f"more than {len(DATA)} bytes" in str(error)
    assert fetch(server.uri("/a.jpg"), len(DATA)).data == DATA


def test_answer_without_a_length_may_not_be_whole(server: PictureServer) -> None:
    server.pages["/a.jpg"] = Page(DATA, has_length=False)
    answer = fetch(server.uri("/a.jpg"), MOST)
    assert (answer.data, answer.is_whole) == (DATA, False)


def test_redirects_are_followed_to_a_limit_and_to_no_other_scheme(server: PictureServer) -> None:
    for n in range(9):
        location = f"/r{n + 1}" if n < 8 else "/a.jpg"
        server.pages[f"/r{n}"] = Page(status=302, headers={"Location": location})
    assert fetch(server.uri("/r4"), MOST).data == DATA
    assert "more than 5 times" in str(why(server.uri("/r0")))
    for target in ("file:///etc/passwd", "s3://bucket/key", "ftp://127.0.0.1/a"):
        server.pages["/away"] = Page(status=301, headers={"Location": target})
        scheme = target.partition(":")[0]
        assert f"redirects to {scheme}://" in str(why(server.uri("/away")))


def test_user_info_is_sent_to_its_server_alone_and_never_shown(server: PictureServer) -> None:
    with PictureServer({"/b.jpg": Page(DATA)}) as other:
        server.pages["/near"] = Page(status=302, headers={"Location": "/a.jpg"})
        server.pages["/far"] = Page(status=302, headers={"Location": other.uri("/b.jpg")})
        for path in ("/near", "/far"):
            assert fetch(server.uri(path, "me:s%40cret@"), MOST).data == DATA
        basic = "Basic bWU6c0BjcmV0"  # me:s@cret
        assert [server.authorizations[path] for path in ("/near", "/far", "/a.jpg")] == [basic] * 3
        assert other.authorizations == {"/b.jpg": None}
    error = why(server.uri("/none@2x.jpg", "me:s%40cret@"))
    assert "cret" not in f"{error} {error!r} {vars(error)}"
    assert "***@127.0.0.1" in str(error)
    assert "/none@2x.jpg" in str(error)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://shop.example/a@2x.jpg?b@c", "https://shop.example/a@2x.jpg?..."),
        (
            "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Signature=f0",
            "https://bucket.s3.amazonaws.com/a.jpg?...",
        ),
        ("https://shop.example?sig=f0", "https://shop.example?..."),
        ("https://me:secret@shop/a?sig=f0@b", "https://***@shop/a?..."),
        ("https://me:sec/ret@shop/a?sig=f0", "https://***@shop/a?..."),
        ("s3://shop/what?.jpg", "s3://shop/what?.jpg"),
        ("/data/what?@2x.jpg", "/data/what?@2x.jpg"),
        ("http://me:secret@[::1]:80/a", "http://***@[::1]:80/a"),
        ("https://me:se@cret@shop/a@b", "https://***@shop/a@b"),
        ("https://me:sec/ret@shop/a", "https://***@shop/a"),
        ("http://127.0.0.1:8000/a", "http://127.0.0.1:8000/a"),
    ],
)
def test_only_secrets_are_hidden(uri: str, shown: str) -> None:
    assert hide_secrets(uri) == shown


@pytest.mark.parametrize("uri", ["http://", "https://:80/a", "http://[::1/a", "http://a:b/c.jpg"])
def test_address_that_is_none_is_refused(uri: str) -> None:
    assert is_http(uri)
    assert "address" in str(why(uri))


def test_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        message = str(why(f"http://127.0.0.1:{port}/a.jpg"))
    assert f"127.0.0.1:{port}" in message
    assert "refused" in message


def test_slow_answer_is_given_up(server: PictureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_PICTURE_SECONDS", -1.0)
    assert "bytes came in" in str(why(server.uri("/a.jpg")))


def test_proxy_of_the_environment_is_used(
    server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PictureServer({"http://shop.example/a.jpg": Page(DATA)}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.uri(""))
        assert fetch("http://shop.example/a.jpg", MOST).data == DATA
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert fetch(server.uri("/a.jpg"), MOST).data == DATA
        assert proxy.requests == {"http://shop.example/a.jpg": 1}


def test_proxy_without_a_scheme_is_an_http_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with PictureServer({"http://shop.example/a.jpg": Page(DATA)}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.uri("").removeprefix("http://"))
        assert fetch("http://shop.example/a.jpg", MOST).data == DATA


def test_proxy_of_another_kind_is_refused_for_all_pictures(
    server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "socks5://me:secret@proxy.example:1080")
    assert fetch(server.uri("/a.jpg"), MOST).data == DATA  # http, without a proxy
    row = dict.fromkeys(LISTING_SCHEMA.names) | {"uri": "https://shop.example/a.jpg"}
    with pytest.raises(InputError, match=r"https_proxy 'socks5://\*\*\*@proxy.example:1080'; ex"):
        fetch_pictures(pa.Table.from_pylist([row], LISTING_SCHEMA), MOST)
    monkeypatch.setenv("no_proxy", "shop.example")
    assert "asked" in str(why("https://shop.example/a.jpg"))
