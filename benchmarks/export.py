"""Lists a second that an export writes to each store, and to a file.

python -m benchmarks.export --json
python -m benchmarks.export --users 20000 --k 100 --changed 0.05

The servers are those of the tests, on this machine, so they take part of its cores. A first export
writes all lists, a second one those of the next run that changed. A store without a server here is
left out.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pyarrow as pa

from benchmarks.machine import machine
from tests.conftest import environment
from tests.publication.runs import PASSED, draft_manifest, write_files
from tests.servers import ServerError
from tests.stores import Server, dynalite, postgres, redis_server
from visrec.exports.published import export_published
from visrec.exports.targets import parse_target
from visrec.interactions.log import assign_shards
from visrec.publication.completion import finish_run
from visrec.publication.list_tables import lists_file, lists_table
from visrec.publication.publish import publish_run
from visrec.publication.run_spec import run_store
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

ITEMS, SHARDS = 100_000, 8
STORES: dict[str, Callable[[], AbstractContextManager[Server]]] = {
    "postgresql": postgres,
    "redis": redis_server,
    "dynalite": dynalite,
}


def publish(lists: Store, run_id: str, users: int, k: int, changed: float) -> None:
    """A run of random lists; those of a share of the users depend on its name."""
    user_ids = pa.array([f"user-{n:08}" for n in range(users)], pa.large_string())
    item_ids = pa.array([f"item-{n:08}" for n in range(ITEMS)], pa.large_string())
    random = np.random.default_rng(0)
    row_BK = random.integers(0, ITEMS, (users, k))
    score_BK = -np.sort(-random.random((users, k), np.float32), axis=1)
    some = random.random(users) < changed
    row_BK[some] = np.random.default_rng(len(run_id)).integers(0, ITEMS, (int(some.sum()), k))
    shard_B = assign_shards(user_ids, SHARDS)
    files = {}
    for shard in range(SHARDS):
        rows = np.flatnonzero(shard_B == shard)
        table = lists_table(
            user_ids.take(pa.array(rows)), item_ids, row_BK[rows], score_BK[rows],
            row_BK[rows][:, ::-1], np.zeros(len(rows), bool), "nested",
        )  # fmt: skip
        files[f"part-{shard:05d}-of-{SHARDS:05d}-0123456789ab.parquet"] = lists_file(table)
    run = run_store(lists, run_id)
    draft = draft_manifest(run_id=run_id, files=write_files(run, files), queries=users)
    finish_run(run, draft, [PASSED])
    assert publish_run(lists, run_id)


def measure(lists: Store, url: str, *, only_changed: bool) -> dict[str, float]:
    """Seconds of an export, and of its process's CPU, and lists a second."""
    start, cpu = perf_counter(), process_time()
    report = export_published(parse_target(url), lists, lists / "leases", only_changed=only_changed)
    seconds = perf_counter() - start
    return {
        "written": report.written,
        "s": round(seconds, 2),
        "cpu_s": round(process_time() - cpu, 2),
        "lists_per_s": round(report.written / seconds),
    }


def measure_target(url: str, users: int, k: int, changed: float) -> dict[str, dict[str, float]]:
    """All lists, then those that changed."""
    with tempfile.TemporaryDirectory() as folder:
        lists = Store.at(f"{folder}/recommendations")
        publish(lists, "r1", users, k, changed)
        found = {"all": measure(lists, url, only_changed=False)}
        if "://" in url:
            publish(lists, "run-2", users, k, changed)
            found["only_changed"] = measure(lists, url, only_changed=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--changed", type=float, default=0.05, help="share of the users")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    asked = (args.users, args.k, args.changed)
    found = {}
    for name, start in STORES.items():
        try:
            with start() as server, environment(server.env):
                forget_credentials()
                found[name] = measure_target(server.private_url, *asked)
        except ServerError as error:
            print(f"{name}: left out: {error}")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("lists.jsonl", "lists.jsonl.gz", "lists.csv"):
            found[name] = measure_target(str(Path(folder, name)), *asked)
    for name, exports in found.items():
        print(name, exports, flush=True)
    if args.json:
        print(json.dumps({"asked": vars(args), **machine(), "exports": found}))


if __name__ == "__main__":
    main()
