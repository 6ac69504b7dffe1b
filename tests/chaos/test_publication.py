"""Writers, rollbacks and retention that meet at any two store operations (promises 17, 18, 19).

Two actors are stopped between any two of their operations; then either goes on first, or is killed.
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
import pyarrow.compute as pc
import pytest

from tests.chaos.harness import amount, measured
from tests.chaos.moves import Work, again
from tests.publication.runs import PASSED, draft_manifest
from tests.recommend.changing_shop import NO_RULES, ChangingShop
from tests.stepping import Actor, MemoryStore, meetings
from visrec.progress import Timer
from visrec.publication.claims import CLAIM, claim_run, read_claim
from visrec.publication.completion import finish_run, read_complete_run
from visrec.publication.list_tables import COLD_USERS_KEY, lists_table
from visrec.publication.manifest import RUN_MANIFEST, RunManifest, ShardFile, parse_manifest
from visrec.publication.pointer import LATEST, read_pointer, read_published
from visrec.publication.publish import publication_status, publish_run
from visrec.publication.retention import remove_old_runs
from visrec.publication.rollback import roll_back
from visrec.publication.run_spec import RunSpec, run_store
from visrec.recommend.fingerprint_files import write_item_fingerprints
from visrec.recommend.inputs import ScoringData
from visrec.recommend.queries import QueriesInMemory, read_all_queries
from visrec.recommend.writer import ShardWriter
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos
USERS = 6
QUIET: Any = SimpleNamespace(add=SimpleNamespace(remote=lambda _: None))


@cache
def shop(shards: int) -> ScoringData:
    """Six users in a number of shards."""
    data = ChangingShop(1, items=8, users=USERS).data(NO_RULES)
    every = read_all_queries(data.queries)
    by_id = every.take(pc.sort_indices(every.query_ids).to_numpy())
    return replace(data, queries=QueriesInMemory.assign(by_id, shards))


@cache
def table_of(shards: int, shard: int) -> pa.Table:
    data = shop(shards)
    query_ids = data.queries.read(shard).query_ids
    row_BK = np.tile(np.arange(2), (len(query_ids), 1))
    table = lists_table(
        query_ids, data.item_ids, row_BK, row_BK.astype(np.float32), row_BK,
        np.zeros(len(query_ids), bool), "nested",
    )  # fmt: skip
    return table.replace_schema_metadata({COLD_USERS_KEY: "0"})


def job(run_id: str, inputs: str, shards: int, cutoff: int | None = None) -> Work:
    """The steps of jobs/recommend.py, without the search."""

    def work(lists: Store) -> str:
        run = run_store(lists, run_id)
        read_published(lists)
        completed_by_another = True
        if read_complete_run(run) is None:
            metadata = {"visrec.inputs": inputs * 16, "visrec.run_id": run_id}
            spec = RunSpec(run, shards, 2, "nested", "user_to_item", metadata)
            claim_run(run, spec.inputs_digest)
            draft = replace(write_run(spec), run_id=run_id, cutoff_timestamp=cutoff)
            _, completed_by_another = finish_run(
                run, draft, [PASSED], inputs_digest=spec.inputs_digest
            )
        publish_run(lists, run_id, completed_by_another=completed_by_another)
        return publication_status(lists, run_id, completed_by_another=completed_by_another).summary

    return work


def write_run(spec: RunSpec) -> RunManifest:
    """Writes the fingerprints and shards of a run that are missing."""
    data = shop(spec.shards)
    fingerprints = dict([write_item_fingerprints(data, spec)])
    write = ShardWriter(data, spec, lambda n, _: (table_of(spec.shards, n), 0), Timer(QUIET))
    shards = [write(shard) for shard in range(spec.shards)]
    fingerprints |= {shard.fingerprints: shard.fingerprints_sha256 for shard in shards}
    files = {shard.name: ShardFile(shard.rows, shard.bytes, shard.sha256) for shard in shards}
    return draft_manifest(files=files, fingerprints=fingerprints)


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


def is_intact(files: Mapping[str, bytes], manifest: RunManifest) -> bool:
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return all(hashes.get(name) == sha256 for name, sha256 in manifest.sha256_by_file.items())


def require_intact_pointer(store: MemoryStore) -> None:
    """A reader who follows the pointer finds a complete run whose files are intact."""
    pointer, version = read_pointer(store)
    if version is not None:
        files = runs_in(store).get(str(pointer.run_id), {})
        assert RUN_MANIFEST in files, f"the pointer is at {pointer.run_id}, which has no manifest"
        assert hashlib.sha256(files[RUN_MANIFEST]).hexdigest() == pointer.manifest_sha256
        assert is_intact(files, parse_manifest(files[RUN_MANIFEST], RUN_MANIFEST))


def require_consistent(store: MemoryStore, folder: Path, killed: bool) -> int:
    """Checks the pointer, every complete run, and what readers see who glob the files of a run.

    They see the files of the manifest, each user once: immediately if no actor was killed, else
    after the next job has looked at the run.

    Returns:
        How many runs are complete.
    """
    require_intact_pointer(store)
    found = 0
    for run_id, before in runs_in(store).items():
        manifest = read_complete_run(run_store(store, run_id))
        if manifest is None:
            continue
        found += 1
        after = runs_in(store)[run_id]
        assert killed or after == before, f"{before.keys() - after.keys()} stayed in {run_id}"
        assert is_intact(after, manifest)
        # A retention that was slow may have removed the claim of a run that was made again.
        named = {*manifest.files, *manifest.fingerprints, RUN_MANIFEST}
        assert after.keys() - {CLAIM} == named
        require_glob(after, manifest, folder)
    return found


def require_glob(files: Mapping[str, bytes], manifest: RunManifest, folder: Path) -> None:
    """Checks the run on a disk as DuckDB reads it."""
    for old in folder.iterdir():
        old.unlink()
    for name, data in files.items():
        if "/" not in name:
            (folder / name).write_bytes(data)
    query = f"SELECT user_id, filename FROM read_parquet('{folder}/part-*.parquet', filename=true)"
    rows = duckdb.sql(query).fetchall()
    named = {name for name, file in manifest.files.items() if file.rows}
    assert {Path(filename).name for _, filename in rows} == named
    assert sorted(user for user, _ in rows) == sorted(
        read_all_queries(shop(2).queries).query_ids.to_pylist()
    )


# How two actors that were stopped go on, and whether one was killed.
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
    """Lets two actors meet at all points, or some of them, and go on in all ways.

    The pointer is checked after every operation.

    Yields:
        The store at the end, and whether an actor was killed.
    """
    for end, killed in ENDINGS:
        for store, one, two in meetings(start, first, second, every):
            require_intact_pointer(store)
            end(one, two, lambda store=store: require_intact_pointer(store))
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
def test_folder_of_a_complete_run_has_exactly_the_files_of_its_manifest(
    first: Work, second: Work, tmp_path: Path
) -> None:
    start, count, strays = MemoryStore("s3://shop"), 0, 0
    for store, killed in schedules(start, first, second, amount(13, 2)):
        before = len(store.objects)
        complete_runs = require_consistent(store, tmp_path, killed)
        strays += before - len(store.objects)
        if not killed:
            assert complete_runs == 1
        count += 1
        # When both jobs are started again, one of them publishes the run.
        outcomes = [Actor(store, work).finish() for work in (second, first)]
        assert "yes" in outcomes, outcomes
        assert require_consistent(store, tmp_path, False) == 1
    measured(17, schedules=count, globs=2 * count, strays_removed_later=strays, wrong_globs=0)


# ------------------------------------------ 18. a rerun of a complete run does not move the pointer


def test_rerun_of_a_complete_run_does_not_move_the_pointer() -> None:
    """Whatever was published or rolled back since, with a cutoff or without one."""
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
        for rerun in (night, urgent, night):
            rerun(store)
            reruns += 1
            assert store.objects[store.uri(LATEST)] == before
    measured(18, reruns=reruns, pointers_moved=0)


def test_run_stopped_before_the_pointer_is_published_unless_another_was_faster() -> None:
    for others in (False, True):
        store = MemoryStore("s3://shop")
        published(store, "2026-11-20")
        night = job(NIGHT, "a", 1, 2)
        stopped = Actor(store, night)
        while f"create {store.uri(f'run={NIGHT}/{RUN_MANIFEST}')}" not in stopped.steps:
            stopped.step()
        stopped.kill()
        if others:
            assert job("urgent", "b", 1, 2)(store) == "yes"
        why_not = "no: the pointer has moved to another run since this one became complete"
        assert night(store) == (why_not if others else "yes")
        require_intact_pointer(store)


def test_run_that_is_made_again_is_not_its_own_previous_run() -> None:
    store = MemoryStore("s3://shop")
    published(store, "2026-11-20", NIGHT)
    for uri in [uri for uri in store.objects if f"run={NIGHT}/" in uri]:
        del store.objects[uri]
    assert job(NIGHT, "b", 1, 2)(store) == "yes"
    assert read_pointer(store)[0].previous_run_id == "2026-11-20"


# ------------------------------ 19. retention removes no run that is published or in progress

NIGHTS = [f"2026-11-{day:02}" for day in range(11, 15)]
OLD = NIGHTS[0]


def prune(lists: Store) -> list[str]:
    return remove_old_runs(lists, 2)


def rolled_back(lists: Store) -> Any:
    return roll_back(lists, OLD)


MEETINGS: dict[str, tuple[Work, Work]] = {
    "retention, and a rollback to the night": (prune, rolled_back),
    "retention, and a second start of the night": (prune, job(OLD, "a", 1, 1)),
    "retention, and a backfilled night": (prune, job("2026-11-10", "a", 1, 0)),
    "retention, and a night that is backfilled twice": (
        again(job("2026-11-10", "a", 1, 0), prune), job("2026-11-10", "a", 1, 0)),
    "retention, and a night that is made again and rolled back to": (
        prune, again(prune, job(OLD, "a", 1, 1), rolled_back)),
    "retention twice": (prune, prune),
    "retention, and tonight": (prune, job("2026-11-15", "a", 1, 9)),
}  # fmt: skip


@pytest.mark.parametrize("name", MEETINGS)
def test_retention_removes_no_run_that_is_published_or_in_progress(
    name: str, tmp_path: Path
) -> None:
    first, second = MEETINGS[name]
    start, count = MemoryStore("s3://shop"), 0
    published(start, *NIGHTS)
    for store, killed in schedules(start, first, second, amount(13, 2)):
        require_consistent(store, tmp_path, killed)
        # The next retentions finish the removals that were stopped. What stays is a run whose
        # writer was killed just before the manifest: only the same inputs can complete it.
        prune(store)
        prune(store)
        pointer, _ = read_pointer(store)
        newest = sorted(runs_in(store))[-2:]
        kept = {*newest, pointer.run_id, pointer.previous_run_id}
        for run_id in {*runs_in(store), *pointer.removing} - kept:
            run = run_store(store, run_id)
            claim, _ = read_claim(run)
            assert claim is not None
            assert claim.state == "sealed"
            assert read_complete_run(run) is None
        require_consistent(store, tmp_path, killed)
        count += 1
    measured(19, schedules=count, pointers_at_removed_runs=0, complete_runs_without_files=0)
