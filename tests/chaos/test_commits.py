"""Commits in a race, over a line that breaks, and while a reader looks (promises 1, 2 and 4)."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from tests.chaos.harness import (
    PROCESSES,
    Witness,
    adopt,
    amount,
    damaged_files,
    make_complete_run,
    measured,
    run_contents,
    write_draft,
)
from tests.proxy import FaultKind, FaultProxy, FaultRule
from tests.publication.runs import PASSED, file_names, published_run_id
from tests.servers import SeaweedFS
from visrec.errors import ConflictError, StorageError
from visrec.publication.completion import finish_run
from visrec.publication.manifest import RUN_MANIFEST, RunManifest, read_run_manifest
from visrec.publication.pointer import LATEST, Pointer, read_pointer
from visrec.publication.publish import publish_run
from visrec.publication.run_spec import run_store
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

pytestmark = [pytest.mark.s3, pytest.mark.chaos]


# ------------------------------------------------------------- 1. one wins, and none is lost

_start: Any = None  # the barrier at which the racing processes meet


def enter(barrier: Any, env: dict[str, str]) -> None:
    global _start
    _start = barrier
    adopt(env)


def race_for_nights(number: int, lists: Store, nights: int) -> list[str]:
    """The outcome of each night for one writer, whose files are unlike those of the others."""
    outcomes = []
    for night in range(nights):
        run = run_store(lists, f"night-{night}")
        contents = {f"part-{number:05}.parquet": f"lists of {number} in {night}".encode() * 100}
        draft = write_draft(run, contents, f"writer {number}")
        _start.wait()
        try:
            finish_run(run, draft, [PASSED])
            outcomes.append("won")
        except ConflictError:
            outcomes.append("refused")
        if outcomes[-1] == "won":
            assert publish_run(lists, f"night-{night}")
        _start.wait()
    return outcomes


def race_for_pointer(number: int, lists: Store, moves: int) -> tuple[list[bytes], int]:
    """The pointers whose writes were acknowledged to one writer, and how often it was refused."""
    witness, refused = Witness(lists.root, lists.endpoint), 0
    runs = [f"writer-{number}-{move}" for move in range(moves)]
    for run_id in runs:
        make_complete_run(lists, run_id)
    _start.wait()
    for run_id in runs:
        while True:
            try:
                assert publish_run(witness, run_id)
                break
            except ConflictError:
                refused += 1
    return [data for name, data in witness.commits if name == LATEST], refused


def in_processes(count: int, s3: SeaweedFS, work: Any, *arguments: Any) -> list[Any]:
    """Results of `work(number, ...)` in `count` processes, which all start at one moment."""
    setup = (PROCESSES.Barrier(count, timeout=120), s3.env())
    with PROCESSES.Pool(count, enter, setup) as pool:
        return pool.starmap(work, [(number, *arguments) for number in range(count)], chunksize=1)


def test_one_of_the_processes_that_publish_one_night_wins(s3: SeaweedFS, lists: Store) -> None:
    writers, nights = amount(2, 8), amount(2, 20)
    outcomes = in_processes(writers, s3, race_for_nights, lists, nights)
    for night in range(nights):
        seen = [outcome[night] for outcome in outcomes]
        winner = seen.index("won")
        assert seen.count("won") == 1
        assert seen.count("refused") == writers - 1
        run = run_store(lists, f"night-{night}")
        manifest = read_run_manifest(run)
        assert manifest is not None
        data = f"lists of {winner} in {night}".encode() * 100
        [file] = manifest.files.values()
        assert manifest.model_id == f"writer {winner}"
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        assert file_names(run) == {f"part-{winner:05}.parquet", RUN_MANIFEST}
        assert damaged_files(run, manifest) == []
    assert published_run_id(lists) == f"night-{nights - 1}"
    every = [outcome for one in outcomes for outcome in one]
    measured(1, nights=nights, wins=every.count("won"), clean_refusals=every.count("refused"))


def test_every_move_of_the_pointer_in_a_race_is_counted(s3: SeaweedFS, lists: Store) -> None:
    writers, moves = amount(2, 8), amount(4, 25)
    outcomes = in_processes(writers, s3, race_for_pointer, lists, moves)
    commits = [json.loads(data) for found, _ in outcomes for data in found]
    counted = chain(commits, published_run_id(lists))
    assert counted == writers * moves == len(commits)
    refusals = sum(refused for _, refused in outcomes)
    measured(1, pointer_swaps=len(commits), swaps_counted=counted, swaps_refused=refusals)
    measured(1, commits_acknowledged=len(commits), commits_lost=len(commits) - counted)


def chain(pointers: list[dict[str, Any]], last: str) -> int:
    """How many moves lead from no pointer to the last one, each from the one before."""
    previous = {pointer["run_id"]: pointer["previous_run_id"] for pointer in pointers}
    length, at = 0, last
    while at is not None:
        at = previous.pop(at)
        length += 1
    assert not previous  # moves that another writer overwrote without having read them
    return length


# ------------------------------------------------------ 2. a lost reply is no lost or second commit

KINDS: tuple[FaultKind, ...] = ("drop_before", "reply_dropped", "reset_in_body", "status_503")


def publish_until_done(
    lists: Store, direct: Store, run_id: str, before: str | None, proxy: FaultProxy
) -> tuple[int, int]:
    """Publishes over a broken line, checks after every step, again where it failed.

    Returns:
        How many steps failed, and how many of those had been done all the same.
    """
    failed = landed = 0
    run = run_store(direct, run_id)

    def manifest() -> RunManifest | None:
        return read_run_manifest(run)

    def pointer() -> Pointer | None:
        found, _ = read_pointer(direct)
        return None if found.run_id == before else found

    steps: list[tuple[Callable[[], Any], Callable[[], RunManifest | Pointer | None]]] = [
        (lambda: make_complete_run(lists, run_id, "mine"), manifest),
        (lambda: publish_run(lists, run_id), pointer),
    ]
    for commit, read in steps:
        acknowledged: Any = None
        try:
            acknowledged = commit()
        except StorageError:
            failed += 1
        found = read()  # what is in the store now, seen over a line that is not broken
        if acknowledged is not None:
            assert found is not None
            assert acknowledged in (found, True)
            continue
        landed += found is not None
        proxy.clear()  # the line is repaired and the step is done again
        again = commit()
        if read is pointer:
            assert again is (found is None)
        else:
            assert found is None or again == found
    made, published = manifest(), pointer()
    assert made is not None
    assert published is not None
    assert file_names(run) == {*run_contents(run_id), RUN_MANIFEST}
    assert (made.model_id, damaged_files(run, made)) == ("mine", [])
    assert (published.run_id, published.previous_run_id) == (run_id, before)
    assert published_run_id(direct) == run_id
    return failed, landed


@pytest.mark.usefixtures("no_pauses")
def test_fault_at_a_commit_neither_loses_nor_doubles_it(lists: Store, proxy: FaultProxy) -> None:
    broken = Store(lists.root, proxy.endpoint)
    cases = [
        # One fault, which the client's own retry meets; and one at each of its five attempts.
        [FaultRule(kind, method="PUT", key=key, times=times)]
        for kind in KINDS
        for key in (RUN_MANIFEST, LATEST)
        for times in (*amount(1, 3) * (1,), 5)
    ]
    # The request that settles an unclear reply is not answered either. The pointer was requested
    # once before it is written.
    cases += [
        [
            FaultRule(kind, "PUT", key, times=5),
            FaultRule("drop_before", "HEAD", key, skip=skip, times=5),
        ]
        for kind in KINDS
        for key, skip in ((RUN_MANIFEST, 0), (LATEST, 1))
    ]
    before, failed, landed, commits = None, 0, 0, 0
    for turn in range(amount(1, 2)):
        for number, rules in enumerate(cases):
            run_id = f"turn-{turn}-case-{number}"
            if number % 4 == 0:
                forget_credentials()  # a client that has failed often does not try again for long
            proxy.add(*[FaultRule(**vars(rule)) for rule in rules])
            raised, there = publish_until_done(broken, lists, run_id, before, proxy)
            proxy.clear()
            before, failed, landed, commits = run_id, failed + raised, landed + there, commits + 2
    assert sum(proxy.injected.values()) >= amount(100, 200)
    assert set(proxy.injected) == set(KINDS)
    assert failed
    assert landed  # else no reply was unclear, and the test tested nothing
    measured(2, **{f"faults_{kind}": count for kind, count in proxy.injected.items()})
    measured(2, errors=failed, landed_all_the_same=landed)
    # Each commit was looked for, and the one before it: a lost or a second commit fails the test.
    measured(2, commits_acknowledged=commits, commits_lost=0, commits_doubled=0)


# -------------------------------------------------------------------- 4. never half before a reader


def publish_on_demand(orders: Connection, lists: Store, env: dict[str, str]) -> None:
    """Publishes each run that it is sent, and reports when it begins and when it is done."""
    adopt(env)
    while run_id := orders.recv():
        orders.send("begun")
        make_complete_run(lists, run_id)
        publish_run(lists, run_id)
        orders.send("done")


class Writers:
    """Publishes without pause, in processes; some are killed at a random moment."""

    def __init__(self, lists: Store, env: dict[str, str]) -> None:
        self._arguments = (lists, env)
        self._random = random.Random(4)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._process: Any = None
        self._seconds = 0.1  # of the last publication
        self.killed = 0
        self.done: list[str] = []

    def __enter__(self) -> "Writers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        """Every third publication is killed first, and done again by a new process."""
        try:
            while not self._stop.is_set():
                run_id = f"night-{len(self.done)}"
                if len(self.done) % 3 == 1:
                    self._publish(run_id, kill=True)
                self._publish(run_id, kill=False)
        finally:
            self._end()

    def _publish(self, run_id: str, kill: bool) -> None:
        if self._process is None:
            self._orders, theirs = PROCESSES.Pipe()
            arguments = (theirs, *self._arguments)
            self._process = PROCESSES.Process(target=publish_on_demand, args=arguments)
            self._process.start()
        self._orders.send(run_id)
        assert self._orders.recv() == "begun"
        start = time.monotonic()
        if kill:
            time.sleep(self._random.uniform(0, self._seconds))
            self._end()
            self.killed += 1
        else:
            assert self._orders.recv() == "done"
            self._seconds = time.monotonic() - start
            self.done.append(run_id)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def test_reader_never_sees_half_a_run(s3: SeaweedFS, lists: Store) -> None:
    publications, kills, polls = amount(2, 30), amount(1, 10), amount(20, 1000)
    make_complete_run(lists, "first")
    publish_run(lists, "first")
    seen: list[str] = []
    with Writers(lists, s3.env()) as writers:
        while (
            len(seen) < polls or len(writers.done) < publications or writers.killed < kills
        ) and writers.alive:
            seen.append(published_run_id(lists))  # fails if a file is not that of the manifest
            time.sleep(0.01)  # writers need the processor, too
    assert len(seen) >= polls
    order = ["first", *writers.done]
    assert order == ["first", *(f"night-{number}" for number in range(len(writers.done)))]
    positions = [order.index(run_id) for run_id in seen]
    assert positions == sorted(positions)  # never a run that had been replaced
    assert published_run_id(lists) == order[-1]
    measured(4, publications=len(writers.done), faults_writer_sigkill=writers.killed)
    measured(4, polls=len(seen), partial_reads=0, runs_seen=len(set(seen)))
