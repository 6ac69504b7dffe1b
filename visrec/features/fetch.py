"""The pictures of one task of an extraction: their bytes, and which need no network.

Shapes: B pictures.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import StorageError
from visrec.features.pooling import combine_digests
from visrec.ids import TEXT, is_in
from visrec.sources.http import TOO_LARGE, Answer
from visrec.sources.images import fetch_pictures

REUSE = "reuse"  # as the reason of a picture: the feature of its item is on disk already


@dataclass(kw_only=True)
class Picture:
    """A picture on its way to the network.

    Attributes:
        item_id: its item's id.
        view: which picture of the item; empty if nothing says it.
        source: changes when the bytes may have changed; empty if unknown.
        address: a hash of its http address; empty for other locations.
        digest: SHA-256 of the bytes; empty if they could not be read.
        data: the bytes; None if they are unknown, or not needed.
        etag: validator of the bytes; empty if there is none.
        last_modified: likewise.
        is_whole: whether the server said how many bytes there are.
        is_unchanged: whether a server said that the picture is as it was.
        reason: why the picture is rejected, or `REUSE`, or empty.
        detail: one sentence about a rejection.
    """

    item_id: str
    view: str = ""
    source: str = ""
    address: str = ""
    digest: str = ""
    data: bytes | None = None
    etag: str = ""
    last_modified: str = ""
    is_whole: bool = True
    is_unchanged: bool = False
    reason: str = ""
    detail: str = ""

    def reject(self, reason: str, detail: str) -> None:
        """Rejects the picture. It is asked for again if another try may succeed."""
        self.reason, self.detail = reason, detail
        if not self.digest or not self.is_whole or reason == "out_of_memory":
            self.etag = self.last_modified = ""

    def receive(self, answer: Answer | StorageError, known: dict[str, Any]) -> None:
        """Takes the answer to a request.

        Args:
            answer: the bytes, or that they have not changed, or an error.
            known: what was known of the picture before, as `FETCHED`.
        """
        if isinstance(answer, StorageError):
            self.digest, self.data = "", None
            self.reject(TOO_LARGE if answer.code == TOO_LARGE else "unreadable", str(answer))
            return
        self.etag, self.last_modified = answer.etag or "", answer.last_modified or ""
        self.is_whole, self.data = answer.is_whole, answer.data
        if answer.data is not None:
            self.digest = hashlib.sha256(answer.data).hexdigest()
            return
        self.is_unchanged = True
        self.digest, self.etag = known["digest"], self.etag or known["etag"] or ""
        self.last_modified = self.last_modified or known["last_modified"] or ""
        if known["reason"]:
            self.reject(known["reason"], known["detail"])


def fetch_chunk(rows: pa.Table, max_bytes: int) -> list[Picture]:
    """The pictures of some rows of a plan's `pending`. Servers are asked only for what changed."""
    pictures = []
    known_rows = rows.to_pylist()
    for row, answer in zip(known_rows, fetch_pictures(rows, max_bytes), strict=True):
        picture = Picture(
            item_id=row["item_id"],
            view=row["view"] or "",
            source=row["source"] or "",
            address=row["address"],
        )
        picture.receive(answer, row)
        pictures.append(picture)
    return pictures


def mark_reused(pictures: list[Picture], stored_digests: pa.ChunkedArray) -> None:
    """Gives the pictures of items whose digest is stored the reason `REUSE`."""
    items = [item for item in _items(pictures) if item and not item[0].reason]
    digests = pa.array([combine_digests([one.digest for one in item]) for item in items], TEXT)
    for item, is_stored in zip(items, is_in(digests, stored_digests).to_pylist(), strict=True):
        if is_stored:
            for picture in item:
                picture.reason, picture.data = REUSE, None


def _items(pictures: list[Picture]) -> Iterator[list[Picture]]:
    """The pictures of each item that were not rejected."""
    for _, group in groupby(pictures, key=lambda picture: picture.item_id):
        yield [picture for picture in group if picture.reason in ("", REUSE)]


def fetch_unchanged_but_needed(pictures: list[Picture], rows: pa.Table, max_bytes: int) -> None:
    """Fetches pictures that have not changed, but are needed because another view of the item has.

    Args:
        pictures: as `fetch_chunk` gives them.
        rows: their rows.
        max_bytes: no more bytes are asked of a server.
    """
    needed = [b for b, one in enumerate(pictures) if not one.reason and one.data is None]
    if needed:
        requested = rows.take(needed).drop_columns(["etag", "last_modified"])
        for b, answer in zip(needed, fetch_pictures(requested, max_bytes), strict=True):
            pictures[b].receive(answer, {})


def as_batch(pictures: list[Picture]) -> dict[str, npt.NDArray[np.object_]]:
    """The texts of the pictures as columns."""
    names = ("item_id", "view", "source", "address", "digest", "etag", "last_modified")
    return {
        name: objects([getattr(picture, name) for picture in pictures])
        for name in (*names, "reason", "detail")
    }


def objects(values: list[str]) -> npt.NDArray[np.object_]:
    """A column of texts; NumPy would take those of one length for another type."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
