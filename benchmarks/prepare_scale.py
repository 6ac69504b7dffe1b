"""Rows per second of preparing interactions, against DuckDB and Polars doing the same.

python -m benchmarks.prepare_scale --json
python -m benchmarks.prepare_scale --rows 2000000 --repeats 1

The source is one Parquet file of string ids and timestamps in the order of time, with a user for 20
rows. Each side codes users and items, and writes 16 partitions by user, each sorted by user, time
and item, as Parquet, together with what the codes stand for. visrec writes dictionaries of sorted
ids in each partition; the peers number the ids of the whole table and write a table of them. Each
runs in a process of its own on the first `--threads` cores, with as many threads; visrec as Ray
tasks, whose start is not measured. Peers count at the better of two ways. Sides take turns, and
results are medians.

`linear` says whether visrec's time per row grows by at most 15 % from a tenth of the rows on;
`peak_rss_mb` is that of its largest process.
"""

import json
import os
import secrets
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.arguments import asked
from benchmarks.machine import machine
from visrec.interactions.prepare import prepare_table
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import INTERACTIONS
from visrec.storage.store import Store

PARTITIONS = 16
USER_ROWS = 20
ITEMS = 100_000
CHUNK = 1_000_000  # rows of a row group
MOST_GROWTH = 1.15  # of the time per row
SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])


def write_source(path: Path, rows: int) -> None:
    """Interactions in the order of time, a few items much more often than others."""
    random = np.random.default_rng(0)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            user = random.integers(0, max(1, rows // USER_ROWS), count)
            item = (ITEMS * random.random(count) ** 3).astype(np.int64)
            second = 1_700_000_000 + (start + np.arange(count)) * 60_000_000 // rows
            columns = [_ids("user-", user), _ids("item-", item), pa.array(second)]
            writer.write_table(pa.table(columns, schema=SCHEMA))


def _ids(prefix: str, number: Any) -> pa.Array:
    digits = pc.utf8_lpad(pa.array(number).cast(pa.string()), 8, "0")
    return pc.binary_join_element_wise(prefix, digits, "")


# The sides. Each reads `source`, writes into `target`, and imports no other.


@dataclass(frozen=True, order=True)
class Cost:
    """What a side took.

    Attributes:
        seconds: from start to end.
        cpu_seconds: the CPU seconds of its processes, which other load disturbs less.
        peak_mb: resident set of its largest process.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float = 0.0


def cost_of(work: Callable[[], None]) -> Cost:
    """Calls a function and takes its cost, without the memory."""
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    work()
    return Cost(time.perf_counter() - start, _cpu_seconds() - cpu_start)


def _cpu_seconds() -> float:
    """Of this process and of those that it started."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def by_visrec(source: Path, target: Path, threads: int) -> Cost:
    import ray

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one to a file
    ray.init(num_cpus=threads, include_dashboard=False, log_to_driver=False)
    write_source(target / "few.parquet", 1000)
    _prepare(target / "few.parquet", target)  # processes start and import
    cost = cost_of(lambda: _prepare(source, target))
    ray.shutdown()
    return cost


def _prepare(source: Path, target: Path) -> None:
    table = InputTable(uri=str(source), key="source")
    prepare_table(table, INTERACTIONS, Store.at(str(target)), PARTITIONS)


def by_duckdb(source: Path, target: Path, threads: int) -> Cost:
    return min(
        cost_of(lambda: _duckdb(source, target / "at_once", threads, at_once=True)),
        cost_of(lambda: _duckdb(source, target / "one_by_one", threads, at_once=False)),
    )


def _duckdb(source: Path, target: Path, threads: int, *, at_once: bool) -> None:
    import duckdb

    target.mkdir(parents=True)
    with duckdb.connect(config={"threads": threads}) as connection:
        connection.execute(f"SET temp_directory = '{target}/spilled'")
        for name in ("user", "item"):
            connection.execute(
                f"CREATE TABLE {name}s AS SELECT {name}_id, "
                f"CAST(row_number() OVER (ORDER BY {name}_id) - 1 AS INTEGER) AS {name} "
                f"FROM (SELECT DISTINCT {name}_id FROM '{source}')"
            )
            connection.execute(f"COPY {name}s TO '{target}/{name}s.parquet' (COMPRESSION zstd)")
        coded = (
            f'SELECT "user" % {PARTITIONS} AS partition, "user", item, timestamp '
            f"FROM '{source}' JOIN users USING (user_id) JOIN items USING (item_id)"
        )
        order = 'ORDER BY "user", timestamp, item'
        if at_once:
            connection.execute(
                f'COPY (SELECT * FROM ({coded}) ORDER BY partition, "user", timestamp, item) '
                f"TO '{target}/parts' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY partition)"
            )
        else:
            connection.execute(f"CREATE TABLE coded AS {coded}")
            for part in range(PARTITIONS):
                connection.execute(
                    f'COPY (SELECT "user", item, timestamp FROM coded WHERE partition = {part} '
                    f"{order}) TO '{target}/{part}.parquet' (FORMAT parquet, COMPRESSION zstd)"
                )


def by_polars(source: Path, target: Path, threads: int) -> Cost:
    os.environ["POLARS_MAX_THREADS"] = str(threads)  # read when it is imported
    return min(
        cost_of(lambda: _polars(source, target / "at_once", at_once=True)),
        cost_of(lambda: _polars(source, target / "one_by_one", at_once=False)),
    )


def _polars(source: Path, target: Path, *, at_once: bool) -> None:
    import polars as pl

    target.mkdir(parents=True)
    rows = pl.read_parquet(source)
    for name in ("user", "item"):
        ids = rows.select(pl.col(f"{name}_id").unique().sort()).with_row_index(name)
        ids.write_parquet(target / f"{name}s.parquet", compression="zstd")
        rows = rows.join(ids, on=f"{name}_id", how="left").drop(f"{name}_id")
    rows = rows.with_columns(partition=pl.col("user") % PARTITIONS)
    if at_once:
        rows = rows.sort("partition", "user", "timestamp", "item")
        parts = rows.partition_by("partition", maintain_order=True)
    else:
        parts = [part.sort("user", "timestamp", "item") for part in rows.partition_by("partition")]
    for number, part in enumerate(parts):
        part.drop("partition").write_parquet(target / f"{number}.parquet", compression="zstd")


SIDES: dict[str, Callable[[Path, Path, int], Cost]] = {
    "visrec": by_visrec,
    "duckdb": by_duckdb,
    "polars": by_polars,
}


def measure(name: str, source: Path, threads: int) -> Cost:
    """The cost of a side."""
    target = source.with_name(f"{name}-out")
    target.mkdir()
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        peak_of_processes(pool.submit(os.getpid).result()) as peak,
    ):
        cost = pool.submit(SIDES[name], source, target, threads).result()
    shutil.rmtree(target)
    return replace(cost, peak_mb=peak[0])


@contextmanager
def peak_of_processes(pid: int) -> Iterator[list[float]]:
    """The largest resident set of a process and of those that it starts, in MB."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            peak[0] = max(peak[0], *map(_peak_mb, _family(pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _family(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return [pid]


def _peak_mb(pid: int) -> float:
    """VmHWM of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def main() -> None:
    args = asked(__doc__, rows=20_000_000, threads=2, repeats=3)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    runs: dict[str, list[Cost]] = {name: [] for name in ("small", *SIDES)}
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large.parquet"), Path(folder, "small.parquet")
        write_source(large, args.rows)
        write_source(small, args.rows // 10)
        for _ in range(args.repeats):
            runs["small"].append(measure("visrec", small, args.threads))
            for name in SIDES:
                runs[name].append(measure(name, large, args.threads))
    figures: dict[str, float] = {}
    for name, costs in runs.items():
        rows = args.rows // 10 if name == "small" else args.rows
        prefix = "" if name == "visrec" else f"{name}_"
        cpu = statistics.median(cost.cpu_seconds for cost in costs) / rows
        figures |= {
            f"{prefix}rows_per_s": rows / statistics.median(cost.seconds for cost in costs),
            f"{prefix}cpu_ns_per_row": 1e9 * cpu,
            f"{prefix}peak_rss_mb": max(cost.peak_mb for cost in costs),
        }
        print(
            f"{name:10}{figures[f'{prefix}rows_per_s']:>12,.0f} rows/s"
            f"{figures[f'{prefix}cpu_ns_per_row']:>8,.0f} ns of a core a row"
            f"{figures[f'{prefix}peak_rss_mb']:>8,.0f} MB"
        )
    best = max(figures["duckdb_rows_per_s"], figures["polars_rows_per_s"])
    growth = figures["small_rows_per_s"] / figures["rows_per_s"]
    print(f"time per row against a tenth of the rows: {growth:.2f}")
    if args.json:
        more = {
            "ratio_best": figures["rows_per_s"] / best,
            "linear": growth <= MOST_GROWTH,
            "time_per_row_growth": growth,
            "runs": {name: list(map(asdict, costs)) for name, costs in runs.items()},
        }
        print(json.dumps({"asked": vars(args), **machine(), **figures, **more}))


if __name__ == "__main__":
    main()
