"""The local backend of a store: files below one directory."""

import errno
import fcntl
import glob
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from visrec.storage.backend import FileInfo, is_hidden
from visrec.storage.failures import storage_errors

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # by file system
_ROOTS_FOLDER = "lost+found"  # in the root of an ext4 disk; only root may list it


@dataclass(frozen=True)
class LocalBackend:
    """Files below a directory.

    Attributes:
        root: absolute path of the directory.
    """

    root: str

    def filesystem(self) -> pafs.FileSystem:
        return pafs.LocalFileSystem()

    def read(self, name: str) -> tuple[bytes, str]:
        data = self._regular_file(name).read_bytes()
        return data, hashlib.sha256(data).hexdigest()

    def read_start(self, name: str, size: int) -> bytes:
        with open(self._regular_file(name), "rb") as file:
            return file.read(size)

    def exists(self, name: str) -> bool:
        return Path(self.root, name).is_file()

    def write(self, name: str, data: bytes) -> None:
        with _draft(Path(self.root, name)) as draft:
            draft.write_bytes(data)

    @contextmanager
    def staged(self, name: str) -> Iterator[pa.NativeFile]:
        with _draft(Path(self.root, name)) as draft, pa.OSFile(str(draft), "wb") as sink:
            yield sink

    # Conditional writes.

    def create(self, name: str, data: bytes) -> bool:
        target = Path(self.root, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft_path(target)
        try:
            _write_synced(draft, data)
            _link(draft, target)
            return True
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)

    def replace(self, name: str, data: bytes, version: str) -> bool:
        target = Path(self.root, name)
        if not target.parent.is_dir():
            return False
        with open(target.with_name(f".{target.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it if this process dies
            if not target.is_file() or self.read(name)[1] != version:
                return False
            with _draft(target) as draft:
                draft.write_bytes(data)
            return True

    # Listing and removal.

    def list(self, prefix: str, follow_links: bool) -> Iterator[FileInfo]:
        top = prefix.rpartition("/")[0]
        folders, entered = [top], [os.path.realpath(os.path.join(self.root, top))]
        while folders and not is_hidden(top):
            folder = folders.pop()
            subfolders = []
            for entry in _scan(os.path.join(self.root, folder)):
                name = f"{folder}/{entry.name}" if folder else entry.name
                if not _is_folder(entry):
                    if name.startswith(prefix) and (info := _file_info(name, entry)):
                        yield info
                elif not f"{name}/".startswith(prefix):
                    continue
                elif not entry.is_symlink() or (follow_links and _enter_link(entry, entered)):
                    subfolders.append(name)
            folders += reversed(subfolders)

    def delete(self, name: str) -> None:
        Path(self.root, name).unlink(missing_ok=True)

    def delete_empty_folder(self, name: str) -> None:
        if any(True for _ in self.list(f"{name}/", False)):
            return
        for directory, _, files in os.walk(Path(self.root, name), topdown=False):
            for file in files:
                if file.startswith("."):
                    Path(directory, file).unlink(missing_ok=True)
            with suppress(OSError):
                os.rmdir(directory)

    def delete_all(self) -> int:
        shutil.rmtree(self.root, ignore_errors=True)
        with suppress(OSError):  # the directory above still has other files
            Path(self.root).parent.rmdir()
        remaining = sum(len(files) for _, _, files in os.walk(self.root))
        return remaining or int(Path(self.root).exists())

    def abort_uploads(self) -> None:
        """Does nothing: a disk has no multipart uploads."""

    def discard_unfinished(self, name: str) -> None:
        target = Path(self.root, name)
        for draft in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 32}"):
            draft.unlink(missing_ok=True)

    def _regular_file(self, name: str) -> Path:
        """The path of a file, unless reading it could block: a pipe, a socket or a device."""
        path = Path(self.root, name)
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError("it is a pipe, a socket or a device; expected a file")
        return path


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """The content of a folder, sorted, without hidden files; empty if the folder is gone."""
    with storage_errors("list", folder):  # here, so that the message names this folder
        try:
            with os.scandir(folder) as entries:
                shown = [entry for entry in entries if not _is_left_out(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return []
    return sorted(shown, key=lambda entry: entry.name)


def _is_left_out(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") or (entry.name == _ROOTS_FOLDER and _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or into a folder that this user may not read
        return False


def _file_info(name: str, entry: os.DirEntry[str]) -> FileInfo | None:
    """A file of a listing; None if it was removed meanwhile."""
    try:
        status = entry.stat()
    except OSError as error:
        removed = isinstance(error, FileNotFoundError) and not entry.is_symlink()
        return None if removed else FileInfo(name, 0, "unreadable")
    return FileInfo(name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _enter_link(link: os.DirEntry[str], entered: list[str]) -> bool:
    """Whether a link leads to a folder that is neither inside nor around an entered one; if so, the
    folder counts as entered from now on."""
    target = os.path.realpath(link.path)
    if any(os.path.commonpath((target, other)) in (target, other) for other in entered):
        return False
    entered.append(target)
    return True


def _link(draft: Path, target: Path) -> None:
    """Gives a file a second name in one step; fails if the name exists."""
    try:
        os.link(draft, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise OSError(
                "the file system has no hard links, by which a file is created once; expected "
                "another one than FAT or exFAT, or than a mount without links"
            ) from error
        raise


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _draft_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A hidden file beside `target` that replaces it when the block ends, and is removed when the
    block fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft_path(target)
    try:
        yield draft
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
