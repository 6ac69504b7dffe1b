"""A process that moves the pointer and its tables, and dies in the middle if it is told to.

It is a module of its own, without the readers of tables, so that it starts quickly.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from visrec.errors import ConflictError, InputError
from visrec.publication.pointer import TableFormat
from visrec.publication.publish import publish_run
from visrec.publication.retention import remove_old_runs
from visrec.publication.rollback import roll_back
from visrec.storage.store import Store

_PROCESSES = multiprocessing.get_context("spawn")
TABLES: tuple[TableFormat, ...] = ("delta", "iceberg", "manifest")
WRITES = 5  # of a publication: the pointer, Delta's commit, Iceberg's two files, the manifest


Work = Callable[[Store], Any]


def again(*works: Work) -> Work:
    """One after another, whichever errors they raise."""

    def work(lists: Store) -> None:
        for one in works:
            try:
                one(lists)
            except (ConflictError, InputError):
                continue

    return work


@dataclass(frozen=True)
class Mortal(Store):
    """A store whose process is killed right after a number of conditional writes.

    Attributes:
        left: how many writes are left, in a list that all copies share.
    """

    left: list[int] = field(default_factory=lambda: [10**9])

    def create(self, name: str, data: bytes) -> bool:
        return self._count(super().create(name, data))

    def replace(self, name: str, data: bytes, version: str) -> bool:
        return self._count(super().replace(name, data, version))

    def _count(self, done: bool) -> bool:
        self.left[0] -= 1
        if not self.left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def move_on_demand(orders: Connection, lists: Store, env: dict[str, str]) -> None:
    """Publishes runs, as a night does, or rolls back; dies after some writes if it is told to."""
    os.environ.update(env)
    mortal = Mortal(lists.root, lists.endpoint)
    while order := orders.recv():
        run_id, writes = order
        mortal.left[0] = writes
        if run_id == "rollback":
            roll_back(mortal)
        else:
            publish_run(mortal, run_id, tables=TABLES)
            remove_old_runs(mortal, 5, run_id)
        orders.send("done")


class Mover:
    """Moves the pointer in a process of its own, which is started again after it was killed."""

    def __init__(self, lists: Store, env: dict[str, str]) -> None:
        self._arguments = (lists, env)
        self._process: Any = None

    def move(self, run_id: str, writes: int = 10**9) -> bool:
        """Whether the process survived."""
        if self._process is None:
            self._orders, theirs = _PROCESSES.Pipe()
            arguments = (theirs, *self._arguments)
            self._process = _PROCESSES.Process(target=move_on_demand, args=arguments)
            self._process.start()
            theirs.close()  # else the end of the process would go unnoticed
        self._orders.send((run_id, writes))
        try:
            assert self._orders.recv() == "done"
        except EOFError:
            self._process.join()
            assert self._process.exitcode == -signal.SIGKILL
            self._process = None
            return False
        return True

    def end(self) -> None:
        if self._process is not None:
            self._orders.send(None)
            self._process.join()
