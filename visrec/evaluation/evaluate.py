"""The Ray Data step of evaluation: every model ranks every held-out user, exactly.

What is shared is computed once: the split, the catalogue, each model's item arrays. An actor takes
a block of users through all models; the per-user metrics go to one task that sums them up.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from visrec.config import plain
from visrec.evaluation.bootstrap import Figures, resample
from visrec.evaluation.data import Cost, EvaluationData, scorer_of
from visrec.evaluation.list_metrics import (
    COVERAGE,
    LENGTH,
    OF_A_LIST,
    coverage,
    covered_bits,
    per_list,
)
from visrec.ids import TEXT
from visrec.progress import Timer
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import stand
from visrec.retrieval.topk import TopK
from visrec.storage.store import Store

USERS = 384  # users a task takes through all models: blocks of 128, and the kernel's piece
SIZES = {"1": (1, 1), "2-4": (2, 4), "5-9": (5, 9), "10+": (10, np.inf)}  # of profiles
_SECONDS = "seconds"  # that a user took, in the mean of a block
_COVERED = "covered"  # bits of the items in a block's lists, in the first row of each model


def evaluate_chain(
    data: "ray.ObjectRef[EvaluationData]", users: int, threads: int, actors: int, tally: Any
) -> Dataset:
    """The chain over blocks of users; its rows are (model, user, metrics).

    The numbers of the blocks are there from the start: tasks that make them would need CPUs, which
    the actors of another job may hold while they wait for the same.
    """
    blocks = -(-users // USERS)
    numbers = [{"id": block} for block in range(blocks)]
    return ray.data.from_items(numbers, override_num_blocks=blocks).map_batches(
        RankUsers,
        fn_constructor_args=(data, threads, tally),
        batch_size=1,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=threads,
    )


class RankUsers:
    """A block's number in, the metrics of its users by every model out."""

    def __init__(self, data: "ray.ObjectRef[EvaluationData]", threads: int, tally: Any) -> None:
        torch.set_num_threads(threads)
        self._timer = Timer(tally)
        with self._timer.call("read"):
            self._data: EvaluationData = ray.get(data)
            self._scorers = {c.label: scorer_of(c, self._data) for c in self._data.evaluated_models}
            self._searches = {
                label: TopK(scorer, None, LENGTH) for label, scorer in self._scorers.items()
            }

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        with self._timer.call():
            return self._block(int(batch["id"][0]) * USERS)

    def _block(self, start: int) -> pa.Table:
        data = self._data
        rows = np.arange(start, min(start + USERS, len(data.held)))
        held = data.held.take(rows)
        parts = []
        for label, scorer in self._scorers.items():
            begun = time.perf_counter()
            user_B = data.user_rows[label][rows]
            with self._timer.phase("rank"):
                standing = stand(scorer, held.profiles, user_B, held.targets)
            with self._timer.phase("list"):
                best = self._searches[label](held.profiles, user_B, held.profiles)
                measures = per_list(best.row_BK, data.item_facts)
            facts = {
                "model": pa.repeat(pa.scalar(label, TEXT), len(rows)),
                "user_id": data.user_ids.take(pa.array(rows)),
                "profile_size": held.profiles.lengths,
            }
            bits = covered_bits(best.row_BK, len(data.item_ids)).tobytes()
            covered = pa.array([bits, *[None] * (len(rows) - 1)], pa.binary())
            took = pa.repeat(pa.scalar((time.perf_counter() - begun) / len(rows)), len(rows))
            own = {_COVERED: covered, _SECONDS: took}
            parts.append(pa.table({**facts, **per_user(standing), **measures, **own}))
        self._timer.done(users=len(rows))
        return pa.concat_tables(parts)


@dataclass(frozen=True)
class AggregationSpec:
    """What `aggregate` is asked.

    Args:
        labels: the models, in the order of the results.
        items: N.
        pairs: the two models of each difference.
        costs: of the trained models.
        target: where `per_user.parquet` goes.
    """

    labels: Sequence[str]
    items: int
    pairs: Sequence[tuple[str, str]]
    costs: Mapping[str, Cost]
    target: Store


def aggregate(question: AggregationSpec, *blocks: pa.Table) -> dict[str, Any]:
    """Writes the per-user metrics and returns what metrics.json and costs.json say.

    Args:
        question: see there.
        blocks: what the chain gave, in any order.

    Returns:
        models: `{model: {metric: {"mean", "low", "high", "n"}}}`.
        lists: the same of what the lists are like; coverage@K has a mean alone.
        by_profile_size: `{size: {model: {metric: ...}}}`, sizes that nobody has left out.
        paired: `{"a - b": {metric: {"mean", "low", "high", "above", "n"}}}`.
        costs: `{model: {"parameters", "train_s", "score_ms"}}`, milliseconds a user.
    """
    whole = pa.concat_tables(blocks).sort_by([("model", "ascending"), ("user_id", "ascending")])
    covered = {label: _coverage(whole, label, question.items) for label in question.labels}
    costs = {label: _costs(whole, label, question.costs) for label in question.labels}
    whole = whole.drop_columns([_COVERED, _SECONDS])
    question.target.write_table("per_user.parquet", whole, store_schema=False)
    model = whole["model"].to_numpy(zero_copy_only=False)
    columns = {name: whole[name].to_numpy() for name in whole.column_names[3:]}
    values = {
        label: {name: column[model == label] for name, column in columns.items()}
        for label in question.labels
    }
    count_same_code = resample(values)
    summaries = {label: count_same_code.summary(label) for label in question.labels}
    size_B = whole["profile_size"].to_numpy()[model == question.labels[0]]
    return {
        "models": {label: _chosen(summary, lists=False) for label, summary in summaries.items()},
        "lists": {
            label: {COVERAGE: {"mean": covered[label]}, **_chosen(summary, lists=True)}
            for label, summary in summaries.items()
        },
        "by_profile_size": _by_size(values, size_B),
        "costs": costs,
        "paired": {f"{a} - {b}": count_same_code.difference(a, b) for a, b in question.pairs},
    }


def _costs(whole: pa.Table, label: str, costs: Mapping[str, Cost]) -> dict[str, float | None]:
    seconds = pc.mean(whole.filter(pc.equal(whole["model"], label))[_SECONDS]).as_py()
    known = plain(costs[label]) if label in costs else {}
    return {**known, "score_ms": round(1000 * seconds, 4)}


def _coverage(whole: pa.Table, label: str, items: int) -> float:
    of_model = whole.filter(pc.equal(whole["model"], label))
    blocks = of_model[_COVERED].drop_null().to_pylist()
    bits = np.bitwise_or.reduce([np.frombuffer(block, np.uint8) for block in blocks])
    return coverage(bits, items)


def _chosen(figures: Figures, *, lists: bool) -> Figures:
    return {name: value for name, value in figures.items() if (name in OF_A_LIST) == lists}


def _by_size(
    values: dict[str, dict[str, npt.NDArray[np.float64]]], size_B: npt.NDArray[np.int64]
) -> dict[str, dict[str, Figures]]:
    results = {}
    for name, (least, most) in SIZES.items():
        inside_B = (size_B >= least) & (size_B <= most)
        if inside_B.any():
            drawn = resample(
                {
                    label: {metric: value_B[inside_B] for metric, value_B in metrics.items()}
                    for label, metrics in values.items()
                }
            )
            results[name] = {label: drawn.summary(label) for label in values}
    return results
