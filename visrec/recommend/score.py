"""Scoring on Ray: one shard of queries per task, one Parquet file per shard.

Item arrays and profiles are computed once and shared through the object store. A scoring worker is
an actor of Ray Data: it scores one shard at a time and writes its file. A file that an earlier
start of the run has written is kept.
Lists of the last publication that have not changed are carried over.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from visrec.config import check_fields
from visrec.models.arrays import ItemArrays
from visrec.models.artifact import load_artifact
from visrec.models.scorers import Scorer
from visrec.progress import ProgressHandle, Timer
from visrec.publication.run_spec import RunSpec
from visrec.recommend.inputs import ScoringData
from visrec.recommend.lists import ShardRecommender
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.writer import ShardWriter
from visrec.retrieval.kernel import kernel_name, kernel_unavailable_reason
from visrec.retrieval.similar import cosine_scorer
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ScoreResources:
    """What scoring may take of the cluster.

    Attributes:
        workers: processes that score; by default as many as the cluster has CPUs for (at most 64).
        use_gpu: one GPU for each.
        cpus_per_worker: CPU cores of each, and threads of its matrix products.
    """

    workers: int | None = None
    use_gpu: bool = False
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "resources", workers="[1, 65536]", cpus_per_worker="[1, 65536]")


@dataclass(frozen=True)
class ScoringTask:
    """What every scoring worker is given.

    Attributes:
        data: queries and items.
        arrays: the model's item arrays.
        model: the model's directory.
        last: the publication whose lists may be carried over.
        spec: the run to write.
        resources: what each worker may take.
    """

    data: "ray.ObjectRef[ScoringData]"
    arrays: "ray.ObjectRef[ItemArrays]"
    model: Store
    last: PublishedRun | None
    spec: RunSpec
    resources: ScoreResources


def scoring_dataset(task: ScoringTask, workers: int, progress_actor: ProgressHandle) -> Dataset:
    """The dataset of shard numbers, mapped to the rows of `WrittenShard`.

    The numbers are not read from anywhere, because a task that reads would need a CPU of its own.
    Nothing is set about failures: by default, Ray Data starts an actor whose process has died again
    and repeats its shard, as often as it takes. An error that is raised ends the job.
    """
    numbers = [{"id": shard} for shard in range(task.spec.shards)]
    return ray.data.from_items(numbers, override_num_blocks=task.spec.shards).map_batches(
        ScoreShards,
        fn_constructor_args=(task, progress_actor),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=task.resources.cpus_per_worker,
        num_gpus=1 if task.resources.use_gpu else None,
    )


class ScoreShards:
    """A scoring worker: a shard's number in, the row of its `WrittenShard` out."""

    def __init__(self, task: ScoringTask, progress_actor: ProgressHandle) -> None:
        torch.set_num_threads(task.resources.cpus_per_worker)
        self._timer = Timer(progress_actor)
        with self._timer.call("read"):
            data, scorer = ray.get(task.data), _load_scorer(task)
            recommend = ShardRecommender(data, scorer, task.spec, task.last, self._timer)
            self._write = ShardWriter(data, task.spec, recommend, self._timer)
        if (reason := kernel_unavailable_reason()) and not task.resources.use_gpu:
            self._timer.log_once(f"no compiled kernel, so the search is slower: {reason}")
        self._kernel = "torch on the GPU" if task.resources.use_gpu else kernel_name()

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        with self._timer.call():
            written = replace(self._write(int(batch["id"][0])), kernel=self._kernel)
            return {key: np.array([value]) for key, value in written.to_row().items()}


def _load_scorer(task: ScoringTask) -> Scorer:
    model = load_artifact(task.model).model
    if task.resources.use_gpu:
        # With TF32, convolutions would be rounded to 10 bits, and scores would not be the model's.
        torch.backends.cudnn.allow_tf32 = False
        model = model.cuda()
    arrays = ray.get(task.arrays)
    if task.spec.kind == "item_to_item":
        return cosine_scorer(arrays, task.resources.use_gpu)
    return model.scorer(arrays)
