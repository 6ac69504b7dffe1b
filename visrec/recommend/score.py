"""Scoring, on Ray or in this process: one shard of queries at a time, one Parquet file per shard.

Item arrays are computed once and shared through the object store. A scoring worker is an actor of
Ray Data: it scores one shard at a time and writes its file. A file that an earlier start of the run
has written is kept. Lists of the last publication that have not changed are carried over.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from visrec.config import check_fields
from visrec.cores import usable_cores
from visrec.models.artifact import load_artifact
from visrec.models.scorers import ByKind, Scorer
from visrec.progress import ProgressHandle, Timer
from visrec.publication.run_spec import RunSpec
from visrec.recommend.lists import ShardRecommender
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.writer import ShardWriter, WrittenShard
from visrec.retrieval.kernel import kernel_label, kernel_unavailable_reason
from visrec.retrieval.similar import cosine_scorer
from visrec.storage.store import Store
from visrec.tasks import Ref, get
from visrec.threads import torch_threads

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True, kw_only=True)
class ScoreResources:
    """The cluster resources that scoring may use.

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
        resources: those that each worker may use.
    """

    data: Ref
    arrays: Ref
    model: Store
    last: PublishedRun | None
    spec: RunSpec
    resources: ScoreResources


def scoring_dataset(task: ScoringTask, workers: int, progress_actor: ProgressHandle) -> "Dataset":
    """The dataset of shard numbers, mapped to the rows of `WrittenShard`.

    The numbers are not read from anywhere, because a task that reads would need a CPU of its own.
    No limit is set on failures here. By default Ray Data restarts an actor whose process has died,
    and repeats its shard, as often as it takes; `cli/cluster.py` limits deaths while an actor
    starts. An error that is raised ends the job.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    numbers = [{"id": shard} for shard in range(task.spec.shards)]
    return ray.data.from_items(numbers, override_num_blocks=task.spec.shards).map_batches(
        ScoreShards,
        fn_constructor_args=(task, progress_actor),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=task.resources.cpus_per_worker,
        num_gpus=1 if task.resources.use_gpu else None,
    )


def score_in_process(task: ScoringTask, progress_actor: ProgressHandle) -> list[WrittenShard]:
    """Writes all shards in this process, with a search on all cores."""
    threads = usable_cores()
    with torch_threads(threads):
        worker = ScoreShards(task, progress_actor, threads)
        return [worker.write(shard) for shard in range(task.spec.shards)]


class ScoreShards:
    """A scoring worker: a shard's number in, the row of its `WrittenShard` out.

    Args:
        task: what every worker is given.
        progress_actor: counts what is done.
        threads: the number of threads of the search; by default as many as the worker has CPUs.
    """

    def __init__(
        self, task: ScoringTask, progress_actor: ProgressHandle, threads: int | None = None
    ) -> None:
        torch.set_num_threads(threads or task.resources.cpus_per_worker)
        self._timer = Timer(progress_actor)
        with self._timer.call("read"):
            data = get(task.data)
            scorer = _load_scorer(task)
            recommend = ShardRecommender(data, scorer, task.spec, task.last, self._timer)
            self._writer = ShardWriter(data, task.spec, recommend, self._timer)
        self._kernel = search_kernel_label(scorer)
        on_cpu = scorer.device.type == "cpu"
        if self._kernel and on_cpu and (reason := kernel_unavailable_reason()):
            self._timer.log_once(f"no compiled kernel, so the search is slower: {reason}")

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        written = self.write(int(batch["id"][0]))
        return {key: np.array([value]) for key, value in written.to_row().items()}

    def write(self, shard: int) -> WrittenShard:
        """Writes the file of a shard, unless it is there."""
        with self._timer.call():
            return replace(self._writer(shard), kernel=self._kernel)


def search_kernel_label(scorer: Scorer) -> str:
    """What searches all items: `torch on the GPU`, or on a CPU what `kernel_label` says.

    Returns:
        Empty on a CPU if the scores are not dot products: only these have a kernel.
    """
    if scorer.device.type != "cpu":
        return "torch on the GPU"
    has_kernel = scorer.first_stage.dispatch(
        ByKind(dot=lambda _: True, tiled=lambda _: False, rerank=lambda _: False)
    )
    return kernel_label() if has_kernel else ""


def _load_scorer(task: ScoringTask) -> Scorer:
    model = load_artifact(task.model).model.without_item_tables()
    if task.resources.use_gpu:
        # With TF32, convolutions would be rounded to 10 bits, and scores would not be the model's.
        torch.backends.cudnn.allow_tf32 = False
        model = model.cuda()
    arrays = get(task.arrays)
    if task.spec.kind == "item_to_item":
        return cosine_scorer(arrays, task.resources.use_gpu)
    return model.scorer(arrays)
