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
    tune = _tune(kind, was_improving)
    return _Comparison(model, kind, rival, metrics, paired, locations, tune).verdict()


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


@dataclass(frozen=True)
class _Comparison:
    """A model beside the baselines.

    Attributes:
        model: its label.
        kind: the kind of model that it is.
        rival: see `Verdict`.
        metrics: the metrics of all models.
        paired: the differences between models.
        locations: the directories of trained models, by label.
        tune: what may make the model better, a sentence.
    """

    model: str
    kind: str
    rival: str
    metrics: Metrics
    paired: Metrics
    locations: Mapping[str, str]
    tune: str

    def verdict(self) -> Verdict:
        model, rival = self.model, self.rival
        by_auc, by_top = self._sign(rival, "auc"), self._sign(rival, TOP)
        both = (
            f"It {_ranks(self._auc(model))}, and {rival} above {format_percent(self._auc(rival))}."
        )
        caveats = _caveats(self.metrics[model]["auc"])
        loses_top = [
            label for label in _rivals(self.kind, self.metrics) if self._sign(label, TOP) < 0
        ]
        if loses_top and by_auc > 0:
            than = "" if rival in loses_top else f" than {loses_top[0]}"
            top = metric_label(TOP)
            sentence = f"{model} is better than {rival} in AUC and worse{than} in {top}."
            return self._mixed(sentence, [both, *caveats])
        if by_auc < 0 < by_top:
            sentence = f"{model} is better than {rival} in {metric_label(TOP)} and worse in AUC."
            return self._mixed(sentence, [both, *caveats])
        if by_auc < 0:
            return self._worse([both, *caveats])
        if by_auc > 0:
            return self._better([both, *caveats])
        chance = _may_be_chance(self._difference(rival).get("auc"))
        return self._undecided(loses_top, [f"{both} {chance}", *caveats])

    def _auc(self, label: str) -> float:
        return finite_value(self.metrics[label].get("auc")) or 0.0

    def _difference(self, other: str) -> Mapping[str, Figure]:
        """By metric, the model minus another one; empty if they were not compared."""
        return self.paired.get(f"{self.model} - {other}", {})

    def _sign(self, other: str, metric: str) -> int:
        """1 if the model is better than another one, -1 if it is worse, 0 if that may be chance."""
        return _sign(self._difference(other).get(metric))

    def _worse(self, details: Sequence[str]) -> Verdict:
        """The verdict on a model with a lower AUC than the best baseline.

        The gates are wider than the paired test: they compare the upper end of the model's own
        interval with the baseline.
        """
        model, rival = self.model, self.rival
        mean, other = format_percent(self._auc(model)), format_percent(self._auc(rival))
        sentence = f"{model} is worse than {rival} (AUC {mean} against {other})."
        high = finite_value(self.metrics[model]["auc"], "high") or 0.0
        held_back = high < self._auc(rival)
        if held_back:
            whose = "VisRank's" if UNTRAINED[rival] == VISRANK else "a baseline's"
            sentence += f" A night publishes {whose} lists instead."
        return Verdict(
            outcome="worse",
            sentence=sentence,
            details=details,
            advice=(*_instead(rival, model, held_back=held_back), self.tune),
            rival=rival,
        )

    def _undecided(self, loses_top: Sequence[str], details: Sequence[str]) -> Verdict:
        """The verdict on a model whose AUC may be that of the best baseline."""
        model, rival = self.model, self.rival
        if loses_top:
            top = metric_label(TOP)
            return Verdict(
                outcome="worse",
                sentence=f"{model} is no better than {rival} in AUC, and worse than "
                f"{loses_top[0]} in {top}.",
                details=details,
                advice=(*_instead(loses_top[0], model, held_back=False), self.tune),
                rival=rival,
            )
        return Verdict(
            outcome="unclear",
            sentence=f"It is not clear whether {model} is better than {rival}.",
            details=details,
            advice=(
                f"Publishing is safe: as far as this evaluation can tell, the lists are no worse "
                f"than those of {rival}.",
                f"To find out, evaluate again with more test users. {self.tune}",
            ),
            rival=rival,
        )

    def _mixed(self, sentence: str, details: Sequence[str]) -> Verdict:
        return Verdict(
            outcome="mixed",
            sentence=sentence,
            details=details,
            advice=(
                f"Decide by what users see: {metric_label(TOP)} counts the first 20 items alone, "
                "AUC the whole list.",
                self.tune,
            ),
            rival=self.rival,
        )

    def _better(self, details: Sequence[str]) -> Verdict:
        """The verdict on a model that beats the best rival; another row may be better still."""
        model = self.model
        signs = {
            other: self._sign(other, "auc")
            for other in self.metrics
            if other not in (model, ORACLE, RANDOM) and UNTRAINED.get(other) not in RIVALS
        }
        advice: tuple[str, ...] = (
            "Its lists can be published: the gates of `visrec recommend` and of a night read this "
            "evaluation.",
        )
        stronger = [other for other, sign in signs.items() if sign < 0]
        if stronger:
            best = max(stronger, key=self._auc)
            details = [*details, f"{best} is better still."]
            command = f"`visrec recommend --model {self.locations.get(best, best)}`"
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
            rival=self.rival,
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
