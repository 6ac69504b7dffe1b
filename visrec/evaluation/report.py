"""The evaluation report: one HTML page on whether a model is good, and what to do.

`report_content.py` has what it shows, `report.html` how.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from visrec.evaluation.baselines import UNTRAINED
from visrec.evaluation.charts import plot_auc, plot_curve, plot_sweep
from visrec.evaluation.page import format_moment, render_page
from visrec.evaluation.report_changes import css_class, evaluation_changes, publication_changes
from visrec.evaluation.report_content import (
    LIST_LENGTH,
    HeldBackRun,
    ItemCard,
    Publication,
    RejectedPictures,
    Report,
    UserExample,
)
from visrec.evaluation.report_tables import (
    costs_table,
    differences_table,
    main_columns,
    metrics_table,
    more_columns,
    size_tables,
)
from visrec.evaluation.results import Metrics
from visrec.evaluation.table import (
    MINUS,
    ORACLE,
    VISRANK,
    finite_value,
    format_percent,
    metric_names,
)
from visrec.evaluation.verdict import TOP, Outcome
from visrec.publication.gate import Gate
from visrec.text import show_controls

# Metrics by profile size that the page shows at once; the others are folded away.
_MAIN_SIZE_METRICS = ("auc", "recall@20", "ndcg@20", "recall@100")
_OUTCOMES: Mapping[Outcome, str] = {
    "better": "Better than the baselines",
    "mixed": "Mixed",
    "unclear": "Undecided",
    "worse": "Worse than a baseline",
    "chance": "No better than chance",
    "alone": "Measured",
    "unmeasured": "Not measured",
}
COVERAGE = "coverage@100"


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A key figure.

    Attributes:
        label: what it is.
        value: the model's.
        width: the width of its bar in percent.
        mark: where the best baseline is on that bar.
        versus: the figure of the best baseline, in words.
        change: since the evaluation before, with its sign; empty without one.
        change_class: how the change is shown.
    """

    label: str
    value: str
    width: float
    mark: float | None = None
    versus: str = ""
    change: str = ""
    change_class: str = ""


@dataclass(frozen=True)
class GateTable:
    """The gates of one run."""

    title: str
    gates: Sequence[Gate]


@dataclass(frozen=True)
class RejectedView:
    """Rejected pictures as the page shows them."""

    by_reason: Mapping[str, int]
    examples: Sequence[object]
    sentence: str


@dataclass(frozen=True)
class Timing:
    """A job's wall time; the longest job has a bar of 100 %."""

    job: str
    seconds: str
    width: float
    phases: str


def render(report: Report) -> str:
    """The page as one HTML text, which can be encoded as UTF-8."""
    metrics, paired, facts = report.metrics, report.paired, report.facts
    curves = [view for curve in facts.curves if (view := plot_curve(curve)) is not None]
    gates = _gate_tables(facts.publication, facts.held_back)
    timings = _timings(facts.seconds)
    content = {
        "report": report,
        "outcome": _OUTCOMES[report.verdict.outcome],
        "tiles": _tiles(report),
        "kinds": _kinds(report.examples),
        "metrics": metrics_table(report, metrics, main_columns(metrics)),
        "more_metrics": metrics_table(report, metrics, more_columns(metrics)),
        "differences": differences_table(paired, main_columns(paired)),
        "more_differences": differences_table(paired, more_columns(paired)),
        "costs": costs_table(report),
        "lists": metrics_table(report, report.lists, metric_names(report.lists), best=False),
        "by_size": size_tables(report),
        "shown_sizes": _MAIN_SIZE_METRICS,
        "plot": plot_auc(metrics),
        "distance": _progress_to_oracle(metrics),
        "evaluation_changes": evaluation_changes(report),
        "publication": facts.publication,
        "publication_changes": publication_changes(facts.publication),
        "gates": gates,
        "curves": curves,
        "sweeps": [plot_sweep(sweep) for sweep in facts.sweeps],
        "rejected": _rejected(facts.rejected),
        "timings": timings,
    }
    shown = {
        "users": report.examples,
        "figures": True,
        "changes": report.before or facts.publication,
        "gates": gates,
        "training": curves or facts.sweeps,
        "catalogue": report.clusters or facts.rejected or facts.data,
        "timings": timings,
    }
    names = {"changes": "Today and before"}
    sections = [(id, names.get(id, id.capitalize())) for id, is_shown in shown.items() if is_shown]
    return render_page("report.html", _items(report), sections=sections, **content)


def _items(report: Report) -> Iterator[ItemCard]:
    """Every item on the page, some of them several times."""
    yield from chain.from_iterable(user.items for user in report.examples)
    if report.clusters:
        yield from chain.from_iterable(row.items for row in report.clusters.rows)


def _kinds(users: Sequence[UserExample]) -> list[tuple[str, str, int]]:
    """The groups of users to choose from: value, name and count."""
    found, cold = sum(user.found > 0 for user in users), sum(user.is_cold for user in users)
    return [
        ("all", "All", len(users)),
        ("found", f"In the first {LIST_LENGTH}:", found),
        ("missed", f"Not in the first {LIST_LENGTH}:", len(users) - found),
        ("cold", "Cold", cold),
        ("warm", "Warm", len(users) - cold),
    ]


# Key figures.


def _tiles(report: Report) -> list[Tile]:
    metrics = report.metrics
    labels = {
        "auc": "of the other items rank below what a user takes next (AUC)",
        TOP: "of what users took next is in the first 20 items (Recall@20)",
        "recall@100": "of what users took next is in the first 100 items (Recall@100)",
    }
    tiles = [_share_tile(report, metrics, name, label) for name, label in labels.items()]
    tiles.append(
        _share_tile(report, report.lists, COVERAGE, "of the catalogue is in somebody's first 100")
    )
    return [tile for tile in tiles if tile is not None]


def _share_tile(report: Report, metrics: Metrics, name: str, label: str) -> Tile | None:
    """A share in percent, next to the best baseline's; None where the model has no such figure.

    For beyond-accuracy metrics the change is not coloured, because more is not always better.
    """
    figure = metrics.get(report.model, {}).get(name)
    mean = finite_value(figure)
    if mean is None:
        return None
    rival = report.verdict.rival
    other = finite_value(metrics.get(rival, {}).get(name)) if rival else None
    before = report.before.means.get(name) if report.before else None
    points = None if before is None else 100 * (mean - before)
    return Tile(
        label=label,
        value=format_percent(mean),
        width=round(100 * mean, 1),
        mark=None if other is None else round(100 * other, 1),
        versus="" if other is None else f"{rival}: {format_percent(other)}",
        change="" if points is None else f"{'+' if points >= 0 else MINUS}{abs(points):.1f}",
        change_class="" if metrics is report.lists else css_class(before, figure),
    )


# Gates, data and time.


def _gate_tables(publication: Publication | None, held_back: HeldBackRun | None) -> list[GateTable]:
    """The gates of a run that was held back, and of the published run; failed gates come first."""
    tables = []
    if held_back:
        title = f"Run {held_back.run_id} was held back at {format_moment(held_back.held_back_at)}"
        tables.append(GateTable(title, held_back.gates))
    if publication:
        order = ("failed", "forced", "passed", "skipped")
        gates = sorted(publication.run.gates, key=lambda gate: order.index(gate.outcome))
        count = {o: sum(gate.outcome == o for gate in gates) for o in order}
        text = ", ".join(f"{number} {o}" for o, number in count.items() if number)
        tables.append(GateTable(f"Run {publication.run.run_id}, published: {text}", gates))
    return tables


def _rejected(rejected: RejectedPictures | None) -> RejectedView | None:
    if rejected is None:
        return None
    total = sum(rejected.by_reason.values())
    reasons = ", ".join(
        f"{count:,} {reason.replace('_', ' ')}"
        for reason, count in sorted(rejected.by_reason.items(), key=lambda item: -item[1])
    )
    shown = len(rejected.examples)
    noun = "picture was" if total == 1 else "pictures were"
    sentence = f"{total:,} {noun} rejected: {reasons}."
    if shown < total:
        sentence += f" The first {shown} of them are below."
    return RejectedView(rejected.by_reason, rejected.examples, sentence)


def _timings(seconds: Mapping[str, Mapping[str, float]]) -> list[Timing]:
    totals = {job: sum(phases.values()) for job, phases in seconds.items()}
    longest = max(totals.values(), default=0.0)
    return [
        Timing(
            job=job,
            seconds=f"{totals[job]:,.1f}",
            width=round(100 * totals[job] / longest, 1) if longest else 0.0,
            phases=", ".join(f"{name} {s:,.1f}" for name, s in phases.items() if s >= 0.05),
        )
        for job, phases in seconds.items()
    ]


def _progress_to_oracle(metrics: Metrics) -> str | None:
    """How far the best trained model gets from the best VisRank towards the oracle, in AUC."""
    auc = {m: v for m in metrics if (v := finite_value(metrics[m].get("auc"))) is not None}
    visrank = {m: v for m, v in auc.items() if UNTRAINED.get(m, m) == VISRANK}
    trained = {m: v for m, v in auc.items() if m not in (*visrank, *UNTRAINED, ORACLE)}
    if ORACLE not in auc or not visrank or not trained:
        return None
    start, start_auc = max(visrank.items(), key=lambda item: item[1])
    best, best_auc = max(trained.items(), key=lambda item: item[1])
    gap = auc[ORACLE] - start_auc
    if gap <= 0:
        return None
    share = f"{(best_auc - start_auc) / gap:.0%}" if best_auc > start_auc else "none"
    return (
        f"{show_controls(best)} ({best_auc:.3f}) closes {share} of the distance in AUC from the "
        f"best VisRank ({show_controls(start)}, {start_auc:.3f}) to the oracle ({auc[ORACLE]:.3f})."
    )
