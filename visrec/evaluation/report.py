"""The evaluation report: one HTML page on how good a model is.

The page is one file that loads nothing else: styles are inline, pictures are small JPEGs in `data:`
URIs. Ids, titles and other texts come from users of the shop, so all of them are escaped.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from visrec.evaluation.results import Figure, Metrics
from visrec.evaluation.table import (
    BASELINES,
    COLUMNS,
    COSTS,
    ORACLE,
    VISRANK,
    excludes_zero,
    finite_value,
    format_cost_cells,
    format_difference,
    format_figure,
    format_interval,
    metric_label,
    metric_names,
    sort_models,
)
from visrec.text import show_controls

# Metrics by profile size that the page shows at once; the others are folded away.
_MAIN_SIZE_METRICS = ("auc", "recall@20", "ndcg@20", "recall@100")


@dataclass(frozen=True, kw_only=True)
class ItemCard:
    """One item as the page shows it.

    Attributes:
        item_id: its id, shown if there is no title.
        title: its name.
        thumbnail: JPEG bytes, as `cards.thumbnail` makes them.
        score: the score that the model gave it.
        hit: whether it is one of the held-out items.
        because: the profile item that explains it.
    """

    item_id: str
    title: str | None = None
    thumbnail: bytes | None = None
    score: float | None = None
    hit: bool = False
    because: str | None = None


@dataclass(frozen=True, kw_only=True)
class UserExample:
    """A user's profile, held-out items, and recommendations, best first."""

    user_id: str
    profile: Sequence[ItemCard]
    held_out: Sequence[ItemCard]
    recommended: Sequence[ItemCard]


@dataclass(frozen=True, kw_only=True)
class ClusterRow:
    """A visual cluster: how many items it has, their share of the catalogue, and some of them."""

    size: int
    share: float
    items: Sequence[ItemCard]


@dataclass(frozen=True, kw_only=True)
class VisualClusters:
    """How many clusters there are, and the largest of them."""

    count: int
    rows: Sequence[ClusterRow]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page shows. A figure is `{"mean", "low", "high", "n"}`; only the mean is
    required.

    Attributes:
        title: the heading.
        metrics: ranking metrics, `{model: {metric: figure}}`; in all of them, higher is better.
        examples: a few users.
        metadata: model id, number of users, date and the like, by name.
        lists: beyond-accuracy metrics, `{model: {metric: figure}}`.
        by_profile_size: `{size: {model: {metric: figure}}}`.
        paired: differences between models, `{"a - b": {metric: figure}}`.
        costs: `{model: {"parameters", "train_s", "score_ms"}}`.
        clusters: the visual clusters of the catalogue.
        notes: paragraphs on how to read the figures.
    """

    title: str
    metrics: Metrics
    examples: Sequence[UserExample]
    metadata: Mapping[str, str]
    lists: Metrics = field(default_factory=dict)
    by_profile_size: Mapping[str, Metrics] = field(default_factory=dict)
    paired: Metrics = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    clusters: VisualClusters | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Cell:
    mean: str
    interval: str
    css_class: str = ""


@dataclass(frozen=True)
class _Row:
    name: str
    cells: list[_Cell]


@dataclass(frozen=True)
class _Table:
    """A table; each column has a label, and a second line for its number of users."""

    corner: str
    columns: list[tuple[str, str]]
    rows: list[_Row]
    oracle: list[_Row]


@dataclass(frozen=True)
class _Bar:
    """One model of the interval plot; positions are in percent of the plot's width."""

    model: str
    mean: str
    low_at: float
    mean_at: float
    high_at: float


@dataclass(frozen=True)
class _Plot:
    bars: list[_Bar]
    ticks: list[tuple[float, str]]


def render(report: Report) -> str:
    """The page as one HTML text, which can be encoded as UTF-8."""
    page = _template().render(
        report=report,
        metrics=_metrics_table(report.metrics, _main_columns(report.metrics), report.metrics),
        more_metrics=_metrics_table(report.metrics, _more_columns(report.metrics), report.metrics),
        differences=_differences_table(report.paired, _main_columns(report.paired)),
        more_differences=_differences_table(report.paired, _more_columns(report.paired)),
        costs=_costs_table(report),
        lists=_metrics_table(report.lists, metric_names(report.lists), report.metrics, best=False),
        by_size=_size_tables(report),
        shown_sizes=_MAIN_SIZE_METRICS,
        plot=_plot(report.metrics),
        distance=_progress_to_oracle(report.metrics),
    )
    # A Python string may hold half of a surrogate pair, which UTF-8 cannot encode.
    return page.encode("utf-8", "replace").decode()


# Tables.


def _main_columns(metrics: Metrics) -> list[str]:
    """The columns that the page shows at once; the others are folded away."""
    return [name for name in metric_names(metrics) if name in COLUMNS]


def _more_columns(metrics: Metrics) -> list[str]:
    return [name for name in metric_names(metrics) if name not in COLUMNS]


def _metrics_table(
    metrics: Metrics, columns: Sequence[str], order: Metrics, *, best: bool = True
) -> _Table:
    """One row per model, in the order of the AUC in `order`; one column per metric."""
    rows = {
        model: [_cell(metrics, model, name, best=best) for name in columns]
        for model in sort_models(order)
        if model in metrics
    }
    return _table("Model", [(metric_label(name), "") for name in columns], rows)


def _costs_table(report: Report) -> _Table:
    """One row per model, one column per cost."""
    rows = {
        model: [_Cell(text, "") for text in format_cost_cells(report.costs[model])]
        for model in sort_models(report.metrics)
        if model in report.costs
    }
    return _table("Model", [(name, "") for name in COSTS.values()], rows)


def _size_tables(report: Report) -> dict[str, _Table]:
    """One table per metric: one row per model, one column per profile size."""
    sizes = report.by_profile_size
    list_metrics = set(metric_names(report.lists))  # of these, a higher value is not better
    tables = {}
    for name in metric_names(next(iter(sizes.values()), {})):
        users = [next(iter(metrics.values()))[name]["n"] for metrics in sizes.values()]
        columns = [
            (f"{size} item{'s' if size != '1' else ''}", f"{count:,} users")
            for size, count in zip(sizes, users, strict=True)
        ]
        rows = {
            model: [
                _cell(metrics, model, name, best=name not in list_metrics)
                for metrics in sizes.values()
            ]
            for model in sort_models(report.metrics)
        }
        tables[name] = _table("Model", columns, rows)
    return tables


def _differences_table(paired: Metrics, columns: Sequence[str]) -> _Table:
    """One row per pair of models, one column per metric."""
    rows = {
        pair: [_difference_cell(figures.get(name)) for name in columns]
        for pair, figures in paired.items()
    }
    return _table("Models", [(metric_label(name), "") for name in columns], rows)


def _table(corner: str, columns: list[tuple[str, str]], cells: Mapping[str, list[_Cell]]) -> _Table:
    rows = [_Row(name, cells[name]) for name in cells if name != ORACLE]
    return _Table(
        corner, columns, rows, [_Row(name, cells[name]) for name in cells if name == ORACLE]
    )


def _cell(metrics: Metrics, model: str, name: str, *, best: bool) -> _Cell:
    figure = metrics[model].get(name)
    means = [finite_value(metrics[m].get(name)) for m in metrics if m != ORACLE]
    # The oracle knows the truth, so it does not compete; and one model alone is not the best.
    top = max((v for v in means if v is not None), default=None) if len(means) > 1 else None
    mean = finite_value(figure)
    is_best = best and model != ORACLE and mean is not None and mean == top
    return _Cell(format_figure(figure), format_interval(figure, "–"), "best" if is_best else "")


def _difference_cell(figure: Figure | None) -> _Cell:
    css_class = ""
    if excludes_zero(figure):
        css_class = "more" if (finite_value(figure) or 0) > 0 else "less"
    return _Cell(format_difference(figure), format_interval(figure, " to "), css_class)


# The interval plot, and the progress towards the oracle.


def _plot(metrics: Metrics) -> _Plot | None:
    """The AUC of each model with its interval, on an axis that includes chance, 0.5."""
    spans = []
    for model in sort_models(metrics):
        auc = metrics[model].get("auc")
        mean = finite_value(auc)
        if mean is not None:
            low, high = finite_value(auc, "low"), finite_value(auc, "high")
            ends = [mean, *(end for end in (low, high) if end is not None)]
            spans.append((model, mean, min(ends), max(ends)))
    if not spans:
        return None
    left = math.floor(min(0.5, *(low for _, _, low, _ in spans)) * 10) / 10
    right = math.ceil(max(0.6, *(high for _, _, _, high in spans)) * 10) / 10

    def position(auc: float) -> float:
        return round(2 + 96 * (auc - left) / (right - left), 2)  # with room for round line ends

    tenths = range(round(left * 10), round(right * 10) + 1)
    return _Plot(
        bars=[
            _Bar(m, f"{mean:.3f}", position(low), position(mean), position(high))
            for m, mean, low, high in spans
        ],
        ticks=[(position(tenth / 10), f"{tenth / 10:.1f}") for tenth in tenths],
    )


def _progress_to_oracle(metrics: Metrics) -> str | None:
    """How far the best trained model gets from the best VisRank towards the oracle, in AUC."""
    auc = {m: v for m in metrics if (v := finite_value(metrics[m].get("auc"))) is not None}
    visrank = {m: v for m, v in auc.items() if m.startswith(VISRANK)}
    trained = {m: v for m, v in auc.items() if m not in (*visrank, *BASELINES, ORACLE)}
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


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("visrec", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": show_controls, "label": metric_label, "data_uri": _data_uri}
    return environment.get_template("report.html")
