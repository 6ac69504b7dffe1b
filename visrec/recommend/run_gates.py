"""Gathers what the gates of a run need to know, and evaluates them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from visrec.publication.gate import Gate
from visrec.publication.gate_context import (
    FeatureCounts,
    GateContext,
    GatesConfig,
    ServingChoice,
)
from visrec.publication.integrity_gates import integrity_gates
from visrec.publication.judgement_gates import judgement_gates
from visrec.publication.manifest import RunManifest
from visrec.recommend.inputs import ScoringData
from visrec.recommend.readback import RunChecks, count_items_without_feature
from visrec.recommend.run_inputs import RunSource
from visrec.storage.input_table import InputTable


@dataclass(frozen=True, kw_only=True)
class GateInputs:
    """What the gates of a run need besides its lists and the scoring data.

    Attributes:
        source: the model and the inputs of the run.
        items_table: the items table, or None.
        last: the publication to compare with, or None.
        why_no_last: why it is None.
        evaluation: the content of the evaluation's metrics.json, or None; of any type, because
            gates read it as JSON.
        thresholds: the thresholds of the judgement gates; integrity gates have none.
        choice: why a night chose the model; None if no night chose it.
    """

    source: RunSource
    items_table: InputTable | None
    last: RunManifest | None
    why_no_last: str
    evaluation: Mapping[str, Any] | None
    thresholds: GatesConfig
    choice: ServingChoice | None


@dataclass(frozen=True)
class GateResults:
    """The evaluated gates.

    Attributes:
        gates: all gates, in the order of the manifest.
        without_feature: shares of the interactions and of the available items whose item has no
            feature; the next run compares its own with them.
    """

    gates: list[Gate]
    without_feature: Mapping[str, float]


def gates_of_run(inputs: GateInputs, data: ScoringData, *checks: RunChecks) -> GateResults:
    """Evaluates all gates of a run.

    Args:
        inputs: what the gates need besides the other two arguments.
        data: the input of the scoring.
        checks: counts over the run's lists, each over some of its shards.
    """
    digests = inputs.source.digests
    report = data.read_report
    total = reduce(add, checks)
    dropped = report.dropped_missing_feature
    context = GateContext(
        kind=digests.kind,
        k=digests.k,
        available_N=data.available_N,
        artist_N=data.artist_N,
        takers_N=data.takers_N,
        popular_N=total.popular_N,
        personalized=inputs.source.personalized,
        interactions_without_feature=FeatureCounts(report.counted + dropped, dropped),
        items_without_feature=count_items_without_feature(inputs.items_table, data.item_ids),
        model_digest=digests.model,
        model_name=inputs.source.model_name,
        tables=[name for name in ("items", "users") if getattr(digests, name)],
        last=inputs.last,
        why_no_last=inputs.why_no_last,
        evaluation=inputs.evaluation,
        choice=inputs.choice,
    )
    lists = total.total_lists(data.fallback_N)
    gates = [*integrity_gates(lists, context), *judgement_gates(lists, context, inputs.thresholds)]
    return GateResults(gates, context.without_feature)
