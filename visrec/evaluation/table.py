"""The figures as text: what the page and the terminal say alike, and the terminal's tables."""

import math
from collections.abc import Callable, Mapping, Sequence

from visrec.text import aligned, printable

Figure = Mapping[str, float]
Metrics = Mapping[str, Mapping[str, Figure]]

ORACLE = "oracle"
VISRANK = "visrank"
BASELINES = ("popularity", "random")

# The columns of the terminal's table, and the first ones of the page, in the order of reading.
COLUMNS = (
    *("auc", "rr"),
    *("recall@20", "precision@20", "ndcg@20"),
    *("recall@100", "precision@100", "ndcg@100"),
)
LABELS = {
    "auc": "AUC",
    "rr": "RR",
    "recall": "Recall",
    "precision": "Precision",
    "ndcg": "nDCG",
    "ndcg_tutorial": "nDCG (tutorial)",
    "coverage": "Coverage",
    "diversity": "Diversity",
    "novelty": "Novelty",
    "cold": "Cold",
}
SHORT_LABELS = {**LABELS, "recall": "R", "precision": "P"}
COSTS = {
    "parameters": "parameters",
    "train_s": "s to train",
    "score_ms": "ms to score a user",
}
ABSENT = "–"
MINUS = "−"


def text_table(metrics: Metrics, columns: int | None = None) -> str:
    """The figures as an aligned table, best AUC first, the oracle last.

    Args:
        metrics: of each model.
        columns: of the terminal; None where there is none.
    """
    rows = [(model, metrics[model], figure_text) for model in ranked(metrics)]
    return _text("model", rows, columns)


def text_differences(paired: Metrics, columns: int | None = None) -> str:
    """Paired differences for the terminal, a star where the interval excludes 0."""

    def starred(figure: Figure | None) -> str:
        return difference_text(figure) + ("*" if excludes_zero(figure) else " ")

    rows = [(pair, figures, starred) for pair, figures in paired.items()]
    return _text("difference", rows, columns) + "\n* the 95 % interval excludes 0"


def _text(
    corner: str,
    rows: Sequence[tuple[str, Mapping[str, Figure], Callable[[Figure | None], str]]],
    columns: int | None,
) -> str:
    first, *others = (label(name, SHORT_LABELS) for name in COLUMNS)
    lines = [[corner, f"{first} [low, high]", *others]]
    for name, figures, text in rows:
        cells = [text(figures.get(column)) for column in COLUMNS]
        interval = interval_text(figures.get(COLUMNS[0]), ", ")
        head = f"{cells[0]} [{interval}]" if interval else cells[0]
        lines.append([printable(name), head, *cells[1:]])
    return aligned(lines, columns)


def text_costs(costs: Mapping[str, Mapping[str, float | None]], columns: int | None = None) -> str:
    """What each model costs, as an aligned table for a terminal of so many columns."""
    rows = [["cost", *COSTS.values()]]
    rows += [[printable(model), *cost_texts(found)] for model, found in costs.items()]
    return aligned(rows, columns)


def cost_texts(found: Mapping[str, float | None]) -> list[str]:
    """A model's costs in the order of `COSTS`."""
    return [cost_text(found.get(name)) for name in COSTS]


def cost_text(amount: float | None) -> str:
    if amount is None:
        return ABSENT
    return f"{amount:,.0f}" if amount >= 100 or amount == round(amount) else f"{amount:.3g}"


def ranked(metrics: Metrics) -> list[str]:
    """Models by falling AUC, those without one last, and the oracle after all."""

    def place(model: str) -> tuple[bool, float]:
        auc = value(metrics[model].get("auc"))
        return model == ORACLE, math.inf if auc is None else -auc

    return sorted(metrics, key=place)


def columns_of(metrics: Metrics) -> list[str]:
    """Every metric that any model has: the known ones in their order, then the others."""
    present = dict.fromkeys(name for by_metric in metrics.values() for name in by_metric)
    return [name for name in COLUMNS if name in present] + [
        name for name in present if name not in COLUMNS
    ]


def label(name: str, labels: Mapping[str, str] = LABELS) -> str:
    """`recall@20` as `Recall@20`; a metric not known here under its own name."""
    kind, at, cutoff = name.partition("@")
    return labels.get(kind, kind) + at + cutoff


def value(figure: Figure | None, part: str = "mean") -> float | None:
    """A finite number of a figure, or None."""
    found = (figure or {}).get(part)
    return found if found is not None and math.isfinite(found) else None


def figure_text(figure: Figure | None) -> str:
    mean = value(figure)
    return ABSENT if mean is None else _decimal(mean)


def difference_text(figure: Figure | None) -> str:
    """The same with a sign."""
    mean = value(figure)
    if mean is None:
        return ABSENT
    return _decimal(mean) if _decimal(mean).startswith(MINUS) else f"+{_decimal(mean)}"


def interval_text(figure: Figure | None, between: str) -> str:
    low, high = value(figure, "low"), value(figure, "high")
    return "" if low is None or high is None else f"{_decimal(low)}{between}{_decimal(high)}"


def excludes_zero(figure: Figure | None) -> bool:
    low, high = value(figure, "low"), value(figure, "high")
    return low is not None and high is not None and (low > 0 or high < 0)


def _decimal(number: float) -> str:
    """Three digits, or as many as it takes for a bound beside zero not to be shown as zero."""
    digits = next((n for n in (3, 4, 5, 6) if abs(number) >= 10**-n), 3)
    text = f"{number:.{digits}f}" if round(number, digits) else "0.000"
    return text.replace("-", MINUS)
