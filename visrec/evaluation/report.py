"""The page that tells how good a model is.

The page is one file that asks for nothing else: styles inline, pictures as small JPEGs in `data:`
URIs. What it shows was written by others, ids and titles included, so all of it is escaped.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from visrec.evaluation.table import (
    BASELINES,
    COLUMNS,
    COSTS,
    ORACLE,
    VISRANK,
    Figure,
    Metrics,
    columns_of,
    cost_texts,
    difference_text,
    excludes_zero,
    figure_text,
    interval_text,
    label,
    ranked,
    value,
)
from visrec.features.containers import PictureError
from visrec.features.decode import PictureLimits, Preprocessing, decode
from visrec.text import visible

_SHOWN_SIZES = ("auc", "recall@20", "ndcg@20", "recall@100")  # the others fold away


@dataclass(frozen=True, kw_only=True)
class ItemCard:
    """One item as shown in an example.

    Attributes:
        item_id: Its id, shown where there is no title.
        title: Its name.
        thumbnail: JPEG bytes, as `thumbnail()` makes them.
        score: What the model gave it.
        hit: Whether it is one of the held-out items.
        because: The profile item that explains it.
    """

    item_id: str
    title: str | None = None
    thumbnail: bytes | None = None
    score: float | None = None
    hit: bool = False
    because: str | None = None


@dataclass(frozen=True, kw_only=True)
class UserExample:
    """What one user liked, what was held out, and what the model recommends, best first."""

    user_id: str
    profile: Sequence[ItemCard]
    held_out: Sequence[ItemCard]
    recommended: Sequence[ItemCard]


@dataclass(frozen=True, kw_only=True)
class ClusterRow:
    """A visual cluster: its items, their share of the catalogue, and some of them."""

    size: int
    share: float
    items: Sequence[ItemCard]


@dataclass(frozen=True, kw_only=True)
class VisualClusters:
    """How many there are, and the largest of them."""

    count: int
    rows: Sequence[ClusterRow]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page says. A figure is `{"mean", "low", "high", "n"}`, low and high optional.

    Attributes:
        title: Its heading.
        metrics: `{model: {metric: figure}}`; higher is better in all.
        examples: A few users.
        facts: Model id, data digest, date and the like, by name.
        lists: `{model: {measure: figure}}` of what the lists are like.
        by_profile_size: `{size: {model: {metric: figure}}}`.
        paired: `{"a - b": {metric: figure}}` of differences.
        costs: `{model: {"parameters", "train_s", "score_ms"}}`.
        clusters: What looks alike in the catalogue.
        notes: Paragraphs on how to read the figures.
    """

    title: str
    metrics: Metrics
    examples: Sequence[UserExample]
    facts: Mapping[str, str]
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
    mark: str = ""  # the class that styles it


@dataclass(frozen=True)
class _Row:
    name: str
    cells: list[_Cell]


@dataclass(frozen=True)
class _Table:
    """A column's second line says how many users it is of."""

    corner: str
    columns: list[tuple[str, str]]
    rows: list[_Row]
    oracle: list[_Row]


@dataclass(frozen=True)
class _Bar:
    """One model in the interval plot; positions in percent of the plot's width."""

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
    """The page as one HTML text, to be written as UTF-8."""
    page = _template().render(
        report=report,
        metrics=_metrics_table(report.metrics, _known(report.metrics), report.metrics),
        more_metrics=_metrics_table(report.metrics, _others(report.metrics), report.metrics),
        differences=_differences_table(report.paired, _known(report.paired)),
        more_differences=_differences_table(report.paired, _others(report.paired)),
        costs=_costs_table(report),
        lists=_metrics_table(report.lists, columns_of(report.lists), report.metrics, best=False),
        by_size=_size_tables(report),
        shown_sizes=_SHOWN_SIZES,
        plot=_plot(report.metrics),
        distance=_distance(report.metrics),
    )
    # Half of a surrogate pair, which Python strings may hold, has no UTF-8.
    return page.encode("utf-8", "replace").decode()


def thumbnail(data: bytes, size: int = 96) -> bytes | None:
    """A square JPEG from the middle of any picture; None where it cannot be read."""
    square = Preprocessing(
        resize=size,
        crop=(size, size),
        interpolation="lanczos",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    try:
        pixels = decode(data, square, PictureLimits())
    except PictureError:
        return None
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()


# Tables.


def _known(metrics: Metrics) -> list[str]:
    """The columns that are shown at once; the others fold away."""
    return [name for name in columns_of(metrics) if name in COLUMNS]


def _others(metrics: Metrics) -> list[str]:
    return [name for name in columns_of(metrics) if name not in COLUMNS]


def _metrics_table(
    metrics: Metrics, columns: Sequence[str], order: Metrics, *, best: bool = True
) -> _Table:
    """A row a model, in the order of falling AUC of `order`; a column a metric."""
    rows = {
        model: [_cell(metrics, model, name, best=best) for name in columns]
        for model in ranked(order)
        if model in metrics
    }
    return _table("Model", [(label(name), "") for name in columns], rows)


def _costs_table(report: Report) -> _Table:
    """A row a model, a column a cost."""
    rows = {
        model: [_Cell(text, "") for text in cost_texts(report.costs[model])]
        for model in ranked(report.metrics)
        if model in report.costs
    }
    return _table("Model", [(name, "") for name in COSTS.values()], rows)


def _size_tables(report: Report) -> dict[str, _Table]:
    """By metric: a row a model, a column a size of profile."""
    sizes = report.by_profile_size
    measures = set(columns_of(report.lists))  # of these, more is not better
    tables = {}
    for name in columns_of(next(iter(sizes.values()), {})):
        users = [next(iter(metrics.values()))[name]["n"] for metrics in sizes.values()]
        columns = [
            (f"{size} item{'s' if size != '1' else ''}", f"{count:,} users")
            for size, count in zip(sizes, users, strict=True)
        ]
        rows = {
            model: [
                _cell(metrics, model, name, best=name not in measures) for metrics in sizes.values()
            ]
            for model in ranked(report.metrics)
        }
        tables[name] = _table("Model", columns, rows)
    return tables


def _differences_table(paired: Metrics, columns: Sequence[str]) -> _Table:
    """A row a pair, a column a metric."""
    rows = {
        pair: [_difference_cell(figures.get(name)) for name in columns]
        for pair, figures in paired.items()
    }
    return _table("Models", [(label(name), "") for name in columns], rows)


def _table(corner: str, columns: list[tuple[str, str]], cells: Mapping[str, list[_Cell]]) -> _Table:
    rows = [_Row(name, cells[name]) for name in cells if name != ORACLE]
    return _Table(
        corner, columns, rows, [_Row(name, cells[name]) for name in cells if name == ORACLE]
    )


def _cell(metrics: Metrics, model: str, name: str, *, best: bool) -> _Cell:
    figure = metrics[model].get(name)
    rivals = [value(metrics[m].get(name)) for m in metrics if m != ORACLE]
    # The oracle knows the truth and competes with nobody; with one model there is no contest.
    top = max((v for v in rivals if v is not None), default=None) if len(rivals) > 1 else None
    mean = value(figure)
    won = best and model != ORACLE and mean is not None and mean == top
    return _Cell(figure_text(figure), interval_text(figure, "–"), "best" if won else "")


def _difference_cell(figure: Figure | None) -> _Cell:
    mark = ""
    if excludes_zero(figure):
        mark = "more" if (value(figure) or 0) > 0 else "less"
    return _Cell(difference_text(figure), interval_text(figure, " to "), mark)


# The plot and the sentence.


def _plot(metrics: Metrics) -> _Plot | None:
    """The AUC of each model with its interval, on an axis that holds chance, 0.5."""
    spans = []
    for model in ranked(metrics):
        auc = metrics[model].get("auc")
        mean = value(auc)
        if mean is not None:
            low, high = value(auc, "low"), value(auc, "high")
            ends = [mean, *(end for end in (low, high) if end is not None)]
            spans.append((model, mean, min(ends), max(ends)))
    if not spans:
        return None
    left = math.floor(min(0.5, *(low for _, _, low, _ in spans)) * 10) / 10
    right = math.ceil(max(0.6, *(high for _, _, _, high in spans)) * 10) / 10

    def at(value: float) -> float:
        return round(2 + 96 * (value - left) / (right - left), 2)  # room for the ends

    tenths = range(round(left * 10), round(right * 10) + 1)
    return _Plot(
        bars=[_Bar(m, f"{mean:.3f}", at(low), at(mean), at(high)) for m, mean, low, high in spans],
        ticks=[(at(tenth / 10), f"{tenth / 10:.1f}") for tenth in tenths],
    )


def _distance(metrics: Metrics) -> str | None:
    """How far the best learned model got from the best VisRank towards the oracle, in AUC."""
    known = {m: v for m in metrics if (v := value(metrics[m].get("auc"))) is not None}
    visrank = {m: v for m, v in known.items() if m.startswith(VISRANK)}
    learned = {m: v for m, v in known.items() if m not in (*visrank, *BASELINES, ORACLE)}
    if ORACLE not in known or not visrank or not learned:
        return None
    start = max(visrank, key=lambda m: visrank[m])
    best = max(learned, key=lambda m: learned[m])
    whole = known[ORACLE] - known[start]
    if whole <= 0:
        return None
    ends = f"{visible(start)}, {known[start]:.3f}) to the oracle ({known[ORACLE]:.3f})"
    if known[best] <= known[start]:
        return (
            f"{visible(best)} ({known[best]:.3f}) closes none of the distance in AUC from the "
            f"best VisRank ({ends}."
        )
    share = (known[best] - known[start]) / whole
    return (
        f"{visible(best)} ({known[best]:.3f}) closes {share:.0%} of the distance in AUC from the "
        f"best VisRank ({ends}."
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
    environment.filters |= {"visible": visible, "label": label, "data_uri": _data_uri}
    return environment.get_template("report.html")
