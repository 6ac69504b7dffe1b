"""The tables of the report: one row a model, with intervals, and the best value of each column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visrec.evaluation.report_content import Report
from visrec.evaluation.results import Figure, Metrics
from visrec.evaluation.table import (
    COLUMNS,
    COSTS,
    ORACLE,
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


@dataclass(frozen=True)
class Cell:
    """A figure, its interval, and how both are shown."""

    mean: str
    interval: str
    css_class: str = ""


@dataclass(frozen=True)
class Row:
    """One row; that of the model which the page is about is `is_own`."""

    name: str
    cells: list[Cell]
    is_own: bool = False


@dataclass(frozen=True)
class Table:
    """A table; each column has a label, and a second line for its number of users."""

    corner: str
    columns: list[tuple[str, str]]
    rows: list[Row]
    oracle: list[Row]


def main_columns(metrics: Metrics) -> list[str]:
    """The columns that the page shows at once; the others are folded away."""
    return [name for name in metric_names(metrics) if name in COLUMNS]


def more_columns(metrics: Metrics) -> list[str]:
    """All other columns."""
    return [name for name in metric_names(metrics) if name not in COLUMNS]


def metrics_table(
    report: Report, metrics: Metrics, columns: Sequence[str], *, best: bool = True
) -> Table:
    """One row per model, in the order of the AUC; one column per metric."""
    rows = {
        model: [_cell(metrics, model, name, best=best) for name in columns]
        for model in sort_models(report.metrics)
        if model in metrics
    }
    return _table("Model", [(metric_label(name), "") for name in columns], rows, report.model)


def costs_table(report: Report) -> Table:
    """One row per model, one column per cost."""
    rows = {
        model: [Cell(text, "") for text in format_cost_cells(report.costs[model])]
        for model in sort_models(report.metrics)
        if model in report.costs
    }
    return _table("Model", [(name, "") for name in COSTS.values()], rows, report.model)


def size_tables(report: Report) -> dict[str, Table]:
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
        tables[name] = _table("Model", columns, rows, report.model)
    return tables


def differences_table(paired: Metrics, columns: Sequence[str]) -> Table:
    """One row per pair of models, one column per metric."""
    rows = {
        pair: [_difference_cell(figures.get(name)) for name in columns]
        for pair, figures in paired.items()
    }
    return _table("Models", [(metric_label(name), "") for name in columns], rows)


def _table(
    corner: str, columns: list[tuple[str, str]], cells: Mapping[str, list[Cell]], own: str = ""
) -> Table:
    rows = [Row(name, cells[name], name == own) for name in cells if name != ORACLE]
    oracle = [Row(name, cells[name]) for name in cells if name == ORACLE]
    return Table(corner, columns, rows, oracle)


def _cell(metrics: Metrics, model: str, name: str, *, best: bool) -> Cell:
    figure = metrics[model].get(name)
    means = [finite_value(metrics[m].get(name)) for m in metrics if m != ORACLE]
    # The oracle knows the truth, so it does not compete; and one model alone is not the best.
    top = max((v for v in means if v is not None), default=None) if len(means) > 1 else None
    mean = finite_value(figure)
    is_best = best and model != ORACLE and mean is not None and mean == top
    return Cell(format_figure(figure), format_interval(figure, "–"), "best" if is_best else "")


def _difference_cell(figure: Figure | None) -> Cell:
    css_class = ""
    if excludes_zero(figure):
        css_class = "up" if (finite_value(figure) or 0) > 0 else "down"
    return Cell(format_difference(figure), format_interval(figure, " to "), css_class)
