"""The verdict of an evaluation: is the model good enough to publish, and what should be done?

The model is compared with VisRank, which lists what looks like the profile, and with popularity, as
the gates compare it. A model that is better than both is also compared with the other rows that
need no training of their own. Two models differ if the 95 % interval of their paired difference
excludes 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from visrec.evaluation.baselines import UNTRAINED
from visrec.evaluation.results import Figure, Metrics
from visrec.evaluation.table import (
    ORACLE,
    RANDOM,
    RIVALS,
    VISRANK,
    finite_value,
    format_difference,
    format_interval,
    format_percent,
    metric_label,
)

Outcome = Literal["better", "mixed", "unclear", "worse", "chance", "alone", "unmeasured"]
TOP = "recall@20"  # what users see first
_FEW_USERS = 30  # of fewer, figures vary by several points from one evaluation to the next


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a model is good, for people.

    Attributes:
        outcome: `better` than VisRank and popularity, and worse than no baseline; `mixed`: better
            in one metric and worse in another, or better than these two and worse than another
            baseline; `unclear`: the difference may be chance; `worse` than a baseline; no better
            than `chance`; `alone`: there is no baseline to compare with; `unmeasured`: no AUC.
        sentence: the verdict.
        details: sentences that support or limit it.
        advice: what to do now, a sentence each.
        rival: the VisRank or popularity with the highest AUC; None without any.
    """

    outcome: Outcome
    sentence: str
    details: Sequence[str] = ()
    advice: Sequence[str] = ()
    rival: str | None = None


def judge(
    model: str,
    metrics: Metrics,
    paired: Metrics,
    *,
    kind: str | None = None,
    locations: Mapping[str, str] = MappingProxyType({}),
    was_improving: bool = False,
) -> Verdict:
    """The verdict on one model.

    Args:
        model: its label.
        metrics: the metrics of all models.
        paired: differences `"a - b"`, of which those that begin with the model are used.
        kind: the kind of model that it is; by default its label, as in a table of one model.
        locations: the directories of trained models, by label.
        was_improving: whether its last epoch was its best one.
    """
    auc = metrics.get(model, {}).get("auc")
    mean = finite_value(auc)
    if auc is None or mean is None:
        return Verdict(
            outcome="unmeasured",
            sentence=f"There is no AUC of {model}, so nothing says how good it is.",
            advice=("Evaluate a model whose users have held-out items.",),
        )
    kind = kind or UNTRAINED.get(model, model)
    rival = best_rival(kind, metrics)
    low = finite_value(auc, "low")
    if (mean if low is None else low) <= 0.5:
        return _chance(model, mean, rival, _caveats(auc))
    if rival is None:
        return Verdict(
            outcome="alone",
            sentence=f"{model} {_ranks(mean)}; there is no baseline to compare it with.",
            details=_caveats(auc),
        )
    return _compare(model, kind, rival, metrics, paired, locations, _tune(kind, was_improving))


def best_rival(kind: str, metrics: Metrics) -> str | None:
    """Of VisRank and popularity, the row of another kind than the model's with the highest AUC."""
    aucs = {
        label: auc
        for label in _rivals(kind, metrics)
        if (auc := finite_value(metrics[label].get("auc"))) is not None
    }
    return max(aucs, key=lambda label: aucs[label], default=None)


def _rivals(kind: str, metrics: Metrics) -> list[str]:
    """The rows of VisRank and popularity, but not of the model's own kind."""
    return [label for label in metrics if UNTRAINED.get(label) in {*RIVALS} - {kind}]


def _compare(
    model: str,
    kind: str,
    rival: str,
    metrics: Metrics,
    paired: Metrics,
    locations: Mapping[str, str],
    tune: str,
) -> Verdict:
    mean, rival_mean = (finite_value(metrics[name]["auc"]) or 0.0 for name in (model, rival))
    difference = paired.get(f"{model} - {rival}", {})
    by_auc, by_top = (_sign(difference.get(name)) for name in ("auc", TOP))
    both = f"It {_ranks(mean)}, and {rival} above {format_percent(rival_mean)}."
    caveats = _caveats(metrics[model]["auc"])
    loses_top = [
        label
        for label in _rivals(kind, metrics)
        if _sign(paired.get(f"{model} - {label}", {}).get(TOP)) < 0
    ]
    if loses_top and by_auc > 0:
        than = "" if rival in loses_top else f" than {loses_top[0]}"
        sentence = f"{model} is better than {rival} in AUC and worse{than} in {metric_label(TOP)}."
        return _mixed(tune, rival, sentence, [both, *caveats])
    if by_auc < 0 < by_top:
        sentence = f"{model} is better than {rival} in {metric_label(TOP)} and worse in AUC."
        return _mixed(tune, rival, sentence, [both, *caveats])
    if by_auc < 0:
        return _worse(model, rival, metrics, [both, *caveats], tune)
    if by_auc > 0:
        return _better(model, rival, metrics, paired, [both, *caveats], locations)
    details = [f"{both} {_may_be_chance(difference.get('auc'))}", *caveats]
    return _undecided(model, rival, loses_top, details, tune)


def _worse(model: str, rival: str, metrics: Metrics, details: Sequence[str], tune: str) -> Verdict:
    """The verdict on a model with a lower AUC than the best baseline.

    The gates are wider than the paired test: they compare the upper end of the model's own interval
    with the baseline.
    """
    own, other = metrics[model]["auc"], finite_value(metrics[rival]["auc"]) or 0.0
    mean, high = (finite_value(own, name) or 0.0 for name in ("mean", "high"))
    figures = f"AUC {format_percent(mean)} against {format_percent(other)}"
    sentence = f"{model} is worse than {rival} ({figures})."
    held_back = high < other
    if held_back:
        whose = "VisRank's" if UNTRAINED[rival] == VISRANK else "a baseline's"
        sentence += f" A night publishes {whose} lists instead."
    return Verdict(
        outcome="worse",
        sentence=sentence,
        details=details,
        advice=(*_instead(rival, model, held_back=held_back), tune),
        rival=rival,
    )


def _undecided(
    model: str, rival: str, loses_top: Sequence[str], details: Sequence[str], tune: str
) -> Verdict:
    """The verdict on a model whose AUC may be that of the best baseline."""
    if loses_top:
        top = metric_label(TOP)
        return Verdict(
            outcome="worse",
            sentence=f"{model} is no better than {rival} in AUC, and worse than {loses_top[0]} in "
            f"{top}.",
            details=details,
            advice=(*_instead(loses_top[0], model, held_back=False), tune),
            rival=rival,
        )
    return Verdict(
        outcome="unclear",
        sentence=f"It is not clear whether {model} is better than {rival}.",
        details=details,
        advice=(
            f"Publishing is safe: as far as this evaluation can tell, the lists are no worse than "
            f"those of {rival}.",
            f"To find out, evaluate again with more test users. {tune}",
        ),
        rival=rival,
    )


def _mixed(tune: str, rival: str, sentence: str, details: Sequence[str]) -> Verdict:
    return Verdict(
        outcome="mixed",
        sentence=sentence,
        details=details,
        advice=(
            f"Decide by what users see: {metric_label(TOP)} counts the first 20 items alone, AUC "
            "the whole list.",
            tune,
        ),
        rival=rival,
    )


def _better(
    model: str,
    rival: str,
    metrics: Metrics,
    paired: Metrics,
    details: Sequence[str],
    locations: Mapping[str, str],
) -> Verdict:
    """The verdict on a model that beats the best rival; another row may be better still."""
    signs = {
        other: _sign(paired.get(f"{model} - {other}", {}).get("auc"))
        for other in metrics
        if other not in (model, ORACLE, RANDOM) and UNTRAINED.get(other) not in RIVALS
    }
    advice: tuple[str, ...] = (
        "Its lists can be published: the gates of `visrec recommend` and of a night read this "
        "evaluation.",
    )
    stronger = [other for other, sign in signs.items() if sign < 0]
    if stronger:
        best = max(stronger, key=lambda m: finite_value(metrics[m].get("auc")) or 0.0)
        details = [*details, f"{best} is better still."]
        command = f"`visrec recommend --model {locations.get(best, best)}`"
        if best in UNTRAINED:
            command = f"`visrec train --model.name {UNTRAINED[best]}`, then `visrec recommend`"
        advice = (f"Publish the lists of {best} instead: {command}.",)
    is_worse = any(other in UNTRAINED for other in stronger)
    beats_all = all(sign > 0 for other, sign in signs.items() if other in UNTRAINED)
    than = "every baseline" if beats_all else "VisRank and popularity"
    but = ", but not than every baseline" if is_worse else ""
    return Verdict(
        outcome="mixed" if is_worse else "better",
        sentence=f"{model} is better than {than}{but}.",
        details=details,
        advice=advice,
        rival=rival,
    )


def _chance(model: str, mean: float, rival: str | None, caveats: Sequence[str]) -> Verdict:
    return Verdict(
        outcome="chance",
        sentence=f"{model} is no better than chance.",
        details=[f"It {_ranks(mean)}; chance is {format_percent(0.5)}.", *caveats],
        advice=(
            "Do not publish it. Look at the users in the report: do the pictures belong to the "
            "items that they took?",
            "Check which rows count (the report's data facts), and train on more interactions.",
        ),
        rival=rival,
    )


def _instead(rival: str, model: str, *, held_back: bool) -> tuple[str, ...]:
    """What to publish while the baseline wins; by AUC, a gate holds the model back."""
    gate = (
        "`visrec recommend` holds the lists of this model back (gates.min_gain), and `visrec "
        "nightly` serves the best baseline in its place. "
    )
    name = UNTRAINED[rival]
    mode = rival.removeprefix(name).removeprefix("-")
    flags = f"--model.name {name}" + (f" --model.mode {mode}" if mode else "")
    publish = f"{gate if held_back else ''}To publish the baseline by hand: `visrec train {flags}`."
    if name == "popularity":
        return (
            publish,
            "What everybody takes says more here than pictures do. Compare models that learn from "
            f"who took what: `visrec evaluate --models {model},cooccurrence,multivae`.",
        )
    return (publish,)


def _tune(kind: str, was_improving: bool) -> str:
    if kind in (*RIVALS, RANDOM):
        return "Train a model that learns: `visrec train`."
    more = ", or train with more epochs" if was_improving else ""
    return f"Search for better settings with `visrec tune`{more}."


def _caveats(auc: Figure) -> list[str]:
    users = finite_value(auc, "n")
    if users is None or users >= _FEW_USERS:
        return []
    who = "Only one user" if users == 1 else f"Only {users:.0f} users"
    return [f"{who} could be tested, so expect these figures to vary."]


def _may_be_chance(difference: Figure | None) -> str:
    if difference is None:
        return "The two were not compared user by user."
    return (
        f"Their difference in AUC, {format_difference(difference)} (95 % interval "
        f"{format_interval(difference, ' to ')}), may be chance."
    )


def _ranks(auc: float) -> str:
    return f"ranks what a user takes next above {format_percent(auc)} of the other items"


def _sign(difference: Figure | None) -> int:
    """1 or -1 if the interval of a difference excludes 0, else 0."""
    low, high = finite_value(difference, "low"), finite_value(difference, "high")
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0
