"""Actors that share a store and take turns, one store operation at a time.

The code that they run is the real one; only the store is in memory, with what S3 has: conditional
puts by a version that is a hash of the content, and no conditional delete.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from visrec.errors import VisrecError
from visrec.storage.store import Entry, Store


def _no_pause(_: str) -> None:
    pass


@dataclass(frozen=True)
class MemoryStore(Store):
    """A store in memory.

    Args:
        objects: bytes by URI.
        pause: called before each operation, with its name and the URI.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    pause: Callable[[str], None] = _no_pause

    def _read(self, name: str) -> tuple[bytes, str]:
        self.pause(f"read {self.uri(name)}")
        if self.uri(name) not in self.objects:
            raise FileNotFoundError(self.uri(name))
        data = self.objects[self.uri(name)]
        return data, hashlib.md5(data, usedforsecurity=False).hexdigest()

    def exists(self, name: str) -> bool:
        self.pause(f"look at {self.uri(name)}")
        return self.uri(name) in self.objects

    def write(self, name: str, data: bytes) -> None:
        self.pause(f"write {self.uri(name)}")
        self.objects[self.uri(name)] = data

    def create(self, name: str, data: bytes) -> bool:
        self.pause(f"create {self.uri(name)}")
        return self.objects.setdefault(self.uri(name), data) is data

    def replace(self, name: str, data: bytes, version: str) -> bool:
        self.pause(f"replace {self.uri(name)}")
        there = self.objects.get(self.uri(name))
        if there is None or hashlib.md5(there, usedforsecurity=False).hexdigest() != version:
            return False
        self.objects[self.uri(name)] = data
        return True

    def list(self, prefix: str = "") -> Iterator[Entry]:
        self.pause(f"list {self.uri(prefix)}")
        for uri, data in sorted(self.objects.items()):
            if uri.startswith(f"{self.root}/{prefix}"):
                yield Entry(uri.removeprefix(f"{self.root}/"), len(data), "")

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.pause(f"delete {self.uri(name)}")
            self.objects.pop(self.uri(name), None)

    def delete_empty_folder(self, name: str) -> None:
        pass


class Killed(BaseException):
    """What ends an actor that is killed: no code on its way handles it."""


class Actor:
    """Work on a store that goes on one operation at a time.

    Args:
        store: what it shares with others.
        work: is given the store.
    """

    def __init__(self, store: MemoryStore, work: Callable[[Store], Any]) -> None:
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self.done = False
        self.steps: list[str] = []  # that were done
        self.outcome: Any = None  # of the work, or the error that it raised on purpose
        self.fault: BaseException | None = None  # any other error
        self._thread = threading.Thread(
            target=self._run, args=(work, replace(store, pause=self._pause)), daemon=True
        )
        self._thread.start()
        self._back.acquire()

    def step(self, most: int = 1) -> None:
        """Does so many operations, or what is left of them."""
        for _ in range(most):
            if self.done:
                return
            self._go.release()
            self._back.acquire()

    def finish(self, after_each: Callable[[], None] = lambda: None) -> Any:
        """Goes on to the end; returns the outcome."""
        while not self.done:
            self.step()
            after_each()
        if self.fault is not None:
            raise self.fault
        return self.outcome

    def kill(self) -> None:
        """Ends it before its next operation."""
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
    """Two actors wherever both can be stopped: the first has done so many operations, and then the
    second so many. The caller says who goes on, and who is killed.

    Args:
        start: the store, which stays as it is.
        first: the work of the first.
        second: of the second.
        every: 1 for all pairs of places; n for one in n of each actor's.
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
