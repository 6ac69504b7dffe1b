"""Where bytes live: a local directory or an `s3://` prefix, behind one small class.

Keys come from the boto3 chain and all other settings from `s3_settings.py`; boto3 (small
objects, conditional writes), pyarrow (tables) and Ray (checkpoints) all get theirs here. A `Store`
holds no secret: it can be pickled to a worker, which asks its own chain, so credentials that expire
are renewed wherever they are used.
"""

import fcntl
import hashlib
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError

from visrec.errors import InputError, StorageError
from visrec.paths import require_utf8, with_home
from visrec.storage.s3_clients import (
    BUSY,
    LOST,
    MISSING,
    arrow_s3,
    boto_s3,
    code,
    credentials,
    translated,
)
from visrec.storage.s3_settings import configured_endpoint, masked, settings_of

_WRITE_ID = "visrec-write-id"
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<slashes>/*)(?P<rest>.*)", re.DOTALL)
# Hadoop's names of S3 are the same store. `s3:/shop`, which pathlib makes of `s3://shop`, is an
# address with a slash missing, not a folder called "s3:".
_S3 = ("s3", "s3a", "s3n")
_URIS = (*_S3, "file")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PAUSES = (0.1, 0.3, 1.0, 3.0)  # seconds between tries while another writes the same key


@dataclass(frozen=True)
class Entry:
    """One file of a listing: its name below the store, its bytes, a mark that changes with it."""

    name: str
    size: int
    fingerprint: str


@dataclass(frozen=True)
class Store:
    """A directory or an S3 prefix. `store / "x"` is the one below it.

    Args:
        root: an absolute local path, or `s3://bucket[/prefix]`, without a slash at the end.
        endpoint: the S3 endpoint where it is not AWS's.
    """

    root: str
    endpoint: str | None = None

    @staticmethod
    def at(uri: str) -> "Store":
        """The store at a path or URI.

        Raises:
            InputError: it is neither a local path nor the URI of a bucket, or an S3 setting cannot
                be used.
        """
        if not uri or "\0" in uri:
            raise _no_location(uri)
        require_utf8(uri)
        found = _URI.fullmatch(uri)
        scheme = found["scheme"].lower() if found else ""
        if found is None or not (found["slashes"] or scheme in _URIS):
            return Store(os.path.abspath(with_home(uri)))
        if scheme == "file" and found["slashes"] not in ("", "//"):  # // stands before a host
            return Store(os.path.abspath(f"/{found['rest']}"))
        rest = found["rest"].rstrip("/")
        if scheme not in _S3 or found["slashes"] != "//" or not _is_place_on_s3(rest):
            raise _no_location(uri, rest if scheme in _S3 else "")
        endpoint = configured_endpoint()
        address = endpoint.value if endpoint else None
        settings_of(os.getpid(), address)  # a setting that cannot be used is told at once
        return Store(f"s3://{rest}", address)

    def __truediv__(self, name: str) -> "Store":
        return replace(self, root=f"{self.root}/{name}")

    @property
    def is_s3(self) -> bool:
        return self.root.startswith("s3://")

    @property
    def name(self) -> str:
        """The last part of the root."""
        return self.root.rpartition("/")[2]

    @property
    def path(self) -> str:
        """The root as pyarrow's file systems want it: no scheme."""
        return self.root.removeprefix("s3://")

    def uri(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def filesystem(self) -> pafs.FileSystem:
        """The pyarrow file system, with credentials that are fresh now."""
        if not self.is_s3:
            return pafs.LocalFileSystem()
        return arrow_s3(settings_of(os.getpid(), self.endpoint), *credentials())

    # Small objects, whole.

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            StorageError: it is not there, or the store refuses.
        """
        return self.read_versioned(name)[0]

    def read_versioned(self, name: str) -> tuple[bytes, str]:
        """The bytes of one file and its version, for `replace`."""
        with translated("read", self.uri(name)):
            return self._read(name)

    def read_if_exists(self, name: str) -> tuple[bytes, str] | None:
        """The same, None where there is no such file."""
        with translated("read", self.uri(name)):
            try:
                return self._read(name)
            except FileNotFoundError:
                return None
            except ClientError as error:
                if code(error) in MISSING:
                    return None
                raise

    def _read(self, name: str) -> tuple[bytes, str]:
        if self.is_s3:
            reply = self._s3().get_object(Bucket=self._bucket, Key=self._key(name))
            return reply["Body"].read(), reply["ETag"]
        path = Path(self.root, name)
        _require_bytes(path)
        data = path.read_bytes()
        return data, hashlib.sha256(data).hexdigest()

    def read_start(self, name: str, size: int) -> bytes:
        """The first bytes of one file, at most `size` of them.

        Raises:
            StorageError: it is not there, or the store refuses.
        """
        with translated("read", self.uri(name)):
            if not self.is_s3:
                path = Path(self.root, name)
                _require_bytes(path)
                with open(path, "rb") as file:
                    return file.read(size)
            where = {"Bucket": self._bucket, "Key": self._key(name)}
            try:
                reply = self._s3().get_object(**where, Range=f"bytes=0-{size - 1}")
            except ClientError as error:
                if code(error) in {"416", "InvalidRange"}:  # of an empty object
                    return b""
                raise
            return bytes(reply["Body"].read())

    def read_json(self, name: str) -> Any:
        """The value of one JSON file.

        Raises:
            InputError: it is not JSON.
            StorageError: as `read`.
        """
        return parse_json(self.read(name), self.uri(name))

    def exists(self, name: str) -> bool:
        with translated("look at", self.uri(name)):
            if not self.is_s3:
                return Path(self.root, name).is_file()
            try:
                self._s3().head_object(Bucket=self._bucket, Key=self._key(name))
            except ClientError as error:
                if code(error) in MISSING:
                    return False
                raise
            return True

    def write(self, name: str, data: bytes) -> None:
        """Writes one file, whole or not at all, in place of any other of that name."""
        with translated("write", self.uri(name)):
            if self.is_s3:
                self._s3().put_object(Bucket=self._bucket, Key=self._key(name), Body=data)
            else:
                with _local_draft(Path(self.root, name)) as draft:
                    draft.write_bytes(data)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, to_json(value))

    # Conditional writes: the commits.

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that must not exist yet; False where another writer was first."""
        with translated("create", self.uri(name)):
            if self.is_s3:
                return self._conditional_put(name, data, {"IfNoneMatch": "*"})
            target = Path(self.root, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            try:
                _write_synced(draft, data)
                os.link(draft, target)  # atomic, and refuses where the target exists
                return True
            except FileExistsError:
                return False
            finally:
                draft.unlink(missing_ok=True)

    def replace(self, name: str, data: bytes, version: str) -> bool:
        """Writes a file that must still have `version`; False where it has changed or is gone."""
        with translated("replace", self.uri(name)):
            if self.is_s3:
                return self._conditional_put(name, data, {"IfMatch": version})
            target = Path(self.root, name)
            if not target.parent.is_dir():
                return False
            with open(target.with_name(f".{target.name}.lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it if this process dies
                if not target.is_file() or self.read_versioned(name)[1] != version:
                    return False
                with _local_draft(target) as draft:
                    draft.write_bytes(data)
                return True

    def exchange(self, name: str, data: bytes, version: str | None) -> bool:
        """Writes a file in place of what was read: of `version`, or None where there was none."""
        return self.create(name, data) if version is None else self.replace(name, data, version)

    def _conditional_put(self, name: str, data: bytes, condition: dict[str, Any]) -> bool:
        """A conditional put, again while another put of the same key is on its way (409)."""
        for pause in _PAUSES:
            try:
                return self._put_once(name, data, condition)
            except ClientError as error:
                if code(error) not in BUSY:
                    raise
            time.sleep(pause)
        return self._put_once(name, data, condition)

    def _put_once(self, name: str, data: bytes, condition: dict[str, Any]) -> bool:
        """A conditional put whose lost reply is neither a lost nor a doubled write.

        A retry of a put that did succeed answers 412, so the object's own mark decides whose it is.
        """
        mark = uuid.uuid4().hex
        where = {"Bucket": self._bucket, "Key": self._key(name)}
        try:
            self._s3().put_object(**where, Body=data, Metadata={_WRITE_ID: mark}, **condition)
            return True
        except (ClientError, BotoCoreError) as error:
            try:
                found = self._s3().head_object(**where)["Metadata"].get(_WRITE_ID)
            except ClientError as missing:
                if code(missing) not in MISSING:
                    raise
                found = None
            if found == mark:
                return True
            gone = MISSING if "IfMatch" in condition else set()
            if isinstance(error, ClientError) and code(error) in LOST | gone:
                return False
            raise

    # Listings and removal.

    def list(self, prefix: str = "", *, follow_links: bool = False) -> Iterator[Entry]:
        """Every file whose name below the store starts with `prefix`, by pages; no dotfiles.

        Local names come folder by folder, sorted in each; S3 lists in key order. A store that is
        not there lists nothing. What cannot be read, such as a link that leads nowhere, is listed
        all the same: reading it says why. A name that is not UTF-8 has surrogates in it.

        Args:
            prefix: what the names begin with.
            follow_links: whether a link to a folder elsewhere is entered, each folder once.

        Raises:
            StorageError: the store or a folder may not be listed.
        """
        with translated("list", self.uri(prefix)):
            if self.is_s3:
                yield from self._list_s3(prefix)
            else:
                yield from self._list_local(prefix, follow_links)

    def _list_s3(self, prefix: str) -> Iterator[Entry]:
        base = self._key("")
        pages = self._s3().get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._bucket, Prefix=base + prefix):
            for entry in page.get("Contents", []):
                name = entry["Key"][len(base) :]
                if name and not name.endswith("/") and not _hidden(name):
                    yield Entry(name, entry["Size"], entry["ETag"].strip('"'))

    def _list_local(self, prefix: str, follow_links: bool) -> Iterator[Entry]:
        top = prefix.rpartition("/")[0]
        folders, entered = [top], [os.path.realpath(os.path.join(self.root, top))]
        while folders and not _hidden(top):
            folder = folders.pop()
            below = []
            for entry in _scan(os.path.join(self.root, folder)):
                name = f"{folder}/{entry.name}" if folder else entry.name
                if not _is_folder(entry):
                    if name.startswith(prefix) and (found := _entry(name, entry)):
                        yield found
                elif not entry.is_symlink() or (follow_links and _enters(entry, entered)):
                    below.append(name)
            folders += reversed(below)

    def delete(self, names: Iterable[str]) -> None:
        """Removes files; those that are gone already are no error."""
        for name in names:
            with translated("delete", self.uri(name)):
                if self.is_s3:
                    self._s3().delete_object(Bucket=self._bucket, Key=self._key(name))
                else:
                    Path(self.root, name).unlink(missing_ok=True)

    def delete_empty_folder(self, name: str) -> None:
        """Removes a folder without files, where there are folders; hidden files go with it.

        A folder in which anything else lies stays: another writer may have begun to fill it.
        """
        if self.is_s3 or any(True for _ in self.list(f"{name}/")):
            return
        for directory, _, files in os.walk(Path(self.root, name), topdown=False):
            for file in files:
                if file.startswith("."):
                    Path(directory, file).unlink(missing_ok=True)
            with suppress(OSError):
                os.rmdir(directory)

    # Tables.

    def read_table(self, name: str, columns: Iterable[str] | None = None) -> pa.Table:
        """One Parquet file."""
        with translated("read", self.uri(name)):
            chosen = None if columns is None else list(columns)
            source = self.filesystem().open_input_file(f"{self.path}/{name}")
            with source, pq.ParquetFile(source) as file:
                return file.read(columns=chosen)

    def write_table(self, name: str, table: pa.Table, *, store_schema: bool = True) -> int:
        """Writes one Parquet file, whole or not at all; returns its bytes.

        Args:
            name: of the file.
            table: what it holds.
            store_schema: whether pyarrow reads the very types back, and not those that Parquet has
                for them: of text with 64-bit offsets, strings.
        """
        with translated("write", self.uri(name)):
            if self.is_s3:
                # In memory first: a stream to S3 that ends in an error still leaves what it has.
                sink = pa.BufferOutputStream()
                pq.write_table(table, sink, compression="zstd", store_schema=store_schema)
                data = sink.getvalue().to_pybytes()
                self.write(name, data)
                return len(data)
            target = Path(self.root, name)
            with _local_draft(target) as draft:
                pq.write_table(table, draft, compression="zstd", store_schema=store_schema)
                return draft.stat().st_size

    # S3 plumbing.

    @property
    def _bucket(self) -> str:
        return self.path.partition("/")[0]

    def _key(self, name: str) -> str:
        prefix = self.path.partition("/")[2]
        return f"{prefix}/{name}" if prefix else name

    def _s3(self) -> Any:
        credentials()  # what boto3 would say of those that cannot be used says less
        return boto_s3(os.getpid(), settings_of(os.getpid(), self.endpoint))

    def check_writable(self) -> None:
        """Writes and removes a small file, so that a refusal is known before any work.

        Raises:
            InputError: the store refuses.
        """
        probe = f".visrec-probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"may visrec write here?")
            self.delete([probe])
        except StorageError as error:
            raise InputError(str(error).replace(self.uri(probe), self.root)) from error


def read_uri(uri: str) -> bytes:
    """The bytes of one file named by a local path or an `s3://` URI."""
    store, name = file_at(uri)
    return store.read(name)


def file_at(uri: str) -> tuple[Store, str]:
    """The store and the name of one file.

    Raises:
        InputError: as `Store.at`, or a bucket alone.
    """
    file = Store.at(uri)
    folder, _, name = file.root.rpartition("/")
    if file.is_s3 and "/" not in file.path:
        raise InputError(f"Found {uri!r}, which is a bucket; expected a file in it.")
    return Store(folder or "/", file.endpoint), name


def _is_place_on_s3(rest: str) -> bool:
    """Whether this is a bucket and a prefix whose parts every client takes for the same key."""
    bucket, *parts = rest.split("/")
    return bool(_BUCKET.fullmatch(bucket)) and not {"", ".", ".."} & set(parts)


def _no_location(uri: str, rest: str = "") -> InputError:
    meant = "/".join(part for part in rest.split("/") if part not in ("", ".", ".."))
    hint = f" (did you mean s3://{meant}?)" if _is_place_on_s3(meant) else ""
    return InputError(
        f"Found the location {masked(uri)!r}; expected a local path or s3://bucket/prefix{hint}."
    )


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted, without dotfiles; nothing where it is gone."""
    try:
        with translated("list", folder), os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return []
        raise


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or where this user may not look
        return False


def _entry(name: str, entry: os.DirEntry[str]) -> Entry | None:
    """A file of a listing; None where it went away since."""
    try:
        found = entry.stat()
    except OSError as error:
        gone = isinstance(error, FileNotFoundError) and not entry.is_symlink()
        return None if gone else Entry(name, 0, "unreadable")
    return Entry(name, found.st_size, f"{found.st_size}-{found.st_mtime_ns}")


def _enters(link: os.DirEntry[str], entered: list[str]) -> bool:
    """Whether a link leads to a folder that is neither below nor above one that was entered."""
    home = os.path.realpath(link.path)
    if any(os.path.commonpath((home, other)) in (home, other) for other in entered):
        return False
    entered.append(home)
    return True


def _require_bytes(path: Path) -> None:
    """Refuses what would never end or never begin: a pipe, a socket, a device."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError("it is a pipe, a socket or a device; expected a file")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def parse_json(data: bytes, where: str) -> Any:
    """The value of a JSON file.

    Args:
        data: its bytes.
        where: it lies, for the error.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is damaged: it is not JSON ({error}). Bring the file back from a copy, or "
            "remove it where it can be made again."
        ) from error


def to_json(value: Any) -> bytes:
    """JSON as every artifact has it: sorted keys, two spaces, a newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _local_draft(target: Path) -> Iterator[Path]:
    """A hidden neighbour of `target` that takes its place at the end, or is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        yield draft
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
