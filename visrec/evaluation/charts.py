"""Charts of the report as coordinates: the template draws them, so that they follow the theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from visrec.evaluation.report_content import SweepSummary, SweepTrial, TrainingCurve
from visrec.evaluation.results import Metrics
from visrec.evaluation.table import finite_value, sort_models


@dataclass(frozen=True)
class Bar:
    """One model of the interval plot; positions are in percent of the plot's width."""

    model: str
    mean: str
    low_at: float
    mean_at: float
    high_at: float


@dataclass(frozen=True)
class IntervalPlot:
    """Means with their intervals on one axis."""

    bars: list[Bar]
    ticks: list[tuple[float, str]]


def plot_auc(metrics: Metrics) -> IntervalPlot | None:
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
    return IntervalPlot(
        bars=[
            Bar(m, f"{mean:.3f}", position(low), position(mean), position(high))
            for m, mean, low, high in spans
        ],
        ticks=[(position(tenth / 10), f"{tenth / 10:.1f}") for tenth in tenths],
    )


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Values in the order of epochs or trials.

    Attributes:
        caption: what is shown.
        points: (x, y, whether it is the chosen one), in percent of width and height.
        is_line: whether a line joins them.
        low: label of the lowest value.
        high: label of the highest value.
        first: label of the left end.
        last: label of the right end.
    """

    caption: str
    points: list[tuple[float, float, bool]]
    is_line: bool
    low: str
    high: str
    first: str
    last: str


def _chart(
    caption: str,
    values: Sequence[tuple[int, float]],
    chosen: int | None,
    unit: str,
    *,
    is_line: bool,
) -> Chart | None:
    """A chart of finite values by number; None for fewer than two."""
    values = [(n, value) for n, value in values if math.isfinite(value)]
    if len(values) < 2:
        return None
    low, high = min(v for _, v in values), max(v for _, v in values)
    first, last = values[0][0], values[-1][0]
    return Chart(
        caption=caption,
        points=[
            (
                round(2 + 96 * (n - first) / (last - first), 2),
                round(94 - 88 * ((value - low) / (high - low) if high > low else 0.5), 2),
                n == chosen,
            )
            for n, value in values
        ],
        is_line=is_line,
        low=f"{low:.3f}",
        high=f"{high:.3f}",
        first=f"{unit} {first}",
        last=f"{unit} {last}",
    )


@dataclass(frozen=True, kw_only=True)
class CurveView:
    """How a model was trained, as the page shows it."""

    model: str
    sentence: str
    plots: list[Chart]


def plot_curve(curve: TrainingCurve) -> CurveView | None:
    """A training curve; None for a model without epochs."""
    if not curve.loss and not curve.val_auc:
        return None
    auc = list(enumerate(curve.val_auc, 1))
    loss = list(enumerate(curve.loss, 1))
    plots = (
        _chart("Validation AUC by epoch", auc, curve.best_epoch, "epoch", is_line=True),
        _chart("Training loss by epoch", loss, curve.best_epoch, "epoch", is_line=True),
    )
    epochs = max(len(curve.loss), len(curve.val_auc))
    sentence = f"Trained for {epochs} epoch{'s' if epochs != 1 else ''}."
    best = curve.best_epoch
    if best is not None and best <= len(curve.val_auc) and math.isfinite(curve.val_auc[best - 1]):
        sentence = (
            f"Trained for {epochs} epoch{'s' if epochs != 1 else ''}; epoch {best} was the best, "
            f"with a validation AUC of {curve.val_auc[best - 1]:.4f}."
        )
    return CurveView(
        model=curve.model, sentence=sentence, plots=[plot for plot in plots if plot is not None]
    )


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """A sweep as the page shows it.

    Attributes:
        name: the name of the sweep.
        sentence: what came out.
        keys: the searched keys.
        best: the best trials.
        plot: the AUC of all trials; None for fewer than two.
    """

    name: str
    sentence: str
    keys: list[str]
    best: list[SweepTrial]
    plot: Chart | None


_SHOWN_TRIALS = 5


def plot_sweep(sweep: SweepSummary) -> SweepView:
    """A sweep: all its trials as a chart, and the best of them."""
    ranked = sorted(
        (trial for trial in sweep.trials if trial.auc is not None),
        key=lambda trial: (-(trial.auc or 0.0), trial.number),
    )
    count = f"{len(sweep.trials)} trial{'s' if len(sweep.trials) != 1 else ''}"
    sentence = f"{count}; none of them has a validation AUC."
    if ranked:
        default = next((t.auc for t in ranked if t.number == 0), None)
        comparison = "" if default is None else f", and the default configuration {default:.4f}"
        sentence = f"{count}; the best one, trial {ranked[0].number}, has a validation AUC of "
        sentence += f"{ranked[0].auc:.4f}{comparison}."
    return SweepView(
        name=sweep.name,
        sentence=sentence,
        keys=list(dict.fromkeys(key for trial in sweep.trials for key in trial.values)),
        best=ranked[:_SHOWN_TRIALS],
        plot=_chart(
            "Best validation AUC by trial",
            [(t.number, math.nan if t.auc is None else t.auc) for t in sweep.trials],
            ranked[0].number if ranked else None,
            "trial",
            is_line=False,
        ),
    )
