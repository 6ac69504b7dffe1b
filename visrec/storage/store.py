"""Files in a local directory or below an `s3://` prefix, behind one class.

A `Store` names files relative to its root, and nobody outside builds paths from it. It holds no
secret: it can be pickled to a worker, and each process asks boto3's chain for credentials, so
credentials that expire are renewed wherever they are used. A backend does the work: `local.py` or
`s3.py`.

Writes are atomic, and `create`, `replace` and `compare_and_swap` are the conditional writes that
commit everything visrec publishes.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from visrec.errors import InputError, MissingFileError, StorageError
from visrec.scratch import copy_to_scratch
from visrec.storage.backend import Backend, FileInfo
from visrec.storage.failures import storage_errors
from visrec.storage.local import LocalBackend
from visrec.storage.locations import normalize_location
from visrec.storage.s3 import S3Backend
from visrec.storage.s3_settings import configured_endpoint, read_settings

_S3 = "s3://"

DiskFile = FileIO | BufferedReader  # a file that a process can map into memory


@dataclass(frozen=True)
class Store:
    """A directory or an S3 prefix; `store / "x"` is the one below it.

    Attributes:
        root: absolute local path or `s3://bucket[/prefix]`, without a slash at the end.
        endpoint: URL of the S3 store, None for AWS.
    """

    root: str
    endpoint: str | None = None

    @staticmethod
    def at(location: str) -> "Store":
        """The store at a path or URI.

        Raises:
            InputError: it is neither a local path nor the URI of a bucket, or an S3 setting cannot
                be used.
        """
        root = normalize_location(location)
        if not root.startswith(_S3):
            return Store(root)
        endpoint = configured_endpoint()
        url = endpoint.value if endpoint else None
        read_settings(os.getpid(), url)  # an unusable setting is reported now
        return Store(root, url)

    def __truediv__(self, name: str) -> "Store":
        return replace(self, root=f"{self.root}/{name}")

    @property
    def is_s3(self) -> bool:
        return self.root.startswith(_S3)

    @property
    def name(self) -> str:
        """The last part of the root."""
        return self.root.rpartition("/")[2]

    @property
    def parent(self) -> "Store | None":
        """The store above; None for a bucket and for a folder of the root directory."""
        above = self.root.rpartition("/")[0]
        return None if above in ("", "s3:/") else replace(self, root=above)

    def uri(self, name: str) -> str:
        """The location of one file."""
        return f"{self.root}/{name}" if name else self.root

    @property
    def _backend(self) -> Backend:
        if not self.is_s3:
            return LocalBackend(self.root)
        bucket, _, prefix = self.root.removeprefix(_S3).partition("/")
        return S3Backend(bucket, prefix, self.endpoint)

    def arrow_filesystem(self) -> tuple[pafs.FileSystem, str]:
        """pyarrow's file system and the root's path in it, like `FileSystem.from_uri`.

        Raises:
            StorageError: there are no usable credentials.
        """
        return self._backend.filesystem(), self.root.removeprefix(_S3)

    # Small files.

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            MissingFileError: it does not exist.
            StorageError: the store refuses.
        """
        return self.read_versioned(name)[0]

    def read_versioned(self, name: str) -> tuple[bytes, str]:
        """The bytes of one file and its version, for `replace`.

        Raises:
            StorageError: as `read`.
        """
        with storage_errors("read", self.uri(name)):
            return self._backend.read(name)

    def read_if_exists(self, name: str) -> tuple[bytes, str] | None:
        """The bytes of one file and its version; None if it does not exist.

        Raises:
            StorageError: the store refuses.
        """
        try:
            return self.read_versioned(name)
        except MissingFileError:
            return None

    def read_start(self, name: str, size: int) -> bytes:
        """At most the first `size` bytes of one file.

        Raises:
            StorageError: as `read`.
        """
        with storage_errors("read", self.uri(name)):
            return self._backend.read_start(name, size)

    def read_json(self, name: str) -> Any:
        """The value of one JSON file, which the caller checks.

        Raises:
            InputError: it is not JSON.
            StorageError: as `read`.
        """
        return parse_json(self.read(name), self.uri(name))

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with storage_errors("look up", self.uri(name)):
            return self._backend.exists(name)

    def write(self, name: str, data: bytes) -> None:
        """Writes one file atomically, in place of any other of that name."""
        with storage_errors("write", self.uri(name)):
            self._backend.write(name, data)

    def write_json(self, name: str, value: object) -> None:
        self.write(name, to_json(value))

    # Conditional writes.

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that must not exist yet; False if another writer was first."""
        with storage_errors("create", self.uri(name)):
            return self._backend.create(name, data)

    def replace(self, name: str, data: bytes, version: str) -> bool:
        """Writes a file that must still have `version`; False if it has changed or is gone."""
        with storage_errors("replace", self.uri(name)):
            return self._backend.replace(name, data, version)

    def compare_and_swap(self, name: str, data: bytes, version: str | None) -> bool:
        """`replace` for a file that had a version, `create` for one that did not exist (None)."""
        return self.create(name, data) if version is None else self.replace(name, data, version)

    # Listing and removal.

    def list(self, prefix: str = "", *, follow_links: bool = False) -> Iterator[FileInfo]:
        """Every file whose name below the store starts with `prefix`, except hidden files.

        Local files come folder by folder, sorted in each; S3 lists in the order of the keys. A
        store that does not exist lists nothing. A file that cannot be read, such as a broken link,
        is listed, so that reading it says why. Bytes of a name that are not UTF-8 are surrogates.

        Args:
            prefix: what the names start with.
            follow_links: whether links to other folders are followed, each folder once.

        Raises:
            StorageError: the store or a folder must not be listed.
        """
        with storage_errors("list", self.uri(prefix)):
            yield from self._backend.list(prefix, follow_links)

    def delete(self, names: Iterable[str]) -> None:
        """Removes files; a file that does not exist is no error."""
        for name in names:
            with storage_errors("delete", self.uri(name)):
                self._backend.delete(name)

    def delete_empty_folder(self, name: str) -> None:
        """Removes a local folder without files, and the hidden files in it.

        A folder that contains any other file stays: another writer may have started to fill it.
        """
        with storage_errors("delete", self.uri(name)):
            self._backend.delete_empty_folder(name)

    def delete_all(self) -> int:
        """Removes every file, and on disk the directory, with its parent if that becomes empty.

        Returns:
            How many files are left.
        """
        with storage_errors("delete", self.root):
            return self._backend.delete_all()

    # Large files.

    @contextmanager
    def open_input(self, name: str) -> Iterator[pa.NativeFile]:
        """One file, to read at any offset.

        Raises:
            StorageError: as `read`, at any time until the block ends.
        """
        with storage_errors("read", self.uri(name)):
            filesystem, path = self.arrow_filesystem()
            with filesystem.open_input_file(f"{path}/{name}") as source:
                yield source

    @contextmanager
    def open_on_disk(self, name: str) -> Iterator[DiskFile]:
        """One file on a disk of this machine, to be mapped into memory; from S3, a copy that has no
        name there.

        Raises:
            StorageError: as `read`.
            InputError: the disk has no room for the copy.
        """
        if not self.is_s3:
            with storage_errors("read", self.uri(name)), Path(self.root, name).open("rb") as file:
                yield file
            return
        with tempfile.TemporaryFile(buffering=0) as copy:
            with self.open_input_stream(name) as source:
                copy_to_scratch(source, copy, f"a copy of {self.uri(name)}")
            copy.seek(0)
            yield copy

    @contextmanager
    def open_input_stream(self, name: str, codec: str | None = None) -> Iterator[pa.NativeFile]:
        """One file, to read from start to end.

        Args:
            name: the name of the file.
            codec: pyarrow's name of the compression, None for the bytes as they are stored.

        Raises:
            StorageError: as `read`, at any time until the block ends.
        """
        with storage_errors("read", self.uri(name)):
            filesystem, path = self.arrow_filesystem()
            with filesystem.open_input_stream(f"{path}/{name}", compression=codec) as source:
                yield source

    @contextmanager
    def open_output_stream(self, name: str) -> Iterator[pa.NativeFile]:
        """One file, to write from start to end, as Ray writes checkpoints: not atomic, on S3 a
        multipart upload.

        Raises:
            StorageError: the store refuses, at any time until the block ends.
        """
        with storage_errors("upload", self.uri(name)):
            filesystem, path = self.arrow_filesystem()
            with filesystem.open_output_stream(f"{path}/{name}", compression=None) as sink:
                yield sink

    @contextmanager
    def open_replacement(self, name: str) -> Iterator[pa.NativeFile]:
        """One file, to write from start to end; it replaces any other of that name when the block
        ends, and vanishes when the block fails.

        Raises:
            StorageError: the store refuses, at any time until the block ends.
        """
        with storage_errors("write", self.uri(name)), self._backend.staged(name) as sink:
            yield sink

    def discard_unfinished(self, name: str) -> None:
        """Discards what killed processes left of one file; nobody must be writing it."""
        with storage_errors("delete", self.uri(name)):
            self._backend.discard_unfinished(name)

    def abort_uploads(self) -> None:
        """Discards the parts of failed multipart uploads, which S3 keeps unseen and bills."""
        self._backend.abort_uploads()

    def read_table(self, name: str, columns: Iterable[str] | None = None) -> pa.Table:
        """One Parquet file.

        Raises:
            InputError: it is not Parquet.
            StorageError: as `read`.
        """
        selected = None if columns is None else list(columns)
        try:
            with self.open_input(name) as source, pq.ParquetFile(source) as file:
                return file.read(columns=selected)
        except pa.ArrowInvalid as error:
            raise _damaged_error(self.uri(name), "Parquet", error) from error

    def write_table(self, name: str, table: pa.Table, *, store_schema: bool = True) -> int:
        """Writes one Parquet file atomically.

        Args:
            name: the name of the file.
            table: its content.
            store_schema: whether pyarrow reads back the exact Arrow types. Without it, strings with
                64-bit offsets are read back as plain strings.

        Returns:
            Size of the file in bytes.
        """
        with self.open_replacement(name) as sink:
            pq.write_table(table, sink, compression="zstd", store_schema=store_schema)
            return int(sink.tell())

    def check_writable(self) -> None:
        """Writes and removes a small file, so that a refusal is reported before any work.

        Raises:
            InputError: the store refuses.
        """
        probe = f".visrec-probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"may visrec write here?")
            self.delete([probe])
        except StorageError as error:
            reason = error.reason or str(error)
            raise InputError(f"Could not write to {self.root}: {reason}", path=self.root) from error


def read_uri(uri: str) -> bytes:
    """The bytes of one file at a local path or an `s3://` URI.

    Raises:
        InputError: as `file_at`.
        StorageError: as `Store.read`.
    """
    store, name = file_at(uri)
    return store.read(name)


def file_at(uri: str) -> tuple[Store, str]:
    """The store that contains one file, and the name of the file in it.

    Raises:
        InputError: as `Store.at`, or the URI is a bucket.
    """
    file = Store.at(uri)
    folder, _, name = file.root.rpartition("/")
    if folder == "s3:/":
        raise InputError(f"Found {uri!r}, which is a bucket; expected a file in it.", path=uri)
    return Store(folder or "/", file.endpoint), name


def parse_json(data: bytes, path: str) -> Any:
    """The value of a JSON file, which the caller checks.

    Args:
        data: its bytes.
        path: its location, for the error.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged_error(path, "JSON", error) from error


def _damaged_error(uri: str, format: str, error: Exception) -> InputError:
    return InputError(
        f"{uri} is damaged: it is not {format} ({error}). Restore the file from a copy, or remove "
        "it if it can be made again.",
        path=uri,
    )


def to_json(value: object) -> bytes:
    """JSON as in every artifact: sorted keys, two spaces of indentation, a newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
