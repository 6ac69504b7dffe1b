"""Writers, rollbacks and retention that meet at any two store operations (promises 17, 18, 19).

Both are stopped between every two of their operations; then either goes on first, or is killed.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from tests.chaos.harness import PASSED, amount, measured
from tests.recommend.test_incremental import Shop
from tests.stepping import Actor, MemoryStore, meetings
from visrec.errors import ConflictError, InputError
from visrec.interactions.log import shard_of
from visrec.jagged import offsets_of
from visrec.progress import Timer
from visrec.publication.claims import CLAIM, claim, read_claim
from visrec.publication.list_tables import lists_table
from visrec.publication.pointer import LATEST, read_pointer
from visrec.publication.retention import prune_runs
from visrec.publication.run import (
    MANIFEST,
    complete,
    find_complete,
    point_to,
    publication_status,
    read_last,
    roll_back,
    run_store,
)
from visrec.publication.run_spec import RunSpec
from visrec.recommend.incremental import write_item_fingerprints
from visrec.recommend.inputs import ScoringData
from visrec.recommend.lists import COLD
from visrec.recommend.writer import ShardWriter
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos
USERS = 6
QUIET: Any = SimpleNamespace(add=SimpleNamespace(remote=lambda _: None))
Work = Callable[[Store], Any]


@cache
def shop(shards: int) -> ScoringData:
    """Six users, dealt to so many shards."""
    data = Shop(1, items=8, users=USERS).data((None, False))
    query_ids = data.query_ids
    order = np.argsort(shard_of(query_ids, shards), kind="stable")
    counts = np.bincount(shard_of(query_ids, shards), minlength=shards)
    return replace(
        data, query_ids=query_ids.take(pa.array(order)), shard_offsets=offsets_of(counts)
    )


@cache
def table_of(shards: int, shard: int) -> pa.Table:
    data = shop(shards)
    first, end = map(int, data.shard_offsets[shard : shard + 2])
    row_BK = np.tile(np.arange(2), (end - first, 1))
    table = lists_table(
        data.query_ids.slice(first, end - first), data.item_ids, row_BK,
        row_BK.astype(np.float32), row_BK, np.zeros(end - first, bool), "nested",
    )  # fmt: skip
    return table.replace_schema_metadata({COLD: "0"})


def job(run_id: str, inputs: str, shards: int, before: int | None = None) -> Work:
    """A job's steps as jobs/recommend.py takes them, the searching left out."""

    def work(lists: Store) -> str:
        run, data = run_store(lists, run_id), shop(shards)
        read_last(lists, say=lambda _: None)
        first = False
        if find_complete(run) is None:
            marks = {"visrec.inputs": inputs * 16, "visrec.run_id": run_id}
            target = RunSpec(run, shards, 2, "nested", "user_to_item", marks)
            claim(run, target.inputs)
            fingerprints = dict([write_item_fingerprints(data, target)])
            write = ShardWriter(data, target, lambda n: (table_of(shards, n), 0), Timer(QUIET))
            facts = [write(shard) for shard in range(shards)]
            files = {f["name"]: {k: f[k] for k in ("rows", "bytes", "sha256")} for f in facts}
            fingerprints |= {f["fingerprints"]: f["fingerprints_sha256"] for f in facts}
            described = {"files": files, "fingerprints": fingerprints, "before": before}
            _, first = complete(run, described, [PASSED], inputs=target.inputs)
        point_to(lists, run_id, rerun=not first)
        return publication_status(lists, run_id, rerun=not first)

    return work


def published(store: MemoryStore, *nights: str) -> None:
    """Nights one after another, each of the day after the last."""
    for second, night in enumerate(nights, 1):
        assert job(night, "a", 1, second)(store) == "yes"


def runs_in(store: MemoryStore) -> dict[str, dict[str, bytes]]:
    """Each run's files."""
    found: dict[str, dict[str, bytes]] = {}
    for uri, data in store.objects.items():
        folder, _, name = uri.removeprefix(f"{store.root}/").partition("/")
        if folder.startswith("run="):
            found.setdefault(folder.removeprefix("run="), {})[name] = data
    return found


def is_whole(files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> bool:
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return all(hashes.get(name) == facts["sha256"] for name, facts in manifest["files"].items())


def require_whole_pointer(store: MemoryStore) -> None:
    """A reader who follows the pointer finds a run that is whole."""
    pointer, version = read_pointer(store)
    if version is not None:
        files = runs_in(store).get(str(pointer.run_id), {})
        assert MANIFEST in files, f"the pointer is at {pointer.run_id}, which has no manifest"
        assert hashlib.sha256(files[MANIFEST]).hexdigest() == pointer.manifest_sha256
        assert is_whole(files, run_store(store, str(pointer.run_id)).read_json(MANIFEST))


def require_sound(store: MemoryStore, folder: Path, killed: bool) -> int:
    """The pointer is at a whole run; what is complete is whole; and readers who glob see what the
    manifest says, each user once: at once where nobody was killed, else when anybody has come by.
    Returns how many runs are complete."""
    require_whole_pointer(store)
    found = 0
    for run_id, before in runs_in(store).items():
        manifest = find_complete(run_store(store, run_id))
        if manifest is None:
            continue
        found += 1
        after = runs_in(store)[run_id]
        assert killed or after == before, f"{before.keys() - after.keys()} stayed in {run_id}"
        assert is_whole(after, manifest)
        # A retention that was slow may have removed the claim of a run that was made again.
        named = {*manifest["files"], *manifest["fingerprints"], MANIFEST}
        assert after.keys() - {CLAIM} == named
        require_glob(after, manifest, folder)
    return found


def require_glob(files: Mapping[str, bytes], manifest: Any, folder: Path) -> None:
    """As DuckDB sees the run on a disk."""
    for old in folder.iterdir():
        old.unlink()
    for name, data in files.items():
        if "/" not in name:
            (folder / name).write_bytes(data)
    query = f"SELECT user_id, filename FROM read_parquet('{folder}/part-*.parquet', filename=true)"
    rows = duckdb.sql(query).fetchall()
    named = {name for name, facts in manifest["files"].items() if facts["rows"]}
    assert {Path(filename).name for _, filename in rows} == named
    assert sorted(user for user, _ in rows) == sorted(shop(2).query_ids.to_pylist())


# How two that were stopped end, and whether one was killed.
ENDINGS: list[tuple[Callable[[Actor, Actor, Callable[[], None]], Any], bool]] = [
    (lambda one, two, check: (one.finish(check), two.finish(check)), False),
    (lambda one, two, check: (two.finish(check), one.finish(check)), False),
    (lambda one, two, check: (one.kill(), two.finish(check)), True),
    (lambda one, two, check: (two.kill(), one.finish(check)), True),
    (lambda one, two, _: (one.kill(), two.kill()), True),
]


def schedules(
    start: MemoryStore, first: Work, second: Work, every: int
) -> Iterator[tuple[MemoryStore, bool]]:
    """The store after two actors met in all ways, or in some of them, and ended in all ways;
    the pointer was at a whole run after every operation. And whether one was killed."""
    for end, killed in ENDINGS:
        for store, one, two in meetings(start, first, second, every):
            require_whole_pointer(store)
            end(one, two, lambda store=store: require_whole_pointer(store))
            for actor in (one, two):
                if actor.fault is not None:
                    raise actor.fault
            yield store, killed


# ------------------------------------------------------------- 17. exactly the manifest's files

NIGHT = "2026-11-21"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (job(NIGHT, "a", 2), job(NIGHT, "b", 1)),
        (job(NIGHT, "a", 1), job(NIGHT, "a", 1)),
    ],
    ids=["other inputs", "the same inputs"],
)
def test_a_folder_holds_what_its_manifest_names(first: Work, second: Work, tmp_path: Path) -> None:
    start, count, strays = MemoryStore("s3://shop"), 0, 0
    for store, killed in schedules(start, first, second, amount(13, 2)):
        before = len(store.objects)
        complete_runs = require_sound(store, tmp_path, killed)
        strays += before - len(store.objects)
        if not killed:
            assert complete_runs == 1
        count += 1
        # One of them comes to the end when it is started again.
        outcomes = [Actor(store, work).finish() for work in (second, first)]
        assert "yes" in outcomes, outcomes
        assert require_sound(store, tmp_path, False) == 1
    measured(17, schedules=count, globs=2 * count, strays_removed_later=strays, wrong_globs=0)


# ------------------------------------------------ 18. a rerun of something complete moves nothing


def test_a_rerun_of_a_complete_run_moves_nothing() -> None:
    """Whatever was published or rolled back since, with a date or without one."""
    days: list[int | None] = [None, 1]
    reruns = 0
    for day, urgent_day, back in itertools.product(days, days, (False, True)):
        store = MemoryStore("s3://shop")
        published(store, "2026-11-20")
        night, urgent = job(NIGHT, "a", 1, day), job("urgent", "b", 1, urgent_day)
        assert night(store) == "yes"
        assert urgent(store) == "yes"
        if back:
            assert roll_back(store) == ("urgent", NIGHT)
            assert roll_back(store, "2026-11-20") == (NIGHT, "2026-11-20")
        before = store.objects[store.uri(LATEST)]
        for again in (night, urgent, night):
            again(store)
            reruns += 1
            assert store.objects[store.uri(LATEST)] == before
    measured(18, reruns=reruns, pointers_moved=0)


def test_a_run_stopped_before_the_pointer_is_pointed_to_unless_others_were_faster() -> None:
    for others in (False, True):
        store = MemoryStore("s3://shop")
        published(store, "2026-11-20")
        night = job(NIGHT, "a", 1, 2)
        stopped = Actor(store, night)
        while f"create {store.uri(f'run={NIGHT}/{MANIFEST}')}" not in stopped.steps:
            stopped.step()
        stopped.kill()
        if others:
            assert job("urgent", "b", 1, 2)(store) == "yes"
        why_not = "no: another run was published or rolled back to since it was complete"
        assert night(store) == (why_not if others else "yes")
        require_whole_pointer(store)


def test_a_run_that_is_made_again_does_not_name_itself_as_the_one_before() -> None:
    store = MemoryStore("s3://shop")
    published(store, "2026-11-20", NIGHT)
    for uri in [uri for uri in store.objects if f"run={NIGHT}/" in uri]:
        del store.objects[uri]
    assert job(NIGHT, "b", 1, 2)(store) == "yes"
    assert read_pointer(store)[0].previous_run_id == "2026-11-20"


# --------------------------------- 19. retention removes nothing that is pointed to or worked on

NIGHTS = [f"2026-11-{day:02}" for day in range(11, 15)]
OLD = NIGHTS[0]


def prune(lists: Store) -> list[str]:
    return prune_runs(lists, 2)


def again(*works: Work) -> Work:
    """One after another, each whatever the one before has said."""

    def work(lists: Store) -> None:
        for one in works:
            try:
                one(lists)
            except (ConflictError, InputError):
                continue

    return work


def rolled_back(lists: Store) -> Any:
    return roll_back(lists, OLD)


MEETINGS: dict[str, tuple[Work, Work]] = {
    "retention, and a rollback to the night": (prune, rolled_back),
    "retention, and a second start of the night": (prune, job(OLD, "a", 1, 1)),
    "retention, and a night that is filled in": (prune, job("2026-11-10", "a", 1, 0)),
    "retention, and a night that is filled in twice": (
        again(job("2026-11-10", "a", 1, 0), prune), job("2026-11-10", "a", 1, 0)),
    "retention, and a night that is made again and rolled back to": (
        prune, again(prune, job(OLD, "a", 1, 1), rolled_back)),
    "retention twice": (prune, prune),
    "retention, and tonight": (prune, job("2026-11-15", "a", 1, 9)),
}  # fmt: skip


@pytest.mark.parametrize("name", MEETINGS)
def test_retention_removes_nothing_that_is_pointed_to_or_worked_on(
    name: str, tmp_path: Path
) -> None:
    first, second = MEETINGS[name]
    start, count = MemoryStore("s3://shop"), 0
    published(start, *NIGHTS)
    for store, killed in schedules(start, first, second, amount(13, 2)):
        require_sound(store, tmp_path, killed)
        # The next retentions finish what was stopped. What stays is of somebody who was killed just
        # before the manifest: only who makes that run again can go on there.
        prune(store)
        prune(store)
        pointer, _ = read_pointer(store)
        newest = sorted(runs_in(store))[-2:]
        kept = {*newest, pointer.run_id, pointer.previous_run_id}
        for run_id in {*runs_in(store), *pointer.removing} - kept:
            run = run_store(store, run_id)
            claimed, _ = read_claim(run)
            assert claimed is not None
            assert claimed["state"] == "sealed"
            assert find_complete(run) is None
        require_sound(store, tmp_path, killed)
        count += 1
    measured(19, schedules=count, pointers_at_removed_runs=0, complete_runs_without_files=0)
