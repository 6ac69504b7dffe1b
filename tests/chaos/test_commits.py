"""Commits in a race, over a line that breaks, and before a reader's eyes (promises 1, 2 and 4)."""

import hashlib
import json
import random
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest

from tests.chaos.harness import (
    PASSED,
    PROCESSES,
    Witness,
    adopt,
    amount,
    completed,
    contents_of,
    damage,
    measured,
    shards_of,
)
from tests.proxy import FaultProxy, Kind, Rule
from tests.publication.test_run import names, pointed_to
from tests.servers import SeaweedFS
from visrec.errors import ConflictError, StorageError
from visrec.publication.pointer import LATEST
from visrec.publication.run import MANIFEST, complete, point_to, read_published, run_store
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

pytestmark = [pytest.mark.s3, pytest.mark.chaos]


# ------------------------------------------------------------- 1. one wins, and none is lost

_start: Any = None  # of a racing process: where all of them meet


def enter(barrier: Any, env: dict[str, str]) -> None:
    global _start
    _start = barrier
    adopt(env)


def race_for_nights(number: int, lists: Store, nights: int) -> list[str]:
    """One writer's outcome of each night; its files are its own, of its own bytes."""
    outcomes = []
    for night in range(nights):
        run = run_store(lists, f"night-{night}")
        mine = {f"part-{number:05}.parquet": f"lists of {number} in {night}".encode() * 100}
        described = shards_of(run, mine, f"writer {number}")
        _start.wait()
        try:
            complete(run, described, [PASSED])
            outcomes.append("won")
        except ConflictError:
            outcomes.append("refused")
        if outcomes[-1] == "won":
            assert point_to(lists, f"night-{night}")
        _start.wait()
    return outcomes


def race_for_pointer(number: int, lists: Store, moves: int) -> tuple[list[bytes], int]:
    """The pointers that one writer was told it had set, and how often it was refused."""
    witness, refused = Witness(lists.root, lists.endpoint), 0
    runs = [f"writer-{number}-{move}" for move in range(moves)]
    for run_id in runs:
        completed(lists, run_id)
    _start.wait()
    for run_id in runs:
        while True:
            try:
                assert point_to(witness, run_id)
                break
            except ConflictError:
                refused += 1
    return [data for name, data in witness.commits if name == LATEST], refused


def count_same_code(count: int, s3: SeaweedFS, work: Any, *arguments: Any) -> list[Any]:
    """What `work(number, ...)` returns in as many processes, which all start at one moment."""
    setup = (PROCESSES.Barrier(count, timeout=120), s3.env())
    with PROCESSES.Pool(count, enter, setup) as pool:
        return pool.starmap(work, [(number, *arguments) for number in range(count)], chunksize=1)


def test_of_processes_that_publish_one_night_one_wins(s3: SeaweedFS, lists: Store) -> None:
    writers, nights = amount(2, 8), amount(2, 20)
    outcomes = count_same_code(writers, s3, race_for_nights, lists, nights)
    for night in range(nights):
        seen = [outcome[night] for outcome in outcomes]
        winner = seen.index("won")
        assert seen.count("won") == 1
        assert seen.count("refused") == writers - 1
        run = run_store(lists, f"night-{night}")
        manifest = read_published(run)
        assert manifest is not None
        data = f"lists of {winner} in {night}".encode() * 100
        [facts] = manifest["files"].values()
        assert manifest["writer"] == f"writer {winner}"
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
        assert names(run) == {f"part-{winner:05}.parquet", MANIFEST}
        assert damage(run, manifest) == []
    assert pointed_to(lists) == f"night-{nights - 1}"
    every = [outcome for one in outcomes for outcome in one]
    measured(1, nights=nights, wins=every.count("won"), clean_refusals=every.count("refused"))


def test_every_move_of_the_pointer_in_a_race_is_counted(s3: SeaweedFS, lists: Store) -> None:
    writers, moves = amount(2, 8), amount(4, 25)
    outcomes = count_same_code(writers, s3, race_for_pointer, lists, moves)
    commits = [json.loads(data) for found, _ in outcomes for data in found]
    counted = chain(commits, pointed_to(lists))
    assert counted == writers * moves == len(commits)
    refusals = sum(refused for _, refused in outcomes)
    measured(1, pointer_swaps=len(commits), swaps_counted=counted, swaps_refused=refusals)
    measured(1, commits_acknowledged=len(commits), commits_lost=len(commits) - counted)


def chain(pointers: list[dict[str, Any]], last: str) -> int:
    """How many moves lead from nothing to the pointer that is there, each from the one before."""
    previous = {pointer["run_id"]: pointer["previous_run_id"] for pointer in pointers}
    length, at = 0, last
    while at is not None:
        at = previous.pop(at)
        length += 1
    assert not previous  # moves that another overwrote without having seen them
    return length


# ------------------------------------------------------ 2. a lost reply is no lost or second commit

KINDS: tuple[Kind, ...] = ("drop_before", "reply_dropped", "reset_in_body", "status_503")


def publish_until_done(
    lists: Store, direct: Store, run_id: str, before: str | None, proxy: FaultProxy
) -> tuple[int, int]:
    """Publishes over a broken line, checks after every step, again where it failed.

    Returns:
        How many steps failed, and how many of those had been done all the same.
    """
    failed = landed = 0
    run = run_store(direct, run_id)
    for step in ("manifest", "pointer"):
        acknowledged: Any = None
        try:
            acknowledged = (
                completed(lists, run_id, "mine") if step == "manifest" else point_to(lists, run_id)
            )
        except StorageError:
            failed += 1
        # What lies there now, seen over a line that is whole.
        name, night = (MANIFEST, run) if step == "manifest" else (LATEST, direct)
        found = night.read_json(name) if night.exists(name) else None
        if step == "pointer" and found is not None and found["run_id"] == before:
            found = None
        if acknowledged is None:
            landed += found is not None
            proxy.clear()  # the line is mended and the step is done again
            if step == "manifest":
                again = completed(lists, run_id, "mine")
                assert found is None or again == found
            else:
                assert point_to(lists, run_id) is (found is None)
        elif step == "manifest":
            assert acknowledged == found
        else:
            assert acknowledged is True
            assert found is not None
        made = night.read_json(name)
        if step == "manifest":
            assert names(run) == {*contents_of(run_id), MANIFEST}
            assert (made["writer"], damage(run, made)) == ("mine", [])
        else:
            assert (made["run_id"], made["previous_run_id"]) == (run_id, before)
    assert pointed_to(direct) == run_id
    return failed, landed


@pytest.mark.usefixtures("no_pauses")
def test_a_fault_at_a_commit_neither_loses_nor_doubles_it(lists: Store, proxy: FaultProxy) -> None:
    broken = Store(lists.root, proxy.endpoint)
    cases = [
        # One fault, which the client's own retry meets; and one at each of its five attempts.
        [Rule(kind, method="PUT", key=key, times=times)]
        for kind in KINDS
        for key in (MANIFEST, LATEST)
        for times in (*amount(1, 3) * (1,), 5)
    ]
    # Nor is the look that settles an unclear reply answered. Before the pointer is written there
    # has been a look at it already.
    cases += [
        [Rule(kind, "PUT", key, times=5), Rule("drop_before", "HEAD", key, skip=skip, times=5)]
        for kind in KINDS
        for key, skip in ((MANIFEST, 0), (LATEST, 1))
    ]
    before, failed, landed, commits = None, 0, 0, 0
    for turn in range(amount(1, 2)):
        for number, rules in enumerate(cases):
            run_id = f"turn-{turn}-case-{number}"
            if number % 4 == 0:
                forget_credentials()  # a client that has failed often does not try again for long
            proxy.add(*[Rule(**vars(rule)) for rule in rules])
            raised, there = publish_until_done(broken, lists, run_id, before, proxy)
            proxy.clear()
            before, failed, landed, commits = run_id, failed + raised, landed + there, commits + 2
    assert sum(proxy.injected.values()) >= amount(100, 200)
    assert set(proxy.injected) == set(KINDS)
    assert failed
    assert landed  # or the tests of what is unclear tested nothing
    measured(2, **{f"faults_{kind}": count for kind, count in proxy.injected.items()})
    measured(2, errors=failed, landed_all_the_same=landed)
    # Each was looked for, and its predecessor too: a lost or a second one ends the test.
    measured(2, commits_acknowledged=commits, commits_lost=0, commits_doubled=0)


# -------------------------------------------------------------------- 4. never half before a reader


def publish_on_demand(orders: Connection, lists: Store, env: dict[str, str]) -> None:
    """Publishes each run it is told to, and tells when it begins and when it is done."""
    adopt(env)
    while run_id := orders.recv():
        orders.send("begun")
        completed(lists, run_id)
        point_to(lists, run_id)
        orders.send("done")


class Writers:
    """Publications without pause by processes, of which some are killed at a random moment."""

    def __init__(self, lists: Store, env: dict[str, str]) -> None:
        self._arguments = (lists, env)
        self._random = random.Random(4)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._process: Any = None
        self._seconds = 0.1  # that the last publication took
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


def test_a_reader_never_sees_half_a_run(s3: SeaweedFS, lists: Store) -> None:
    publications, kills, polls = amount(2, 30), amount(1, 10), amount(20, 1000)
    completed(lists, "first")
    point_to(lists, "first")
    seen: list[str] = []
    with Writers(lists, s3.env()) as writers:
        while (
            len(seen) < polls or len(writers.done) < publications or writers.killed < kills
        ) and writers.alive:
            seen.append(pointed_to(lists))  # fails where a file is not what its manifest says
            time.sleep(0.01)  # writers want the processor too
    assert len(seen) >= polls
    order = ["first", *writers.done]
    assert order == ["first", *(f"night-{number}" for number in range(len(writers.done)))]
    places = [order.index(run_id) for run_id in seen]
    assert places == sorted(places)  # nor one that had been replaced
    assert pointed_to(lists) == order[-1]
    measured(4, publications=len(writers.done), faults_writer_sigkill=writers.killed)
    measured(4, polls=len(seen), partial_reads=0, runs_seen=len(set(seen)))
