"""The Ray Data step from users to lists: one shard of users a row, one Parquet file a shard.

Item vectors and coded interactions are computed once and shared through the object store; an actor
scores one shard at a time and writes its file. A shard that is there already, made from the same
inputs, is left as it is; lists of the last publication that are still right are carried over.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from visrec.config import check_fields
from visrec.models.arrays import Arrays
from visrec.models.artifact import load_artifact
from visrec.models.scorers import Scorer
from visrec.progress import Timer
from visrec.publication.run_spec import RunSpec
from visrec.recommend.incremental import Last
from visrec.recommend.inputs import ScoringData
from visrec.recommend.lists import ShardLists
from visrec.recommend.writer import ShardWriter
from visrec.retrieval.kernel import missing
from visrec.retrieval.similar import neighbours
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ScoreResources:
    """What scoring may take of the cluster.

    Attributes:
        actors: processes that score; by default as many as the cluster has CPUs for (at most 64).
        use_gpu: one GPU for each.
        cpus_per_actor: CPU cores of each, and threads of its products.
    """

    SECTION: ClassVar[str] = "resources"  # of its keys on the command line

    actors: int | None = None
    use_gpu: bool = False
    cpus_per_actor: int = 1

    def __post_init__(self) -> None:
        check_fields(self, self.SECTION, actors="[1, 65536]", cpus_per_actor="[1, 65536]")


def recommend_chain(
    data: "ray.ObjectRef[ScoringData]",
    arrays: "ray.ObjectRef[Arrays]",
    model: Store,
    last: Last | None,
    target: RunSpec,
    resources: ScoreResources,
    actors: int,
    tally: Any,
) -> Dataset:
    """The chain over shard numbers; its rows say what each shard's file is.

    The numbers lie there from the start: a task that makes them would want a CPU of its own.
    """
    numbers = [{"id": shard} for shard in range(target.shards)]
    return ray.data.from_items(numbers, override_num_blocks=target.shards).map_batches(
        ScoreShards,
        fn_constructor_args=(data, arrays, model, last, target, resources, tally),
        batch_size=1,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=resources.cpus_per_actor,
        num_gpus=1 if resources.use_gpu else None,
    )


class ScoreShards:
    """A shard's number in, its file written, what the file is out."""

    def __init__(
        self,
        data: "ray.ObjectRef[ScoringData]",
        arrays: "ray.ObjectRef[Arrays]",
        model: Store,
        last: Last | None,
        target: RunSpec,
        resources: ScoreResources,
        tally: Any,
    ) -> None:
        torch.set_num_threads(resources.cpus_per_actor)
        self._timer = Timer(tally)
        with self._timer.call("read"):
            scored = ray.get(data)
            artifact = load_artifact(model)
            module: Any = artifact.model
            if resources.use_gpu:
                # Else convolutions are rounded to 10 bits, and the scores are not the model's.
                torch.backends.cudnn.allow_tf32 = False
                module = module.cuda()
            if target.kind == "item_to_item":
                scorer: Scorer = neighbours(ray.get(arrays), resources.use_gpu)
            else:
                scorer = module.scorer(ray.get(arrays))
            shard_lists = ShardLists(scored, scorer, target, last, self._timer)
            self._write = ShardWriter(scored, target, shard_lists, self._timer)
        if (reason := missing()) and not resources.use_gpu:
            tally.say_once.remote(f"no compiled kernel, so torch searches, slower: {reason}")

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        with self._timer.call():
            facts = self._write(int(batch["id"][0]))
            return {key: np.array([value]) for key, value in facts.items()}
