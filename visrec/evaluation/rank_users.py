"""Evaluation: every model ranks the held-out items of every test user, exactly.

This runs on Ray or in one process. What the workers share is computed once: the split, the
catalogue, each model's item arrays. A worker ranks a block of users by every model. At the end, one
task aggregates the metrics of all users.

Shapes: B users of a block, N items, K list length.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from visrec.config import check_fields
from visrec.cores import usable_cores
from visrec.evaluation.data import EvaluationData
from visrec.evaluation.list_metrics import covered_bits, per_list
from visrec.evaluation.ranking import ranker
from visrec.ids import TEXT
from visrec.progress import ProgressHandle, Timer
from visrec.retrieval.metrics import per_user
from visrec.retrieval.moments import MomentRanker
from visrec.retrieval.ranks import TargetRanks
from visrec.retrieval.topk import TopKResult
from visrec.tasks import Ref, get
from visrec.threads import torch_threads

if TYPE_CHECKING:
    from ray.data import Dataset

USERS = 384  # users of a block that a worker ranks: three blocks of 128 for the scorers
# Columns in addition to the metrics of a user:
SECONDS = "seconds"  # the mean over the users of the block
COVERED = "covered"  # bits of the items in the lists of the block, in its first row of each model


@dataclass(frozen=True, kw_only=True)
class EvaluationResources:
    """The cluster resources that evaluation may use.

    Attributes:
        workers: processes that rank; by default one for two CPUs of this cluster (at most 64).
        cpus_per_worker: CPU cores of each, and threads of its ranking.
    """

    workers: int | None = None
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "resources", workers="[1, 65536]", cpus_per_worker="[1, 65536]")


def ranking_dataset(
    data: Ref,
    users: int,
    workers: int,
    cpus_per_worker: int,
    progress_actor: ProgressHandle,
) -> "Dataset":
    """The dataset of block numbers, mapped to rows of (model, user, metrics).

    The numbers are not read from anywhere: a task that reads would need a CPU, which workers of
    another job may hold while they wait for one themselves.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    blocks = -(-users // USERS)
    numbers = [{"id": block} for block in range(blocks)]
    return ray.data.from_items(numbers, override_num_blocks=blocks).map_batches(
        RankUsers,
        fn_constructor_args=(data, cpus_per_worker, progress_actor),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=cpus_per_worker,
    )


def rank_in_process(data: Ref, users: int, progress_actor: ProgressHandle) -> list[pa.Table]:
    """The same rows from this process, which ranks on all cores."""
    threads = usable_cores()
    with torch_threads(threads):
        worker = RankUsers(data, threads, progress_actor)
        return [worker({"id": np.array([block])}) for block in range(-(-users // USERS))]


class RankUsers:
    """A ranking worker: the number of a block in, the metrics of its users by every model out."""

    def __init__(
        self,
        data: Ref,
        threads: int,
        progress_actor: ProgressHandle,
        block_users: int = USERS,
    ) -> None:
        torch.set_num_threads(threads)
        self._block_users = block_users
        self._timer = Timer(progress_actor)
        with self._timer.call("read"):
            self._data: EvaluationData = get(data)
            self._rankers = [
                (model.label, ranker(model, self._data)) for model in self._data.evaluated_models
            ]

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        with self._timer.call():
            start = int(batch["id"][0]) * self._block_users
            rows = np.arange(start, min(start + self._block_users, len(self._data.held_out)))
            tables = [self._rank(label, of_model, rows) for label, of_model in self._rankers]
            self._timer.report(users=len(rows))
            return pa.concat_tables(tables)

    def _rank(self, label: str, of_model: MomentRanker, rows: npt.NDArray[np.int64]) -> pa.Table:
        """One model's table of the test users at `rows`."""
        data, start = self._data, time.perf_counter()
        ranks, lists = [], []
        for group in of_model.groups(rows):
            with self._timer.phase("rank"):
                ranks.append(group.ranks())
            with self._timer.phase("list"):
                lists.append(group.lists())
        with self._timer.phase("list"):
            row_BK = TopKResult.concatenate(lists).row_BK
            list_metrics = per_list(row_BK, data.item_statistics)
        columns = {
            "model": pa.repeat(pa.scalar(label, TEXT), len(rows)),
            "user_id": data.user_ids.take(pa.array(rows)),
            "profile_size": data.held_out.profiles.lengths[rows],
        }
        bits = covered_bits(row_BK, len(data.item_ids)).tobytes()
        covered = pa.array([bits, *[None] * (len(rows) - 1)], pa.binary())
        seconds = pa.scalar((time.perf_counter() - start) / len(rows))
        extra = {COVERED: covered, SECONDS: pa.repeat(seconds, len(rows))}
        rank_metrics = per_user(TargetRanks.concatenate(ranks))
        return pa.table({**columns, **rank_metrics, **list_metrics, **extra})
