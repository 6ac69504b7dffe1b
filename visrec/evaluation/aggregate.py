"""From the metrics of each user to the figures of each model: means, intervals, differences.

Shapes: B users.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.evaluation.bootstrap import Figures, resample
from visrec.evaluation.list_metrics import COVERAGE, PER_LIST_METRICS, coverage
from visrec.evaluation.rank_users import COVERED, SECONDS
from visrec.evaluation.results import PER_USER, EvaluationResults, ModelCost, TrainingCost
from visrec.storage.store import Store

PROFILE_SIZES = {"1": (1, 1), "2-4": (2, 4), "5-9": (5, 9), "10+": (10, np.inf)}
Values = Mapping[str, Mapping[str, npt.NDArray[np.float64]]]  # (B,) by model and by metric


@dataclass(frozen=True, kw_only=True)
class AggregationSpec:
    """What `aggregate` computes.

    Attributes:
        labels: the models, in the order of the results.
        items: how many items were ranked.
        pairs: the two models of each difference.
        costs: what it cost to train the models that were trained.
        digests: the artifact digests of these models.
        target: where `per_user.parquet` goes.
    """

    labels: Sequence[str]
    items: int
    pairs: Sequence[tuple[str, str]]
    costs: Mapping[str, TrainingCost]
    digests: Mapping[str, str]
    target: Store


def aggregate(
    spec: AggregationSpec, *blocks: pa.Table
) -> tuple[EvaluationResults, dict[str, ModelCost]]:
    """Writes the per-user metrics; returns the results and what each model costs.

    Args:
        spec: what to compute.
        blocks: the tables of `RankUsers`, in any order.
    """
    covered = _coverage(blocks, spec.items)
    tables = [block.drop_columns([COVERED]) for block in blocks]
    users = pa.concat_tables(tables).sort_by([("model", "ascending"), ("user_id", "ascending")])
    costs = {label: _cost(users, label, spec.costs.get(label)) for label in spec.labels}
    users = users.drop_columns([SECONDS])
    spec.target.write_table(PER_USER, users, store_schema=False)
    model = users["model"].to_numpy(zero_copy_only=False)
    columns = {name: users[name].to_numpy() for name in users.column_names[3:]}
    values = {
        label: {name: column[model == label] for name, column in columns.items()}
        for label in spec.labels
    }
    resampled = resample(values)
    summaries = {label: resampled.summary(label) for label in spec.labels}
    size_B = users["profile_size"].to_numpy()[model == spec.labels[0]]
    results = EvaluationResults(
        models={label: _select(figures, lists=False) for label, figures in summaries.items()},
        lists={
            label: {COVERAGE: {"mean": covered[label]}, **_select(figures, lists=True)}
            for label, figures in summaries.items()
        },
        by_profile_size=_by_profile_size(values, size_B),
        paired={f"{a} - {b}": resampled.difference(a, b) for a, b in spec.pairs},
        digests=spec.digests,
    )
    return results, costs


def _cost(users: pa.Table, label: str, training: TrainingCost | None) -> ModelCost:
    seconds = pc.mean(users.filter(pc.equal(users["model"], label))[SECONDS]).as_py()
    return ModelCost(
        parameters=training.parameters if training else None,
        train_s=training.train_s if training else None,
        score_ms=round(1000 * seconds, 4),
    )


def _coverage(blocks: Sequence[pa.Table], items: int) -> dict[str, float]:
    """Each model's coverage; the bits of one block at a time are decoded."""
    bits_by_model: dict[str, npt.NDArray[np.uint8]] = {}
    for block in blocks:
        marked = block.filter(pc.is_valid(block[COVERED]))
        for label, bits in zip(marked["model"].to_pylist(), marked[COVERED], strict=True):
            found = np.frombuffer(bits.as_buffer(), np.uint8)
            known = bits_by_model.setdefault(label, np.zeros_like(found))
            np.bitwise_or(known, found, out=known)
    return {label: coverage(bits, items) for label, bits in bits_by_model.items()}


def _select(figures: Figures, *, lists: bool) -> Figures:
    """The beyond-accuracy metrics of the lists, or all others."""
    return {name: value for name, value in figures.items() if (name in PER_LIST_METRICS) == lists}


def _by_profile_size(
    values: Values, size_B: npt.NDArray[np.int64]
) -> dict[str, dict[str, Figures]]:
    results = {}
    for name, inside_B in in_ranges(size_B, PROFILE_SIZES):
        resampled = resample(
            {
                label: {metric: value_B[inside_B] for metric, value_B in metrics.items()}
                for label, metrics in values.items()
            }
        )
        results[name] = {label: resampled.summary(label) for label in values}
    return results


def in_ranges(
    number_X: npt.NDArray[np.int64], ranges: Mapping[str, tuple[float, float]]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """The name of each range that has a number, and (X,) which numbers it has, bounds included."""
    for name, (smallest, largest) in ranges.items():
        inside_X = (number_X >= smallest) & (number_X <= largest)
        if inside_X.any():
            yield name, inside_X
