"""Today and before: what has changed since the last evaluation and the last publication."""

from dataclasses import dataclass

from visrec.evaluation.report_content import Publication, Report
from visrec.evaluation.report_tables import main_columns
from visrec.evaluation.results import Figure
from visrec.evaluation.table import (
    MINUS,
    finite_value,
    format_difference,
    format_figure,
    metric_label,
    metric_names,
)
from visrec.publication.manifest import RunManifest


@dataclass(frozen=True)
class Change:
    """A row of a comparison with an earlier state."""

    name: str
    before: str
    now: str
    change: str
    css_class: str = ""


def evaluation_changes(report: Report) -> list[Change]:
    """The metrics of this evaluation, next to those of the one before; none without one."""
    before, model, rival = report.before, report.model, report.verdict.rival
    if before is None:
        return []
    rows = [
        _figure_change(metric_label(name), before.means.get(name), report.metrics[model].get(name))
        for name in main_columns(report.metrics)
    ]
    rows += [
        _figure_change(metric_label(name), before.means.get(name), figures.get(name), better=False)
        for figures in (report.lists.get(model, {}),)
        for name in metric_names({model: figures})
    ]
    if rival is not None and before.rival is not None:
        label = f"AUC of {rival}" if rival == before.rival else "AUC of the best baseline"
        auc = report.metrics[rival].get("auc")
        rows.append(_figure_change(label, before.rival_means.get("auc"), auc, better=False))
    return [
        *(row for row in rows if row is not None),
        _count_change("Test users", before.users, report.users),
        _count_change("Items", before.items, report.items),
    ]


def _figure_change(
    name: str, before: float | None, now: Figure | None, *, better: bool = True
) -> Change | None:
    """A row for a figure that both evaluations have; `better` says that more is better."""
    mean = finite_value(now)
    if mean is None or before is None:
        return None
    change = format_difference({"mean": mean - before})
    shown = css_class(before, now) if better else ""
    return Change(name, format_figure({"mean": before}), format_figure(now), change, shown)


def publication_changes(publication: Publication | None) -> list[Change]:
    """The counts of the published run, next to those of the run before; none without one."""
    if publication is None:
        return []
    now = _run_counts(publication.run)
    before = {}
    if publication.before is not None:
        before = _run_counts(publication.before)
    return [_count_change(name, before.get(name), count) for name, count in now.items()]


def _run_counts(run: RunManifest) -> dict[str, int]:
    queries = "Users" if run.kind == "user_to_item" else "Items"
    return {
        f"{queries} with a list": run.queries,
        "Fallback lists (cold users)": run.cold_users,
        "Available items": run.available,
        "Interactions read": run.interactions.rows,
        "Seconds": round(sum(run.seconds.values())),
    }


def _count_change(name: str, before: int | None, now: int) -> Change:
    if before is None:
        return Change(name, "", f"{now:,}", "")
    sign = "+" if now > before else MINUS if now < before else ""
    return Change(name, f"{before:,}", f"{now:,}", f"{sign}{abs(now - before):,}")


def css_class(before: float | None, now: Figure | None) -> str:
    """How a change is shown, where more is better: only one beyond the interval means something."""
    low, high = finite_value(now, "low"), finite_value(now, "high")
    if before is None or low is None or high is None:
        return ""
    return "up" if before < low else "down" if before > high else ""
