"""A reader of a table sees the published run, or the one published just before (promise 28).

Once with processes and readers that stop for nobody, on a real S3 server; once with two actors that
are stopped between any two of their store operations.
"""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.chaos.harness import amount, make_complete_run, measured
from tests.chaos.moves import WRITES, Mover, Work, again
from tests.publication.list_runs import FORMATS, complete_lists, runs_seen
from tests.publication.runs import published_run_id
from tests.servers import SeaweedFS
from tests.stepping import Actor, MemoryStore, meetings
from visrec.publication.delta_table import DELTA_LOG
from visrec.publication.pointer import TableFormat, read_pointer
from visrec.publication.publish import publish_run
from visrec.publication.retention import remove_old_runs
from visrec.publication.rollback import roll_back
from visrec.publication.symlink_manifest import SYMLINK_MANIFEST, SymlinkManifest
from visrec.publication.tables import _published_content
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos

# ---------------------------------------------------------------------- readers, kills, a rollback


@dataclass
class Readers:
    """Threads that read a table each without pause.

    Attributes:
        lists: where the runs are.
        seen: for each reading, the format, the pointer's sequence before it, the runs in the rows,
            and the sequence after it.
        faults: errors that ended a thread.
    """

    lists: Store
    seen: list[tuple[TableFormat, int, set[str], int]] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> "Readers":
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(one,)) for one in FORMATS]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self, table: TableFormat) -> None:
        try:
            while not self._stop.is_set():
                before = read_pointer(self.lists)[0].sequence
                runs = runs_seen(self.lists, table)
                self.seen.append((table, before, runs, read_pointer(self.lists)[0].sequence))
                time.sleep(0.01)  # writers need the processor, too
        except BaseException as error:
            self.faults.append(error)


def glob_runs(lists: Store) -> set[str]:
    """The runs that a reader sees who globs all of them."""
    names = [entry.name for entry in lists.list("run=") if "/part-" in entry.name]
    return {name.partition("/")[0].removeprefix("run=") for name in names}


@pytest.mark.s3
def test_reader_of_a_table_sees_the_published_run_alone(s3: SeaweedFS, lists: Store) -> None:
    publications, kills = amount(3, 30), amount(1, 10)
    nights = [f"2026-{number // 28 + 1:02}-{number % 28 + 1:02}" for number in range(publications)]
    dying = dict(zip(random.Random(0).sample(nights[1:], kills), range(kills), strict=True))
    history: dict[int, str] = {}
    strays = killed = 0

    def note() -> None:
        pointer = read_pointer(lists)[0]
        history[pointer.sequence] = str(pointer.run_id)

    mover = Mover(lists, s3.env())
    complete_lists(lists, "2025-12-31")
    mover.move("2025-12-31")
    note()
    with Readers(lists) as readers:
        for night in nights:
            complete_lists(lists, night)
            strays += glob_runs(lists) > {published_run_id(lists)}
            if night in dying:
                # Killed after each write in turn; whatever it left, the next one goes on.
                killed += not mover.move(night, 1 + dying[night] % WRITES)
                note()
            if dying.get(night, 0) % 2 == 0:  # else the next night finds it
                mover.move(night)
                note()
        mover.move("rollback")
        note()
        left = published_run_id(lists)
    mover.end()
    assert not readers.faults, readers.faults
    assert killed == kills
    assert [runs_seen(lists, table) for table in FORMATS] == 3 * [{left}]
    wrong = [
        one
        for one in readers.seen
        if not one[2] <= {history.get(n) for n in range(one[1] - 1, one[3] + 1)} or len(one[2]) != 1
    ]
    assert not wrong, (wrong, history)
    assert {table for table, *_ in readers.seen} == set(FORMATS)
    counts = {f"reads_{one}": sum(found[0] == one for found in readers.seen) for one in FORMATS}
    measured(28, publications=len(history) - 1, faults_writer_sigkill=killed, **counts)
    measured(28, reads_of_other_runs=0, runs_seen=len({str(found[2]) for found in readers.seen}))
    behind = sum(
        not runs <= {history.get(n) for n in range(before, after + 1)}
        for _, before, runs, after in readers.seen
    )
    measured(28, globs_with_unpublished_runs=strays, reads_of_the_run_before=behind)


# ------------------------------------------------------- two actors, stopped between any two steps

RUNS = R1, R2, R3, R4 = [f"2026-11-{day}" for day in range(11, 15)]
FOLLOWED: tuple[TableFormat, ...] = ("delta", "manifest")


def publish(run_id: str) -> Work:
    return lambda lists: publish_run(lists, run_id)


def shown(store: MemoryStore) -> dict[str, tuple[int, str, set[str]]]:
    """Of each table the sequence and the run that it was committed for, and the files it names."""
    commits = [uri for uri in store.objects if f"/{DELTA_LOG}/" in uri]
    actions = [json.loads(line) for line in store.objects[max(commits)].splitlines()]
    identity = actions[0]["commitInfo"]["visrec"]
    files = {store.uri(each["add"]["path"]) for each in actions if "add" in each}
    uris = set(store.read(SYMLINK_MANIFEST).decode().split())
    run_id = next(iter(uris)).partition("run=")[2].partition("/")[0]
    return {
        "delta": (identity["sequence"], identity["run_id"], files),
        "manifest": (-1, run_id, uris),
    }


def require_near(store: MemoryStore, history: dict[int, str]) -> None:
    """Checks that each table is at the pointer or one move behind, and that its files are there."""
    pointer, _ = read_pointer(store)
    history[pointer.sequence] = str(pointer.run_id)
    for name, (sequence, run_id, files) in shown(store).items():
        assert files <= store.objects.keys(), f"{name} names files of {run_id} that are gone"
        if name == "delta":
            assert sequence in (pointer.sequence, pointer.sequence - 1), (name, sequence, pointer)
            assert history.setdefault(sequence, run_id) == run_id
        elif pointer.sequence - 1 in history:
            near = {history[pointer.sequence], history[pointer.sequence - 1]}
            assert run_id in near, (name, run_id, near)


def require_settled(store: MemoryStore) -> None:
    """Checks that each table is at the pointer."""
    pointer, _ = read_pointer(store)
    assert shown(store)["delta"][:2] == (pointer.sequence, pointer.run_id)
    content = _published_content(store, pointer)
    assert content is not None
    assert SymlinkManifest(store).shows(content)


ENDINGS: list[Callable[[Actor, Actor, Callable[[], None]], Any]] = [
    lambda one, two, check: (one.finish(check), two.finish(check)),
    lambda one, two, check: (two.finish(check), one.finish(check)),
    lambda one, two, check: (one.kill(), two.finish(check)),
    lambda one, two, check: (two.kill(), one.finish(check)),
]


def prune(lists: Store) -> Any:
    return remove_old_runs(lists, 2)


MEETINGS: dict[str, tuple[Work, Work]] = {
    "two publications": (publish(R3), publish(R4)),
    "a publication, and a rollback": (publish(R3), roll_back),
    "a publication, and retention": (publish(R3), prune),
    "a publication, and one with retention": (publish(R3), again(publish(R4), prune)),
    "a publication, and a quick there and back": (
        publish(R3), again(publish(R4), roll_back, publish(R3))),
}  # fmt: skip


@pytest.mark.parametrize("name", MEETINGS)
def test_table_is_never_two_moves_behind_wherever_two_actors_meet(name: str) -> None:
    first, second = MEETINGS[name]
    start, count = MemoryStore("s3://shop"), 0
    for run_id in RUNS:
        make_complete_run(start, run_id)
    publish_run(start, R1, tables=FOLLOWED)
    publish_run(start, R2)
    for end in ENDINGS:
        for store, one, two in meetings(start, first, second, amount(13, 3)):
            history: dict[int, str] = {1: R1, 2: R2}
            require_near(store, history)
            end(one, two, lambda store=store, history=history: require_near(store, history))
            for actor in (one, two):
                if actor.fault is not None:
                    raise actor.fault
            prune(store)  # the next job of any kind
            require_settled(store)
            count += 1
    measured(28, schedules=count, tables_two_moves_behind=0)
