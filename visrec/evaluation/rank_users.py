"""Evaluation on Ray: every model ranks the held-out items of every test user, exactly.

What the workers share is computed once: the split, the catalogue, each model's item arrays. A
worker ranks a block of users by every model. At the end, one task aggregates the metrics of all
users.

Shapes: B users of a block, N items, K list length.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from visrec.config import check_fields
from visrec.evaluation.data import EvaluationData, build_scorer
from visrec.evaluation.list_metrics import LENGTH, covered_bits, per_list
from visrec.ids import TEXT
from visrec.interactions.split import HeldOut
from visrec.models.scorers import Scorer
from visrec.progress import ProgressHandle, Timer
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import rank_targets
from visrec.retrieval.topk import TopK

USERS = 384  # users of a block that a worker ranks: three blocks of 128 for the scorers
# Columns beside the metrics of a user:
SECONDS = "seconds"  # the mean over the users of the block
COVERED = "covered"  # bits of the items in the lists of the block, in its first row of each model


@dataclass(frozen=True, kw_only=True)
class EvaluationResources:
    """What evaluation may take of the cluster.

    Attributes:
        workers: processes that rank; by default one for two CPUs of this cluster (at most 64).
        cpus_per_worker: CPU cores of each, and threads of its ranking.
    """

    workers: int | None = None
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "resources", workers="[1, 65536]", cpus_per_worker="[1, 65536]")


def ranking_dataset(
    data: "ray.ObjectRef[EvaluationData]",
    users: int,
    workers: int,
    cpus_per_worker: int,
    progress_actor: ProgressHandle,
) -> Dataset:
    """The dataset of block numbers, mapped to rows of (model, user, metrics).

    The numbers are not read from anywhere: a task that reads would need a CPU, which workers of
    another job may hold while they wait for one themselves.
    """
    blocks = -(-users // USERS)
    numbers = [{"id": block} for block in range(blocks)]
    return ray.data.from_items(numbers, override_num_blocks=blocks).map_batches(
        RankUsers,
        fn_constructor_args=(data, cpus_per_worker, progress_actor),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=cpus_per_worker,
    )


class RankUsers:
    """A ranking worker: the number of a block in, the metrics of its users by every model out."""

    def __init__(
        self,
        data: "ray.ObjectRef[EvaluationData]",
        threads: int,
        progress_actor: ProgressHandle,
        block_users: int = USERS,
    ) -> None:
        torch.set_num_threads(threads)
        self._block_users = block_users
        self._timer = Timer(progress_actor)
        with self._timer.call("read"):
            self._data: EvaluationData = ray.get(data)
            self._scorers = {
                model.label: build_scorer(model, self._data)
                for model in self._data.evaluated_models
            }
            self._searches = {
                label: TopK(scorer, None, LENGTH) for label, scorer in self._scorers.items()
            }

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        with self._timer.call():
            start = int(batch["id"][0]) * self._block_users
            rows = np.arange(start, min(start + self._block_users, len(self._data.held_out)))
            held_out = self._data.held_out.take(rows)
            tables = [
                self._rank(label, scorer, rows, held_out) for label, scorer in self._scorers.items()
            ]
            self._timer.report(users=len(rows))
            return pa.concat_tables(tables)

    def _rank(
        self, label: str, scorer: Scorer, rows: npt.NDArray[np.int64], held_out: HeldOut
    ) -> pa.Table:
        """One model's table of the test users at `rows`."""
        data, start = self._data, time.perf_counter()
        user_B = data.user_rows[label][rows]
        with self._timer.phase("rank"):
            ranks = rank_targets(scorer, held_out.profiles, user_B, held_out.targets)
        with self._timer.phase("list"):
            best = self._searches[label](held_out.profiles, user_B, held_out.profiles)
            list_metrics = per_list(best.row_BK, data.item_statistics)
        columns = {
            "model": pa.repeat(pa.scalar(label, TEXT), len(rows)),
            "user_id": data.user_ids.take(pa.array(rows)),
            "profile_size": held_out.profiles.lengths,
        }
        bits = covered_bits(best.row_BK, len(data.item_ids)).tobytes()
        covered = pa.array([bits, *[None] * (len(rows) - 1)], pa.binary())
        seconds = pa.scalar((time.perf_counter() - start) / len(rows))
        extra = {COVERED: covered, SECONDS: pa.repeat(seconds, len(rows))}
        return pa.table({**columns, **per_user(ranks), **list_metrics, **extra})
