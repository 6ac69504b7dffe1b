"""The scoring job end to end, Parquet to Parquet, for growing numbers of users.

python -m benchmarks.recommend_scale
python -m benchmarks.recommend_scale --users 10000 100000 --items 100000 --json
python -m benchmarks.recommend_scale --users 20000 --items 1000000
python -m benchmarks.recommend_scale --users 100000 --items 20000 --models all
python -m benchmarks.recommend_scale --users 1000000 --items 20000 --nodes 3 --json
python -m benchmarks.recommend_scale --users 10000000 --items 1000000 --nodes 3 --shards 50

For each number of users this creates a workspace: features, interactions, and CuratorNet (or each
of `--models`) with its initial weights, since scoring speed does not depend on training.
jobs/recommend.py then runs on it as a separate process with its own local Ray. The result has users
per second of the scoring phase, seconds of the whole job, and the peak memory of each kind of
process. With `--nodes` the job joins a cluster of so many nodes on this machine, each with two CPUs
and `--store_mb` of object store; `--checkouts` runs the jobs of other checkouts on the same inputs,
to compare with them. With `--shards` a job is stopped once it has written so many of its files; its
speed is then that between the first and the last of them. `ratio_kernel`, for CuratorNet, is the
scoring phase's share of the speed of the kernel alone on all cores with the same vectors.
"""

import argparse
import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.machine import machine
from visrec.features.commit import TableContent, commit_table, write_part
from visrec.features.table import Identity
from visrec.interactions.split import SplitConfig
from visrec.jagged import Jagged
from visrec.models import MODELS
from visrec.models.artifact import load_artifact, save_artifact
from visrec.recommend.catalogue import load_catalogue
from visrec.retrieval.topk import TopK
from visrec.sampling.triples import SamplingConfig
from visrec.scratch import scratch_array
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store
from visrec.training.data import TrainingInputs, load_training_data
from visrec.training.fit import TrainingRecipe, build_model
from visrec.training.loop import TrainConfig
from visrec.training.task import TrainTask, build_artifact

CHECKOUT = Path(__file__).parents[1]
TAKEN = 20  # items a user
FEATURES_PART = 4096  # items of a part of the features, as extraction writes them
PART = 50_000  # users of a row group of the interactions
KERNEL_MODEL = "curatornet"
MODEL_USERS = 2000  # that it is sized by
KERNEL_USERS = 4096  # for the kernel alone
SHARD = 10_000  # users of a file
K = 100


def make_workspace(workspace: Path, items: int, dim: int) -> pa.StringArray:
    """Features and categories of random items; returns their ids."""
    random = np.random.default_rng(0)
    ids = pa.array([f"item-{n:07}" for n in range(items)])
    feature_ND = scratch_array((items, dim), np.float16)
    for start in range(0, items, FEATURES_PART):
        part_BD = feature_ND[start : start + FEATURES_PART]
        part_BD[:] = random.normal(size=part_BD.shape)
    commit_features(workspace, ids, feature_ND)
    kinds = pa.array([f"kind-{n % 20}" for n in range(items)])
    pq.write_table(pa.table({"item_id": ids, "category": kinds}), workspace / "items.parquet")
    return ids


def commit_features(
    workspace: Path, ids: pa.StringArray, feature_ND: npt.NDArray[np.float16]
) -> None:
    """The features directory of a workspace."""
    identity = Identity(
        backbone="random",
        weights_digest="0",
        preprocessing={},
        precision="float32",
        dim=feature_ND.shape[1],
    )
    features, files = Store.at(str(workspace / "features")), []
    rows = pa.table({"item_id": ids, "digest": ids, "source": pa.nulls(len(ids), pa.string())})
    for start in range(0, len(ids), FEATURES_PART):
        part = rows.slice(start, FEATURES_PART)
        feature_BD = feature_ND[start : start + FEATURES_PART]
        name = write_part(features, part, feature_BD, identity)
        files.append((name, len(part)))
    commit_table(
        features,
        TableContent(
            identity=identity,
            rows=rows,
            files=dict(files),
            rejected=REJECTED.empty_table(),
            settings={},
        ),
        None,
    )


def make_model(workspace: Path, name: str) -> None:
    """A model of the workspace's users and items as it is before training, under its name."""
    sampling, store = SamplingConfig(), Store.at(str(workspace))
    data = load_training_data(
        TrainingInputs(
            features=store / "features",
            interactions=InteractionsConfig(),
            interactions_uri=str(workspace / "interactions.parquet"),
            items_table=InputTable(uri=str(workspace / "items.parquet"), key="items"),
            split=SplitConfig(),
            traits=MODELS[name].traits,
            sampling=sampling,
        )
    )
    recipe = TrainingRecipe(name, MODELS[name].Config(), TrainConfig(), sampling)
    no_ray: Any = None
    target = store / "models" / name
    job = TrainTask(
        recipe, no_ray, target, name, settings_digest="", threads=1, progress_actor=None
    )
    save_artifact(build_artifact(job, data, build_model(recipe, data), {"val_auc": None}), target)


def write_interactions(path: Path, users: int, ids: pa.StringArray) -> None:
    """Random items of users, `TAKEN` each."""
    random = np.random.default_rng(1)
    schema = pa.schema(
        [("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, users, PART):
            size = min(PART, users - start)
            names = pa.array([f"user-{n:08}" for n in range(start, start + size)])
            owner_R = np.repeat(np.arange(size), TAKEN)
            item_R = random.integers(0, len(ids), len(owner_R))
            time_R = np.tile(np.arange(TAKEN), size)
            columns = [names.take(pa.array(owner_R)), ids.take(pa.array(item_R)), pa.array(time_R)]
            writer.write_table(pa.table(columns, schema=schema))


class Memory:
    """The largest memory of a job, of the processes that it started and of the nodes of a cluster,
    looked at twice a second.

    Pages that are shared (the object store) count for the store, not for who maps them.
    """

    def __init__(self, pid: int) -> None:
        self.private: dict[str, int] = {}
        self.store = 0  # what one process maps
        self.stores = 0  # what all nodes have in their stores
        self._job, self._all = psutil.Process(pid), psutil.Process()  # the nodes are started here
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            shared = [self._look(process) for process in self._all.children(recursive=True)]
            self.stores = max(self.stores, sum(shared))

    def _look(self, process: psutil.Process) -> int:
        """Looks at one process; returns what it has in its store if it is a node."""
        with contextlib.suppress(psutil.NoSuchProcess):
            command, memory = process.cmdline(), process.memory_info()
            name = command[0] if command and command[0].startswith("ray::") else process.name()
            name = "driver" if process.pid == self._job.pid else name.partition("(")[0]
            held = memory.rss - memory.shared
            self.private[name] = max(self.private.get(name, 0), held)
            self.store = max(self.store, memory.shared)
            return memory.shared if name == "raylet" else 0
        return 0


@contextlib.contextmanager
def cluster(nodes: int, store_mb: int) -> Iterator[dict[str, str]]:
    """A Ray cluster on this machine, unless it has no nodes; yields the variables by which a job
    finds it."""
    if not nodes:
        yield {}
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # read when Ray is imported
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 2, "object_store_memory": store_mb << 20}
    started = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(nodes - 1):
        started.add_node(**node)
    try:
        yield {"RAY_ADDRESS": started.address}
    finally:
        started.shutdown()


def run_job(
    workspace: Path,
    users: int,
    model: str,
    run_id: str | None = None,
    others: Sequence[str] = ("--incremental", "false", "--force_publish", "it was not trained"),
    variables: Mapping[str, str] | None = None,
    checkout: Path = CHECKOUT,
    most_shards: int | None = None,
) -> dict[str, Any]:
    """What the job said of itself, and its memory; of a job that was stopped, what its files say.

    A model that has learned nothing may well be held back; the gates are checked all the same.
    """
    command = [sys.executable, "jobs/recommend.py", "--workspace", str(workspace)]
    command += [] if variables else ["--local"]
    env = {**os.environ, **(variables or {}), "PYTHONPATH": str(checkout)}
    flags = ["--shards", str(max(8, users // SHARD)), "--run_id", run_id or f"{model}-{users}"]
    flags += ["--model", str(workspace / "models" / model)]
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, *flags, *others], cwd=checkout, env=env, stdout=said, stderr=said
        )
        with Memory(process.pid) as memory:
            written = wait(process, workspace, most_shards)
        seconds = time.perf_counter() - start
        said.seek(0)
        if process.returncode and not written:
            sys.exit(said.read())
    return {
        "checkout": checkout.resolve().name,
        "model": model,
        "users": users,
        "job_s": round(seconds, 1),
        **(told_by_files(written) if written else told_by_summary(workspace, users)),
        "private_mb": {k: round(v / 2**20) for k, v in sorted(memory.private.items())},
        "largest_shared_mb": round(memory.store / 2**20),
        "stores_mb": round(memory.stores / 2**20),
    }


def wait(
    process: "subprocess.Popen[bytes]", workspace: Path, most_shards: int | None
) -> list[Path]:
    """Waits for a job, or stops it once it has written so many files; returns them if it did."""
    while process.poll() is None:
        written = list(workspace.glob("recommendations/run=*/part-*.parquet"))
        if most_shards is not None and len(written) >= most_shards:
            process.send_signal(signal.SIGINT)
            process.wait()
            return written
        time.sleep(0.5)
    return []


def told_by_summary(workspace: Path, users: int) -> dict[str, Any]:
    """The figures of a job that came to its end."""
    told = json.loads((workspace / "summaries" / "recommend.json").read_text())
    return {
        "score_s": told["wall_s"]["score"],
        "carried": told["lists carried over"],
        "users_per_s": round(users / told["wall_s"]["score"], 1),
        "wall_s": told["wall_s"],
        "worker_s": told["worker_s"],
    }


def told_by_files(written: Sequence[Path]) -> dict[str, Any]:
    """The figures of a job that was stopped, by the times of its files."""
    times = sorted(path.stat().st_mtime for path in written)
    rows = sum(pq.read_metadata(path).num_rows for path in written)
    seconds = times[-1] - times[0]
    rate = rows * (len(times) - 1) / len(times) / seconds if seconds else 0.0
    return {"shards": len(written), "scored": rows, "users_per_s": round(rate, 1)}


def kernel_rate(workspace: Path, threads: int) -> float:
    """Users per second of the search alone, on the model's own vectors."""
    torch.set_num_threads(threads)
    artifact = load_artifact(Store.at(str(workspace / "models" / KERNEL_MODEL)))
    item_ids, catalogue = load_catalogue(artifact, Store.at(str(workspace / "features")), None)
    scorer = artifact.model.scorer(artifact.model.item_arrays(catalogue))
    random, n = np.random.default_rng(2), len(item_ids)
    taken = random.integers(0, n, KERNEL_USERS * TAKEN)
    profiles = Jagged(taken, np.arange(KERNEL_USERS + 1) * TAKEN)
    search, unseen_B = TopK(scorer, None, K), np.full(KERNEL_USERS, -1)
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        search(profiles, unseen_B, profiles)
        rates.append(KERNEL_USERS / (time.perf_counter() - start))
    return statistics.median(rates)


def show(run: dict[str, Any]) -> None:
    """A run's figures on the terminal."""
    share = f" ({run['ratio_kernel']:.0%} of the kernel)" if "ratio_kernel" in run else ""
    print(
        f"{run['model']}, {run['users']:,} users: {run['users_per_s']:,.0f} users/s in the scoring "
        f"phase{share}, {run['job_s']} s in all\n"
        f"  wall {run.get('wall_s')}\n  workers {run.get('worker_s')}\n"
        f"  private MB {run['private_mb']}, largest shared {run['largest_shared_mb']} MB, "
        f"all stores {run['stores_mb']} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64, help="of the features (64)")
    parser.add_argument("--models", help="names with commas between, or all (curatornet)")
    parser.add_argument("--nodes", type=int, default=0, help="of a cluster (0: a local job)")
    parser.add_argument("--store_mb", type=int, default=1500, help="object store of each node")
    parser.add_argument("--shards", type=int, help="after which a job is stopped (none: its end)")
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[CHECKOUT])
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    names = sorted(MODELS) if args.models == "all" else (args.models or KERNEL_MODEL).split(",")
    nodes = cluster(args.nodes, args.store_mb)
    with tempfile.TemporaryDirectory() as folder, nodes as variables:
        workspace = Path(folder)
        ids = make_workspace(workspace, args.items, args.dim)
        write_interactions(workspace / "interactions.parquet", MODEL_USERS, ids)
        # The others have a vector for each user, so they are made of the users to score.
        once = {name for name in names if MODELS[name].traits.supports_new_users}
        for name in {*once, KERNEL_MODEL}:
            make_model(workspace, name)
        kernel = kernel_rate(workspace, os.cpu_count() or 1)
        print(f"the kernel alone: {kernel:,.0f} users/s", flush=True)
        runs = []
        for users in args.users:
            write_interactions(workspace / "interactions.parquet", users, ids)
            for name, checkout in itertools.product(names, args.checkouts):
                if name not in once:
                    make_model(workspace, name)
                shutil.rmtree(workspace / "recommendations", ignore_errors=True)
                run = run_job(
                    workspace,
                    users,
                    name,
                    variables=variables,
                    checkout=checkout,
                    most_shards=args.shards,
                )
                if name == KERNEL_MODEL:
                    run["ratio_kernel"] = round(run["users_per_s"] / kernel, 3)
                runs.append(run)
                show(run)
    if args.json:
        asked = {**vars(args), "checkouts": [each.resolve().name for each in args.checkouts]}
        found = {"kernel_users_per_s": round(kernel, 1), "runs": runs}
        print(json.dumps({"asked": asked, **machine(), **found}))


if __name__ == "__main__":
    main()
