"""Figures as text, for the report and the terminal; and the terminal's tables."""

import math
from collections.abc import Callable, Mapping, Sequence

from visrec.evaluation.results import Figure, Metrics
from visrec.text import format_table, printable

ORACLE = "oracle"
VISRANK, POPULARITY, RANDOM = "visrank", "popularity", "random"
RIVALS = (VISRANK, POPULARITY)  # kinds of baselines that gates compare a model with

# The columns of the terminal's table, and the first columns of the report's.
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


def format_metrics(metrics: Metrics, terminal_columns: int | None = None) -> str:
    """The metrics as an aligned table, best AUC first, the oracle last.

    Args:
        metrics: the metrics of each model.
        terminal_columns: width of the terminal; None without a terminal.
    """
    rows = [(model, metrics[model], format_figure) for model in sort_models(metrics)]
    return _text("model", rows, terminal_columns)


def format_differences(paired: Metrics, terminal_columns: int | None = None) -> str:
    """Paired differences as an aligned table, with a star where the interval excludes 0."""

    def starred(figure: Figure | None) -> str:
        return format_difference(figure) + ("*" if excludes_zero(figure) else " ")

    rows = [(pair, figures, starred) for pair, figures in paired.items()]
    return _text("difference", rows, terminal_columns) + "\n* the 95 % interval excludes 0"


def _text(
    corner: str,
    rows: Sequence[tuple[str, Mapping[str, Figure], Callable[[Figure | None], str]]],
    terminal_columns: int | None,
) -> str:
    first, *others = (metric_label(name, SHORT_LABELS) for name in COLUMNS)
    lines = [[corner, f"{first} [low, high]", *others]]
    for name, figures, text in rows:
        cells = [text(figures.get(column)) for column in COLUMNS]
        interval = format_interval(figures.get(COLUMNS[0]), ", ")
        head = f"{cells[0]} [{interval}]" if interval else cells[0]
        lines.append([printable(name), head, *cells[1:]])
    return format_table(lines, terminal_columns)


def format_costs(
    costs: Mapping[str, Mapping[str, float | None]], terminal_columns: int | None = None
) -> str:
    """What each model costs, as an aligned table."""
    rows = [["cost", *COSTS.values()]]
    rows += [[printable(model), *format_cost_cells(cost)] for model, cost in costs.items()]
    return format_table(rows, terminal_columns)


def format_cost_cells(cost: Mapping[str, float | None]) -> list[str]:
    """One model's costs, in the order of `COSTS`."""
    return [format_cost(cost.get(name)) for name in COSTS]


def format_cost(amount: float | None) -> str:
    if amount is None:
        return ABSENT
    return f"{amount:,.0f}" if amount >= 100 or amount == round(amount) else f"{amount:.3g}"


def sort_models(metrics: Metrics) -> list[str]:
    """Models by decreasing AUC; then those without an AUC; the oracle last."""

    def sort_key(model: str) -> tuple[bool, float]:
        auc = finite_value(metrics[model].get("auc"))
        return model == ORACLE, math.inf if auc is None else -auc

    return sorted(metrics, key=sort_key)


def metric_names(metrics: Metrics) -> list[str]:
    """Every metric that any model has: those of `COLUMNS` in their order, then the others."""
    present = dict.fromkeys(name for by_metric in metrics.values() for name in by_metric)
    return [name for name in COLUMNS if name in present] + [
        name for name in present if name not in COLUMNS
    ]


def metric_label(name: str, labels: Mapping[str, str] = LABELS) -> str:
    """The label of a metric: `Recall@20` for `recall@20`. An unknown metric keeps its name."""
    kind, at, cutoff = name.partition("@")
    return labels.get(kind, kind) + at + cutoff


def finite_value(figure: Figure | None, part: str = "mean") -> float | None:
    """One number of a figure; None if it is missing, NaN or infinite."""
    found = (figure or {}).get(part)
    return found if found is not None and math.isfinite(found) else None


def format_figure(figure: Figure | None) -> str:
    mean = finite_value(figure)
    return ABSENT if mean is None else _decimal(mean)


def format_difference(figure: Figure | None) -> str:
    """The mean of a difference, with its sign."""
    mean = finite_value(figure)
    if mean is None:
        return ABSENT
    return _decimal(mean) if _decimal(mean).startswith(MINUS) else f"+{_decimal(mean)}"


def format_percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def format_interval(figure: Figure | None, between: str) -> str:
    low, high = finite_value(figure, "low"), finite_value(figure, "high")
    return "" if low is None or high is None else f"{_decimal(low)}{between}{_decimal(high)}"


def excludes_zero(figure: Figure | None) -> bool:
    low, high = finite_value(figure, "low"), finite_value(figure, "high")
    return low is not None and high is not None and (low > 0 or high < 0)


def _decimal(number: float) -> str:
    """Three decimals, or up to six, so that a bound close to 0 is not shown as 0."""
    digits = next((n for n in (3, 4, 5, 6) if abs(number) >= 10**-n), 3)
    text = f"{number:.{digits}f}" if round(number, digits) else "0.000"
    return text.replace("-", MINUS)
