"""What one task of an extraction asks of servers, and which items need no network."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from tests.http_server import Page, PictureServer
from visrec.features.fetch import (
    REUSE,
    Picture,
    fetch_chunk,
    fetch_unchanged_but_needed,
    mark_reused,
)
from visrec.features.planning import _with_validators
from visrec.features.pooling import combine_digests
from visrec.ids import TEXT
from visrec.sources.images import LISTING_SCHEMA
from visrec.storage.schemas import FETCHED

MOST = 10_000


@pytest.fixture
def server() -> Iterator[PictureServer]:
    pages = {f"/{name}": Page(name.encode()) for name in ("a1", "a2", "b1", "c1")}
    with PictureServer(pages) as found:
        yield found


def rows(server: PictureServer, known: list[Picture]) -> pa.Table:
    """The pending pictures of two items, and of c, with what was learned of some before."""
    listing = [
        {"item_id": name[0], "view": name[1], "uri": server.uri(f"/{name}", "me:secret@")}
        for name in ("a1", "a2", "b1", "c1")
    ]
    fetched = [{name: getattr(one, name) or None for name in FETCHED.names} for one in known]
    for row in fetched:
        row |= {"reason": row["reason"] or "", "detail": row["detail"] or ""}
    table = pa.Table.from_pylist(listing, LISTING_SCHEMA)
    return _with_validators(table, pa.Table.from_pylist(fetched, FETCHED))


def digests(pictures: list[Picture], *positions: int) -> pa.ChunkedArray:
    return pa.chunked_array([[combine_digests([pictures[n].digest for n in positions])]], TEXT)


def test_known_pictures_are_not_sent_again_but_their_items_are_reused(
    server: PictureServer,
) -> None:
    first = fetch_chunk(rows(server, []), MOST)
    assert [one.data for one in first] == [b"a1", b"a2", b"b1", b"c1"]
    again = fetch_chunk(rows(server, first), MOST)
    assert [one.data for one in again] == [None] * 4
    assert [one.digest for one in again] == [one.digest for one in first]
    assert server.statuses == {"200": 4, "304": 4}
    mark_reused(again, digests(first, 0, 1))
    assert [one.reason for one in again] == [REUSE, REUSE, "", ""]
    fetch_unchanged_but_needed(
        again, rows(server, first), MOST
    )  # there is no feature of the others
    assert [one.data for one in again] == [None, None, b"b1", b"c1"]


def test_unchanged_view_is_sent_again_if_another_view_of_the_item_has_changed(
    server: PictureServer,
) -> None:
    first = fetch_chunk(rows(server, []), MOST)
    server.pages["/a2"] = Page(b"changed")
    server.forget()
    again = fetch_chunk(rows(server, first), MOST)
    for positions in ((0, 1), (2,), (3,)):
        mark_reused(again, digests(first, *positions))
    fetch_unchanged_but_needed(again, rows(server, first), MOST)
    assert [one.data for one in again] == [b"a1", b"changed", None, None]
    assert server.requests == {"/a1": 2, "/a2": 1, "/b1": 1, "/c1": 1}


@pytest.mark.parametrize(
    ("has_length", "reason", "status"),
    [(True, "corrupt", "304"), (False, "truncated", "200"), (True, "out_of_memory", "200")],
)
def test_damaged_picture_is_asked_for_again_only_if_that_may_help(
    server: PictureServer, has_length: bool, reason: str, status: str
) -> None:
    server.pages["/b1"].has_length = has_length
    first = fetch_chunk(rows(server, []), MOST)
    first[2].reject(reason, "It is.")
    server.forget()
    again = fetch_chunk(rows(server, first), MOST)
    assert server.statuses[status] == (3 + 1 if status == "304" else 1)
    assert (again[2].reason, again[2].detail) == (
        ("corrupt", "It is.") if status == "304" else ("", "")
    )


def test_picture_that_is_gone_or_too_large_has_a_reason_and_is_asked_for_again(
    server: PictureServer,
) -> None:
    known = fetch_chunk(rows(server, []), MOST)
    del server.pages["/a1"]
    server.pages["/b1"] = Page(bytes(MOST + 1))
    found = fetch_chunk(rows(server, known), MOST)
    assert [one.reason for one in found] == ["unreadable", "", "too_many_bytes", ""]
    assert "404" in found[0].detail
    assert not any(one.etag for one in (found[0], found[2]))
    facts: list[Any] = [vars(one) for one in found]
    assert "secret" not in str(facts)
    mark_reused(found, digests(known, 1))
    assert [one.reason for one in found] == ["unreadable", REUSE, "too_many_bytes", ""]
