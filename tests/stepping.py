"""Actors that share a store and take turns, one store operation at a time.

They run the real code. Only the store is in memory, with the operations of S3: conditional puts by
a version that is a hash of the content, and no conditional delete.
"""

import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from visrec.errors import VisrecError
from visrec.storage.backend import Backend, FileInfo
from visrec.storage.store import Store


def _no_pause(_: str) -> None:
    pass


@dataclass(frozen=True)
class MemoryStore(Store):
    """A store in memory.

    Attributes:
        objects: bytes by URI.
        pause: called before each operation, with its name and the URI.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    pause: Callable[[str], None] = _no_pause

    @property
    def _backend(self) -> Backend:
        return MemoryBackend(self.root, self.objects, self.pause)

    @contextmanager
    def open_on_disk(self, name: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as file:
            file.write(self.read(name))
            file.seek(0)
            yield file


@dataclass(frozen=True)
class MemoryBackend:
    """The operations of `MemoryStore`; those that publication does not use are left out."""

    root: str
    objects: dict[str, bytes]
    pause: Callable[[str], None]

    def read(self, name: str) -> tuple[bytes, str]:
        self.pause(f"read {self._uri(name)}")
        if self._uri(name) not in self.objects:
            raise FileNotFoundError(self._uri(name))
        data = self.objects[self._uri(name)]
        return data, _version(data)

    def exists(self, name: str) -> bool:
        self.pause(f"look up {self._uri(name)}")
        return self._uri(name) in self.objects

    def write(self, name: str, data: bytes) -> None:
        self.pause(f"write {self._uri(name)}")
        self.objects[self._uri(name)] = data

    def create(self, name: str, data: bytes) -> bool:
        self.pause(f"create {self._uri(name)}")
        return self.objects.setdefault(self._uri(name), data) is data

    def replace(self, name: str, data: bytes, version: str) -> bool:
        self.pause(f"replace {self._uri(name)}")
        present = self.objects.get(self._uri(name))
        if present is None or _version(present) != version:
            return False
        self.objects[self._uri(name)] = data
        return True

    def list(self, prefix: str, follow_links: bool) -> Iterator[FileInfo]:
        del follow_links
        self.pause(f"list {self._uri(prefix)}")
        for uri, data in sorted(self.objects.items()):
            if uri.startswith(f"{self.root}/{prefix}"):
                yield FileInfo(uri.removeprefix(f"{self.root}/"), len(data), "")

    def delete(self, name: str) -> None:
        self.pause(f"delete {self._uri(name)}")
        self.objects.pop(self._uri(name), None)

    def delete_empty_folder(self, name: str) -> None:
        pass

    def filesystem(self) -> pafs.FileSystem:
        raise NotImplementedError

    def read_start(self, name: str, size: int) -> bytes:
        raise NotImplementedError

    def staged(self, name: str) -> AbstractContextManager[pa.NativeFile]:
        raise NotImplementedError

    def delete_all(self) -> int:
        raise NotImplementedError

    def abort_uploads(self) -> None:
        raise NotImplementedError

    def discard_unfinished(self, name: str) -> None:
        raise NotImplementedError

    def _uri(self, name: str) -> str:
        return f"{self.root}/{name}"


def _version(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Killed(BaseException):
    """Ends an actor that is killed; no code between here and the actor catches it."""


class Actor:
    """Runs work on a store in a thread, one store operation at a time.

    Args:
        store: shared with other actors.
        work: called with the store.
    """

    def __init__(self, store: MemoryStore, work: Callable[[Store], Any]) -> None:
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self.done = False
        self.steps: list[str] = []  # operations that were done
        self.outcome: Any = None  # what the work returned, or the VisrecError that it raised
        self.fault: BaseException | None = None  # any other error that it raised
        self._thread = threading.Thread(
            target=self._run, args=(work, replace(store, pause=self._pause)), daemon=True
        )
        self._thread.start()
        self._back.acquire()

    def step(self, most: int = 1) -> None:
        """Does at most so many operations."""
        for _ in range(most):
            if self.done:
                return
            self._go.release()
            self._back.acquire()

    def finish(self, after_each: Callable[[], None] = lambda: None) -> Any:
        """Does all that is left; returns the outcome."""
        while not self.done:
            self.step()
            after_each()
        if self.fault is not None:
            raise self.fault
        return self.outcome

    def kill(self) -> None:
        """Ends the actor before its next operation."""
        self._killed = True
        self.step()

    def _pause(self, step: str) -> None:
        self._back.release()
        self._go.acquire()
        if self._killed:
            raise Killed
        self.steps.append(step)

    def _run(self, work: Callable[[Store], Any], store: Store) -> None:
        try:
            self.outcome = work(store)
        except VisrecError as error:
            self.outcome = error
        except Killed:
            self.outcome = Killed
        except BaseException as error:  # raised again in the test's own thread
            self.fault = error
        self.done = True
        self._back.release()


def meetings(
    start: MemoryStore, first: Callable[[Store], Any], second: Callable[[Store], Any], every: int
) -> Iterator[tuple[MemoryStore, Actor, Actor]]:
    """Two actors at all pairs of points: the first has done i operations, then the second j.

    The caller decides who goes on and who is killed.

    Args:
        start: the store, which stays as it is.
        first: work of the first actor.
        second: work of the second actor.
        every: 1 for all pairs of points; n for one in n points of each actor.
    """
    i = 0
    while True:
        j, first_done, second_done = (i // every) % every, False, False
        while not second_done:
            store = replace(start, objects=dict(start.objects))
            one, two = Actor(store, first), Actor(store, second)
            one.step(i)
            two.step(j)
            first_done, second_done = one.done, two.done
            yield store, one, two
            j += every
        if first_done:
            return
        i += every
