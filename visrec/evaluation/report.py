"""The page and the terminal table that tell how good a model is.

The page is one file that asks for nothing else: styles inline, pictures as small JPEGs in `data:`
URIs. What it shows was written by others, ids and titles included, so all of it is escaped.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from visrec.features.pictures import PictureError, PictureLimits, Preprocessing, decode

Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]

ORACLE = "oracle"
VISRANK = "visrank"
BASELINES = ("popularity", "random")

# The columns of the terminal's table, and the first ones of the page, in the order of reading.
COLUMNS = (
    *("auc", "rr"),
    *("recall@20", "precision@20", "ndcg@20"),
    *("recall@100", "precision@100", "ndcg@100"),
)
LABELS = {"auc": "AUC", "rr": "RR", "recall": "Recall", "precision": "Precision", "ndcg": "nDCG"}
SHORT_LABELS = {**LABELS, "recall": "R", "precision": "P"}
ABSENT = "–"

# Control characters, which a browser would drop or break lines at, as the signs made for them.
_VISIBLE = {code: 0x2400 + code for code in range(32)} | {127: 0x2421}


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
class Report:
    """All that the page says.

    Attributes:
        title: Its heading.
        metrics: `{model: {metric: {"mean", "low", "high", "n"}}}`, as `metrics.summarise` gives
            them: low and high bound the 95 % interval. Higher is better in all.
        examples: A few users.
        facts: Model id, data digest, date and the like, by name.
        notes: Paragraphs on how to read the figures.
    """

    title: str
    metrics: Metrics
    examples: Sequence[UserExample]
    facts: Mapping[str, str]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Cell:
    mean: str
    interval: str
    best: bool


@dataclass(frozen=True)
class _Row:
    model: str
    cells: list[_Cell]


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
    columns = _columns(report.metrics)
    models = _ranked(report.metrics)
    page = _template().render(
        report=report,
        columns=[_label(name, LABELS) for name in columns],
        rows=[_row(report.metrics, m, columns) for m in models if m != ORACLE],
        oracle=[_row(report.metrics, m, columns) for m in models if m == ORACLE],
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


def text_table(metrics: Metrics) -> str:
    """The figures as an aligned table for the terminal, best AUC first, the oracle last."""
    header = ["model", "AUC [low, high]", *(_label(name, SHORT_LABELS) for name in COLUMNS[1:])]
    lines = [header]
    for model in _ranked(metrics):
        auc = _number(metrics, model, "auc")
        interval = _interval(metrics, model, "auc")
        others = [_number(metrics, model, name) for name in COLUMNS[1:]]
        lines.append([_visible(model), f"{auc} [{interval}]" if interval else auc, *others])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: list[str], widths: list[int]) -> str:
    first, *rest = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    return "  ".join([first, *(cell.strip().rjust(len(cell)) for cell in rest)])


def _ranked(metrics: Metrics) -> list[str]:
    """Models by falling AUC, those without one last, and the oracle after all."""

    def place(model: str) -> tuple[bool, float]:
        auc = _value(metrics, model, "auc")
        return model == ORACLE, math.inf if auc is None else -auc

    return sorted(metrics, key=place)


def _columns(metrics: Metrics) -> list[str]:
    """Every metric that any model has: the known ones in their order, then the others."""
    present = dict.fromkeys(name for by_metric in metrics.values() for name in by_metric)
    return [name for name in COLUMNS if name in present] + [
        name for name in present if name not in COLUMNS
    ]


def _label(name: str, labels: Mapping[str, str]) -> str:
    """`recall@20` as `Recall@20`; a metric not known here under its own name."""
    kind, at, cutoff = name.partition("@")
    return labels.get(kind, kind) + at + cutoff


def _value(metrics: Metrics, model: str, name: str, part: str = "mean") -> float | None:
    """A finite figure, or None."""
    value = metrics[model].get(name, {}).get(part)
    return value if value is not None and math.isfinite(value) else None


def _number(metrics: Metrics, model: str, name: str) -> str:
    value = _value(metrics, model, name)
    return ABSENT if value is None else f"{value:.3f}"


def _interval(metrics: Metrics, model: str, name: str, between: str = ", ") -> str:
    low, high = (_value(metrics, model, name, part) for part in ("low", "high"))
    return "" if low is None or high is None else f"{low:.3f}{between}{high:.3f}"


def _row(metrics: Metrics, model: str, columns: Sequence[str]) -> _Row:
    return _Row(model, [_cell(metrics, model, name) for name in columns])


def _cell(metrics: Metrics, model: str, name: str) -> _Cell:
    rivals = [_value(metrics, m, name) for m in metrics if m != ORACLE]
    # The oracle knows the truth and competes with nobody; with one model there is no contest.
    best = max((v for v in rivals if v is not None), default=None) if len(rivals) > 1 else None
    mean = _value(metrics, model, name)
    return _Cell(
        mean=_number(metrics, model, name),
        interval=_interval(metrics, model, name, between="–"),
        best=model != ORACLE and mean is not None and mean == best,
    )


def _plot(metrics: Metrics) -> _Plot | None:
    """The AUC of each model with its interval, on an axis that holds chance, 0.5."""
    spans = []
    for model in _ranked(metrics):
        mean = _value(metrics, model, "auc")
        if mean is not None:
            low, high = (_value(metrics, model, "auc", part) for part in ("low", "high"))
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
    known = {m: v for m in metrics if (v := _value(metrics, m, "auc")) is not None}
    visrank = {m: v for m, v in known.items() if m.startswith(VISRANK)}
    learned = {m: v for m, v in known.items() if m not in (*visrank, *BASELINES, ORACLE)}
    if ORACLE not in known or not visrank or not learned:
        return None
    start = max(visrank, key=lambda m: visrank[m])
    best = max(learned, key=lambda m: learned[m])
    whole = known[ORACLE] - known[start]
    if whole <= 0:
        return None
    ends = f"{_visible(start)}, {known[start]:.3f}) to the oracle ({known[ORACLE]:.3f})"
    if known[best] <= known[start]:
        return (
            f"{_visible(best)} ({known[best]:.3f}) closes none of the distance in AUC from the "
            f"best VisRank ({ends}."
        )
    share = (known[best] - known[start]) / whole
    return (
        f"{_visible(best)} ({known[best]:.3f}) closes {share:.0%} of the distance in AUC from the "
        f"best VisRank ({ends}."
    )


def _visible(text: str) -> str:
    return text.translate(_VISIBLE)


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
    environment.filters |= {"visible": _visible, "data_uri": _data_uri}
    return environment.get_template("report.html")
