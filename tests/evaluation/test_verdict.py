"""The verdict: which sentence a model gets for which figures, and what it should do."""

import pytest

from visrec.evaluation.results import Metrics
from visrec.evaluation.verdict import Outcome, best_rival, judge


def figures(auc: float, recall: float = 0.1, n: int = 500) -> dict[str, dict[str, float]]:
    """The AUC and Recall@20 of a model, with intervals of 0.01 on each side."""
    named = {"auc": auc, "recall@20": recall}
    return {
        name: {"mean": v, "low": v - 0.01, "high": v + 0.01, "n": n} for name, v in named.items()
    }


def paired(metrics: Metrics, model: str, noise: float = 0.02) -> dict[str, object]:
    """Differences between the model and each other one, give or take the noise."""
    return {
        f"{model} - {other}": {
            name: {"mean": d, "low": d - noise, "high": d + noise}
            for name in metrics[model]
            for d in [metrics[model][name]["mean"] - metrics[other][name]["mean"]]
        }
        for other in metrics
        if other != model
    }


BASELINES = {
    "visrank-max": figures(0.6),
    "visrank-mean": figures(0.7),
    "popularity": figures(0.65),
    "random": figures(0.5),
    "oracle": figures(0.95),
}


@pytest.mark.parametrize(
    ("own", "outcome", "sentence", "advice"),
    [
        (figures(0.9), "better", "m is better than every baseline.", "`visrec recommend`"),
        (figures(0.71), "unclear", "whether m is better than visrank-mean", "more test users"),
        (
            figures(0.6),
            "worse",
            "m is worse than visrank-mean (AUC 60.0\xa0% against 70.0\xa0%). A night "
            "publishes VisRank's lists instead.",
            "visrec train --model.name visrank --model.mode mean",
        ),
        (figures(0.9, 0.01), "mixed", "better than visrank-mean in AUC and worse in Rec", "Decide"),
        (figures(0.6, 0.3), "mixed", "better than visrank-mean in Recall@20 and worse in A", "Dec"),
        (figures(0.505), "chance", "m is no better than chance", "Do not publish"),
    ],
    ids=["better", "unclear", "worse", "mixed", "mixed-the-other-way", "chance"],
)
def test_figures_decide_the_verdict(
    own: dict[str, dict[str, float]], outcome: Outcome, sentence: str, advice: str
) -> None:
    metrics = {"m": own, **BASELINES}
    found = judge("m", metrics, paired(metrics, "m"))
    assert found.outcome == outcome
    assert sentence in found.sentence
    assert advice in " ".join(found.advice)
    assert found.rival == "visrank-mean"


def test_model_that_the_gates_may_let_through_is_not_said_to_be_replaced() -> None:
    """Its paired difference excludes 0, but the upper end of its own interval is no lower."""
    metrics = {"m": figures(0.695), **BASELINES}
    found = judge("m", metrics, paired(metrics, "m", noise=0.001))
    assert found.sentence == "m is worse than visrank-mean (AUC 69.5\xa0% against 70.0\xa0%)."
    assert "holds the lists of this model back" not in " ".join(found.advice)
    assert "visrec train --model.name visrank --model.mode mean" in found.advice[0]


@pytest.mark.parametrize("was_improving", [True, False])
def test_more_epochs_are_advised_only_after_a_best_last_epoch(was_improving: bool) -> None:
    for own in (figures(0.6), figures(0.71), figures(0.9, 0.01)):
        metrics = {"m": own, **BASELINES}
        found = judge("m", metrics, paired(metrics, "m"), was_improving=was_improving)
        assert ("train with more epochs" in " ".join(found.advice)) == was_improving


def test_model_that_lost_to_popularity_is_told_what_to_try() -> None:
    metrics = {"m": figures(0.6), **BASELINES, "popularity": figures(0.8)}
    found = judge("m", metrics, paired(metrics, "m"))
    text = " ".join(found.advice)
    assert (found.outcome, found.rival) == ("worse", "popularity")
    assert found.sentence.endswith("A night publishes a baseline's lists instead.")
    assert "`visrec train --model.name popularity`." in text
    assert "visrec evaluate --models m,cooccurrence,multivae" in text
    assert "gates.min_gain" in text


def test_baseline_with_better_first_items_makes_the_verdict_mixed_or_worse() -> None:
    metrics = {**BASELINES, "popularity": figures(0.65, 0.3)}
    for auc, outcome, sentence in (
        (0.9, "mixed", "better than visrank-mean in AUC and worse than popularity in Recall@20."),
        (0.7, "worse", "no better than visrank-mean in AUC, and worse than popularity in Recall"),
    ):
        every = {"m": figures(auc), **metrics}
        found = judge("m", every, paired(every, "m"))
        assert found.outcome == outcome
        assert sentence in found.sentence


@pytest.mark.parametrize(
    ("other", "kind"), [("ease", "ease"), ("recent-popularity", "recent_popularity")]
)
def test_better_row_that_needs_no_training_is_named_with_the_command_that_makes_it(
    other: str, kind: str
) -> None:
    metrics = {"m": figures(0.8), other: figures(0.9), **BASELINES}
    found = judge("m", metrics, paired(metrics, "m"))
    assert found.outcome == "mixed"
    assert found.sentence == (
        "m is better than VisRank and popularity, but not than every baseline."
    )
    assert f"{other} is better still." in found.details
    assert f"`visrec train --model.name {kind}`, then `visrec recommend`" in found.advice[0]


def test_row_that_may_be_as_good_is_no_baseline_that_the_model_beats() -> None:
    metrics = {"m": figures(0.8), "recent-popularity": figures(0.795), **BASELINES}
    found = judge("m", metrics, paired(metrics, "m"))
    assert (found.outcome, found.rival) == ("better", "visrank-mean")
    assert found.sentence == "m is better than VisRank and popularity."
    assert "Its lists can be published: " in found.advice[0]


def test_trained_model_with_the_name_of_a_baseline_is_a_model() -> None:
    trained = "visrank-2026-11-20"
    metrics = {"m": figures(0.8), trained: figures(0.9), **BASELINES}
    found = judge("m", metrics, paired(metrics, "m"), locations={trained: "/shop/models/v-1"})
    assert (found.outcome, found.rival) == ("better", "visrank-mean")
    assert "`visrec recommend --model /shop/models/v-1`" in found.advice[0]


@pytest.mark.parametrize("label", ["popularity2", "visrank or better", "random walk"])
def test_model_is_compared_by_its_kind_whatever_its_label(label: str) -> None:
    metrics = {label: figures(0.6), **BASELINES, "popularity": figures(0.8)}
    found = judge(label, metrics, paired(metrics, label), kind="hybrid")
    assert found.rival == "popularity"
    assert "Search for better settings with `visrec tune`" in found.advice[-1]
    metrics = {label: figures(0.6), **BASELINES, "popularity": figures(0.8)}
    found = judge(label, metrics, paired(metrics, label), kind="popularity")
    assert found.rival == "visrank-mean"
    assert "Train a model that learns" in found.advice[-1]


def test_better_model_of_the_table_is_named() -> None:
    metrics = {"m": figures(0.8), "other": figures(0.9), **BASELINES}
    found = judge("m", metrics, paired(metrics, "m"))
    assert found.outcome == "better"
    assert "other is better still." in found.details
    assert "the lists of other instead" in found.advice[0]


def test_model_that_is_as_good_as_another_is_published() -> None:
    metrics = {"m": figures(0.9), "other": figures(0.905), **BASELINES}
    assert "Its lists can be published: " in judge("m", metrics, paired(metrics, "m")).advice[0]


@pytest.mark.parametrize(
    ("model", "rival"),
    [("visrank", "popularity"), ("popularity", "visrank-mean"), ("random", "visrank-mean")],
)
def test_baseline_is_compared_with_other_kinds(model: str, rival: str) -> None:
    assert best_rival(model, {model: figures(0.9), **BASELINES}) == rival


def test_without_baselines_the_figure_stands_alone() -> None:
    metrics = {"m": figures(0.8), "oracle": figures(0.95)}
    found = judge("m", metrics, {})
    assert (found.outcome, found.rival) == ("alone", None)
    assert "no baseline" in found.sentence


@pytest.mark.parametrize("own", [{}, {"auc": {"mean": float("nan"), "n": 5}}])
def test_model_without_an_auc_is_not_measured(own: dict[str, dict[str, float]]) -> None:
    assert judge("m", {"m": own, **BASELINES}, {}).outcome == "unmeasured"
    assert judge("m", {}, {}).outcome == "unmeasured"


@pytest.mark.parametrize(("users", "caveat"), [(1, "Only one user"), (12, "Only 12 users")])
def test_few_users_are_a_caveat(users: int, caveat: str) -> None:
    metrics = {"m": figures(0.9, n=users), **BASELINES}
    assert caveat in " ".join(judge("m", metrics, paired(metrics, "m")).details)
    many = {"m": figures(0.9), **BASELINES}
    assert "Only" not in " ".join(judge("m", many, paired(many, "m")).details)


def test_difference_that_was_not_measured_decides_nothing() -> None:
    metrics = {"m": figures(0.9), **BASELINES}
    found = judge("m", metrics, {})
    assert found.outcome == "unclear"
    assert "not compared user by user" in " ".join(found.details)
