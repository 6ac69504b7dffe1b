"""The interface of a store's backend, which holds its files: a local directory or an S3 prefix."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.fs as pafs


@dataclass(frozen=True)
class FileInfo:
    """One file of a listing.

    Attributes:
        name: its name below the store.
        size: in bytes.
        fingerprint: changes whenever the content may have changed.
    """

    name: str
    size: int
    fingerprint: str


class Backend(Protocol):
    """Files below one directory or prefix, by name.

    Methods raise what boto3, pyarrow or the operating system raise; `Store` translates that. A
    version is an opaque string that changes with the content.
    """

    def filesystem(self) -> pafs.FileSystem:
        """pyarrow's file system, with the credentials of this moment."""

    def read(self, name: str) -> tuple[bytes, str]:
        """The bytes of a file and their version."""

    def read_start(self, name: str, size: int) -> bytes:
        """At most the first `size` bytes of a file."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def write(self, name: str, data: bytes) -> None:
        """Writes a file atomically, in place of any other."""

    def staged(self, name: str) -> AbstractContextManager[pa.NativeFile]:
        """A stream that becomes the file when the block ends, and vanishes when it fails."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file if none exists; returns whether it did."""

    def replace(self, name: str, data: bytes, version: str) -> bool:
        """Writes a file if the existing one still has `version`; returns whether it did."""

    def list(self, prefix: str, follow_links: bool) -> Iterator[FileInfo]:
        """All files whose names start with `prefix`, except hidden ones."""

    def delete(self, name: str) -> None:
        """Removes a file if it exists."""

    def delete_empty_folder(self, name: str) -> None:
        """Removes a folder that contains no file except hidden ones."""

    def delete_all(self) -> int:
        """Removes all files and, on disk, the directory; returns how many are left."""

    def abort_uploads(self) -> None:
        """Discards the parts of unfinished multipart uploads."""

    def discard_unfinished(self, name: str) -> None:
        """Discards what killed processes left of a file that they did not finish to write."""


def is_hidden(name: str) -> bool:
    """Whether the file or a folder above it starts with a dot."""
    return any(part.startswith(".") for part in name.split("/"))
