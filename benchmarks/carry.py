"""What incremental scoring saves: one night after another, compared with scoring it in full.

python -m benchmarks.carry --json
python -m benchmarks.carry --users 100000 --items 100000 --changed 0.05 --new 10

The workspace is that of `benchmarks.recommend_scale`. After a first run, some users take one more
item and some items are added. jobs/recommend.py then runs twice on the same inputs: once carrying
lists over from the first run, once scoring everybody. Both runs must write the same lists.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import machine
from benchmarks.recommend_scale import (
    KERNEL_MODEL,
    make_model,
    make_workspace,
    run_job,
    write_interactions,
)

DAY = 86_400
WHOLE = ("--incremental", "false")  # not forced: of what was, nothing is carried over


def take_one_more(path: Path, users: int, changed: float, ids: pa.StringArray) -> None:
    """Some users, drawn at random, take an item."""
    random = np.random.default_rng(2)
    some = np.sort(random.choice(users, round(users * changed), replace=False))
    names = pa.array([f"user-{n:08}" for n in some])
    items = ids.take(pa.array(random.integers(0, len(ids), len(some))))
    more = pa.table(
        [names, items, pa.array(np.full(len(some), DAY))], names=["user_id", "item_id", "timestamp"]
    )
    pq.write_table(pa.concat_tables([pq.read_table(path), more]), path)


def same_lists(workspace: Path, one: str, other: str) -> bool:
    runs = [workspace / "recommendations" / f"run={name}" for name in (one, other)]
    names = sorted(path.name for path in runs[0].glob("part-*.parquet"))
    tables = ([pq.read_table(run / name) for run in runs] for name in names)
    return all(mine.equals(theirs) for mine, theirs in tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64, help="of the features")
    parser.add_argument("--changed", type=float, default=0.05, help="share of the users")
    parser.add_argument("--new", type=int, default=10, help="items that come")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        log = workspace / "interactions.parquet"
        ids = make_workspace(workspace, args.items, args.dim)
        write_interactions(log, args.users, ids)
        make_model(workspace, KERNEL_MODEL)
        runs = {"first": run_job(workspace, args.users, KERNEL_MODEL, "first", WHOLE)}
        # The features of the items that were there are drawn first, so they are the same.
        shutil.rmtree(workspace / "features")
        make_workspace(workspace, args.items + args.new, args.dim)
        take_one_more(log, args.users, args.changed, ids)
        runs["carried"] = run_job(workspace, args.users, KERNEL_MODEL, "carried", others=())
        runs["whole"] = run_job(workspace, args.users, KERNEL_MODEL, "whole", WHOLE)
        same = same_lists(workspace, "carried", "whole")
    for name, run in runs.items():
        print(f"{name}: {run['job_s']} s in all, {run['score_s']} s of scoring, {run['carried']:,} "
              f"lists carried over, workers {run['worker_s']}", flush=True)  # fmt: skip
    saved = {key: runs["whole"][key] / runs["carried"][key] for key in ("score_s", "job_s")}
    fast = f"{saved['score_s']:.1f} times as fast in scoring, {saved['job_s']:.1f} in all"
    print(f"{fast}; the same lists: {same}")
    if not same:
        sys.exit("the lists differ")
    if args.json:
        ratios = {f"ratio_{key}": round(value, 2) for key, value in saved.items()}
        print(json.dumps({"asked": vars(args), **machine(), "runs": runs, **ratios, "same": same}))


if __name__ == "__main__":
    main()
