"""From an evaluation to its report: the verdict, some users, and what else the workspace has."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from visrec.cli.output import say, warn
from visrec.cli.summary import terminal_width
from visrec.evaluation.cards import add_pictures
from visrec.evaluation.clusters import find_clusters
from visrec.evaluation.data import EvaluationOverview
from visrec.evaluation.examples import find_examples
from visrec.evaluation.record import RECORD, EvaluationRecord, find_previous
from visrec.evaluation.report_content import Report
from visrec.evaluation.results import EvaluationResults, Metrics, ModelCost
from visrec.evaluation.table import (
    finite_value,
    format_costs,
    format_differences,
    format_metrics,
)
from visrec.evaluation.verdict import Verdict, judge
from visrec.evaluation.workspace_facts import FactSources, read_facts
from visrec.models.artifact import read_model_name, read_training_record
from visrec.sources.images import PictureSource
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.tasks import Ref, get, submit
from visrec.text import printable


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Where the report reads, and what it shows.

    Attributes:
        sources: where facts about the workspace are read (models, sweeps, runs, summaries).
        evaluations: the directory of all evaluations of the workspace.
        target: the directory of this one.
        images: where the pictures are.
        items_table: an items table with titles, or None.
        examples: number of users.
        hash_users: whether user ids are replaced by keyed hashes.
    """

    sources: FactSources
    evaluations: Store
    target: Store
    images: PictureSource
    items_table: InputTable | None
    examples: int
    hash_users: bool


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The results of an evaluation.

    Attributes:
        data: what was evaluated.
        overview: its counts.
        results: the metrics.
        costs: what each model costs.
        seconds: wall time so far, by phase.
    """

    data: Ref
    overview: EvaluationOverview
    results: EvaluationResults
    costs: Mapping[str, ModelCost]
    seconds: Mapping[str, float]


def make_report(inputs: ReportInputs, evaluated: Evaluated) -> tuple[Report, EvaluationRecord]:
    """The report, and the record by which the next evaluation compares itself with this one.

    Tasks find the users and the clusters, fetch their pictures, and read the workspace.
    """
    results, overview = evaluated.results, evaluated.overview
    label, (model_id, digest) = overview.labels[0], _identity(inputs, evaluated)
    models = inputs.sources.models
    verdict = judge(
        label,
        results.models,
        results.paired,
        kind=read_model_name(models[label]),
        locations={name: model.root for name, model in models.items()},
        was_improving=was_improving(models[label]),
    )
    hash_key = digest if inputs.hash_users else None
    examples = submit(find_examples, evaluated.data, inputs.examples, verdict.rival, hash_key)
    clusters = submit(find_clusters, inputs.sources.features, inputs.images)
    facts = submit(read_facts, inputs.sources, overview.read_report, "evaluate")
    pictures = submit(add_pictures, examples, clusters, inputs.images, inputs.items_table)
    (users, visual_clusters, why_no_pictures), workspace_facts = get(pictures), get(facts)
    if why_no_pictures:
        unreadable = [*workspace_facts.unreadable, why_no_pictures]
        workspace_facts = replace(workspace_facts, unreadable=unreadable)
    record = _record(inputs, evaluated, verdict.rival)
    return (
        Report(
            model=label,
            model_id=model_id,
            verdict=verdict,
            metrics=results.models,
            made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            users=overview.users,
            items=overview.items,
            examples=users,
            before=record.before,
            lists=results.lists,
            by_profile_size=results.by_profile_size,
            paired=results.paired,
            costs={name: cost.to_dict() for name, cost in evaluated.costs.items()},
            clusters=visual_clusters,
            facts=workspace_facts.with_seconds("evaluate", evaluated.seconds),
        ),
        record,
    )


def was_improving(model: Store) -> bool:
    """Whether the last epoch had the best validation AUC, so that more epochs may help."""
    metrics = read_training_record(model)[1]
    is_validated = metrics.get("val_auc") is not None
    return is_validated and metrics.get("best_epoch") == metrics.get("epochs")


def _identity(inputs: ReportInputs, evaluated: Evaluated) -> tuple[str, str]:
    """The name of the first model in the workspace, and the digest of its artifact."""
    store = next(iter(inputs.sources.models.values()))
    return store.name, evaluated.results.digests[evaluated.overview.labels[0]]


def _record(inputs: ReportInputs, evaluated: Evaluated, rival: str | None) -> EvaluationRecord:
    results, overview = evaluated.results, evaluated.overview
    model_id, digest = _identity(inputs, evaluated)
    provenance, _ = read_training_record(next(iter(inputs.sources.models.values())))
    data_until = provenance.data.interactions.last_timestamp or 0
    return EvaluationRecord(
        model_id=model_id,
        digest=digest,
        data_until=data_until,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        users=overview.users,
        items=overview.items,
        means=_means(overview.labels[0], results.models, results.lists),
        rival=rival,
        rival_means={} if rival is None else _means(rival, results.models, results.lists),
        before=find_previous(_evaluations(inputs), digest, data_until, warn),
    )


def _means(label: str, *groups: Metrics) -> dict[str, float]:
    means = {
        name: finite_value(figure) for group in groups for name, figure in group[label].items()
    }
    return {name: mean for name, mean in means.items() if mean is not None}


def _evaluations(inputs: ReportInputs) -> list[Store]:
    """The directories of the workspace's evaluations, and that of this one."""
    stores = {inputs.target.root: inputs.target}
    for entry in inputs.evaluations.list():
        folder, _, name = entry.name.rpartition("/")
        if name == RECORD:
            store = inputs.evaluations / folder if folder else inputs.evaluations
            stores[store.root] = store
    return list(stores.values())


def print_results(
    results: EvaluationResults, costs: Mapping[str, ModelCost], verdict: Verdict
) -> None:
    """Prints the tables of the figures, and the verdict."""
    width = terminal_width()
    say(f"\n{format_metrics(results.models, width)}")
    if results.paired:
        say(f"\n{format_differences(results.paired, width)}")
    rows = {label: cost.to_dict() for label, cost in costs.items()}
    say(f"\n{format_costs(rows, width)}")
    say(f"\n{printable(verdict.sentence)}")
    for sentence in (*verdict.details, *verdict.advice):
        say(f"  {printable(sentence)}")
