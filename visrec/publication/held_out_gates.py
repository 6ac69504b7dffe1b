"""Gates on the held-out set: is the model as good as VisRank and popularity? If it is not, which
of these serves in its place?

An evaluation has a row for each trained model and for each baseline: VisRank in three modes, and
popularity. The test is the same for all of them: the upper end of the 95 % interval of a metric is
compared with the mean of the best VisRank, and with that of popularity.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visrec.errors import InputError
from visrec.publication.gate import Gate, at_least, skipped
from visrec.publication.gate_context import NOT_EVALUATED, GateContext, GatesConfig
from visrec.text import format_threshold

# What the baselines are called, and how their labels in metrics.json start.
RIVALS = {"VisRank": "visrank", "popularity": "popularity"}
MIN_GAIN = "gates.min_gain"  # the key of their threshold


@dataclass(frozen=True)
class HeldOutFigures:
    """What an evaluation found, as the gates read it.

    Attributes:
        figures: mean and interval of each metric, by row and metric.
        digests: the artifact digest of each trained model, by row.
    """

    figures: Mapping[str, Mapping[str, Mapping[str, float]]]
    digests: Mapping[str, str]

    @classmethod
    def from_json(cls, evaluation: Mapping[str, Any] | None) -> "HeldOutFigures":
        """Reads metrics.json, which the evaluation job wrote; None gives no figures."""
        evaluation = evaluation or {}
        return cls(evaluation.get("models", {}), evaluation.get("digests", {}))

    def row_of(self, digest: str) -> str | None:
        """The row of a trained model; None if it was not evaluated."""
        rows = (row for row, other in self.digests.items() if other == digest)
        return next((row for row in rows if row in self.figures), None)

    def is_baseline(self, row: str, kind: str) -> bool:
        """Whether a row is a baseline whose label starts with `kind`."""
        return row.startswith(kind) and row not in self.digests

    def best(self, kind: str, metric: str) -> str | None:
        """The row of the best baseline of a kind; None if none was evaluated."""
        rows = [row for row in self.figures if self.is_baseline(row, kind)]
        return max(rows, key=lambda row: self.interval(row, metric)["mean"], default=None)

    def why_undecided(self, row: str, config: GatesConfig) -> str | None:
        """Why the figures of a row decide nothing; None if they do."""
        return why_too_few(int(self.interval(row, config.metric)["n"]), config)

    def interval(self, row: str, metric: str) -> Mapping[str, float]:
        """Mean and 95 % interval of a metric.

        Raises:
            InputError: the evaluation does not have the metric.
        """
        figures = self.figures[row]
        if metric not in figures:
            raise InputError(
                f"Found --gates.metric {metric!r}; expected one that the evaluation has: "
                f"{', '.join(sorted(figures))}."
            )
        return figures[metric]


def why_too_few(users: int, config: GatesConfig) -> str | None:
    """Why an evaluation on so many users decides nothing; None if it does."""
    if users >= config.min_lists:
        return None
    return f"{users:,} users could test it, fewer than gates.min_lists ({config.min_lists:,})"


def held_out_gates(context: GateContext, config: GatesConfig) -> list[Gate]:
    """The gates on the held-out set.

    Raises:
        InputError: the evaluation does not have the metric of the configuration.
    """
    figures = HeldOutFigures.from_json(context.evaluation)
    row = figures.row_of(context.model_digest)
    if context.choice is not None and context.choice.row is not None:
        row = context.choice.row
    return _gates(figures, row, config)


def _gates(figures: HeldOutFigures, row: str | None, config: GatesConfig) -> list[Gate]:
    return [_gate(title, kind, figures, row, config) for title, kind in RIVALS.items()]


def _gate(
    title: str, kind: str, figures: HeldOutFigures, row: str | None, config: GatesConfig
) -> Gate:
    """The gate that compares a row with the best baseline of a kind."""
    name = f"{config.metric} on the held-out set, above {title}"
    metric = config.metric
    best = figures.best(kind, metric)
    if row is None or best is None:
        found = NOT_EVALUATED if row is None else f"{title} was not evaluated"
        return _not_evaluated(name, config, found)
    is_baseline = row not in figures.digests
    if is_baseline and figures.is_baseline(row, kind):
        return _skipped(name, config, f"{title} itself serves")
    if why := figures.why_undecided(row, config):
        return _skipped(name, config, why)
    own = figures.interval(row, metric)
    mean = float(figures.interval(best, metric)["mean"])
    note = f"the model {own['mean']:.4f}, up to {own['high']:.4f}; {best} {mean:.4f}"
    # A baseline needs no gain over the other baseline, but must not be worse.
    threshold = min(config.min_gain, 0.0) if is_baseline else config.min_gain
    return at_least(name, float(own["high"]) - mean, threshold, MIN_GAIN, note)


def _not_evaluated(name: str, config: GatesConfig, why: str) -> Gate:
    if not config.require_evaluation:
        return _skipped(name, config, why)
    key = "gates.require_evaluation"
    return Gate(name, "no evaluation", "an evaluation", "failed", key, why)


def _skipped(name: str, config: GatesConfig, why: str) -> Gate:
    return skipped(name, f"at least {format_threshold(config.min_gain)}", why, MIN_GAIN)


def best_row(figures: HeldOutFigures, row: str, config: GatesConfig) -> str:
    """The first of these rows that passes its gates: the model, the best VisRank, popularity.

    Args:
        figures: the evaluation's figures.
        row: the trained model's row.
        config: metric and threshold of the gates.
    """
    candidates = (row, *_best_baselines(figures, config))
    # All three can fail only if a figure is NaN. The model's row is returned, and its gates fail.
    return next((other for other in candidates if not _failed(figures, other, config)), row)


def explain_choice(
    figures: HeldOutFigures, row: str, chosen: str, config: GatesConfig, ids: Mapping[str, str]
) -> str:
    """Which model serves and why, with the figures that decided, as a sentence without its end.

    It has one of two forms:

    - MODEL serves, because its auc on the held-out set, FIGURE, is above VISRANK and POPULARITY;
    - BASELINE serves in place of MODEL, whose auc on the held-out set, FIGURE, is below RIVAL; ...

    Args:
        figures: the evaluation's figures.
        row: the trained model's row.
        chosen: what `best_row` returned.
        config: metric and threshold of the gates.
        ids: names of the models of `row` and `chosen`.
    """
    baselines = _best_baselines(figures, config)
    means = {other: figures.interval(other, config.metric)["mean"] for other in baselines}
    own = figures.interval(row, config.metric)
    metric = f"{config.metric} on the held-out set"
    if chosen == row:
        return f"{ids[row]} serves, because its {metric}, {_explain_pass(own, means, config)}"
    failed = max(_failed(figures, row, config), key=lambda other: means[other])
    gain = f"is not {config.min_gain:g} above" if config.min_gain else "is below"
    sentence = (
        f"{ids[chosen]} serves in place of {ids[row]}, whose {metric}, {_figure(own)}, {gain} "
        f"{failed} ({means[failed]:.4f})"
    )
    # The best VisRank is named even if it does not serve, so that its figure is on record.
    named = dict.fromkeys([baselines[0], chosen])
    for other in (baseline for baseline in named if baseline != failed):
        sentence += f"; {other} has {_figure(figures.interval(other, config.metric))}"
    return sentence


def _explain_pass(own: Mapping[str, float], means: Mapping[str, float], config: GatesConfig) -> str:
    """The figure of a model that passes its gates, and how it compares with the baselines.

    Args:
        own: mean and interval of the model.
        means: the mean of each of the best baselines.
        config: the threshold of the gates.
    """
    rivals = " and ".join(f"{other} ({mean:.4f})" for other, mean in means.items())
    if config.min_gain:
        return f"{_figure(own)}, passes gates.min_gain {config.min_gain:g} compared with {rivals}"
    if own["mean"] >= max(means.values(), default=0.0):
        return f"{own['mean']:.4f}, is above {rivals}"
    return f"{_figure(own)}, reaches {rivals}"


def _best_baselines(figures: HeldOutFigures, config: GatesConfig) -> list[str]:
    """The rows of the best VisRank and of popularity, of those that were evaluated."""
    rows = [figures.best(kind, config.metric) for kind in RIVALS.values()]
    return [row for row in rows if row is not None]


def _failed(figures: HeldOutFigures, row: str, config: GatesConfig) -> list[str]:
    """The baselines against which a row fails."""
    gates = zip(RIVALS.values(), _gates(figures, row, config), strict=True)
    baselines = [
        figures.best(kind, config.metric) for kind, gate in gates if gate.outcome == "failed"
    ]
    return [other for other in baselines if other is not None]


def _figure(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.4f} and up to {interval['high']:.4f} in the 95 % interval"
