"""The bootstrap: intervals have their coverage, and differences are paired by user."""

import math

import numpy as np
import pytest

from visrec.evaluation.bootstrap import Figures, Floats, resample


def summarize(metrics: dict[str, Floats], seed: int = 0) -> Figures:
    return resample({"model": metrics}, seed).summary("model")


def test_summary_holds_mean_interval_and_count() -> None:
    random = np.random.default_rng(0)
    metrics = {"auc": random.random(80), "rr": random.random(80) ** 4}
    summary = summarize(metrics)
    assert summary.keys() == metrics.keys()
    for name, values in metrics.items():
        found = summary[name]
        assert found["n"] == 80
        assert found["mean"] == pytest.approx(values.mean())
        assert found["low"] < found["mean"] < found["high"]
        # 1.96 standard errors each side, by the central limit theorem.
        width = 2 * 1.96 * values.std() / math.sqrt(80)
        assert found["high"] - found["low"] == pytest.approx(width, rel=0.15)


def test_summary_is_reproducible_and_independent_of_other_metrics() -> None:
    values = np.random.default_rng(1).random(50)
    alone = summarize({"auc": values})
    assert summarize({"auc": values}) == alone
    beside = summarize({"rr": values[::-1], "auc": values})["auc"]
    assert beside == pytest.approx(alone["auc"], rel=1e-12)
    assert summarize({"auc": values}, seed=1) != alone


def test_interval_of_identical_users_has_no_width() -> None:
    found = summarize({"auc": np.full(10, 0.75)})["auc"]
    assert (found["low"], found["mean"], found["high"]) == pytest.approx((0.75, 0.75, 0.75))


def test_interval_covers_the_true_mean_in_about_95_percent_of_samples() -> None:
    random = np.random.default_rng(2)
    truth, repeats = 0.7, 200
    covered = 0
    for _ in range(repeats):
        found = summarize({"auc": random.beta(7, 3, 60)})["auc"]  # of mean 7 / (7 + 3)
        covered += found["low"] <= truth <= found["high"]
    # The standard error of 200 repeats is 0.015, and the percentile bootstrap of 60 users is a
    # little narrow.
    assert 0.88 <= covered / repeats <= 0.99


def test_difference_equals_the_summary_of_per_user_differences() -> None:
    random = np.random.default_rng(3)
    one, other = random.random(70), random.random(70)
    pair = resample({"one": {"auc": one}, "other": {"auc": other}}).difference("one", "other")
    alone = summarize({"auc": one - other})["auc"]
    assert {key: pair["auc"][key] for key in alone} == pytest.approx(alone, abs=1e-12)


def test_difficulty_that_users_share_cancels_in_the_difference() -> None:
    random = np.random.default_rng(4)
    hard = 10 * random.random(100)  # spreads both means, not their difference
    gain = 0.1 + 0.05 * random.normal(size=100)
    both = resample({"new": {"rr": hard + gain}, "old": {"rr": hard}})
    found = both.difference("new", "old")["rr"]
    assert found["mean"] == pytest.approx(gain.mean())
    assert found["low"] > 0
    assert found["above"] == 1
    assert both.summary("new")["rr"]["low"] < both.summary("old")["rr"]["high"]
    back = both.difference("old", "new")["rr"]
    assert (back["mean"], back["low"], back["high"]) == pytest.approx(
        (-found["mean"], -found["high"], -found["low"])
    )
    assert back["above"] == 0


def test_equal_models_have_no_difference_and_half_of_the_samples_above() -> None:
    values = {"auc": np.random.default_rng(5).random(30)}
    found = resample({"a": values, "b": dict(values)}).difference("a", "b")
    assert found == {"auc": {"mean": 0, "low": 0, "high": 0, "above": 0.5, "n": 30}}


def test_share_above_zero_is_that_of_a_normal_mean() -> None:
    # By the central limit theorem, a mean one standard error above 0 is above 0 in 0.841 of the
    # samples.
    random = np.random.default_rng(6)
    noise = random.normal(size=400)
    values = (noise - noise.mean()) / noise.std() + 1 / math.sqrt(400)
    models = {"a": {"auc": values}, "b": {"auc": np.zeros(400)}}
    # The standard error of a share of 1,000 samples is 0.012.
    assert resample(models).difference("a", "b")["auc"]["above"] == pytest.approx(0.841, abs=0.04)


def test_only_metrics_of_both_models_are_compared() -> None:
    ones = np.ones(5)
    both = resample({"a": {"auc": ones, "rr": ones}, "b": {"auc": ones}})
    assert both.difference("a", "b").keys() == {"auc"}
    assert both.difference("b", "a").keys() == {"auc"}


def test_interval_of_a_difference_covers_the_truth_in_about_95_percent_of_samples() -> None:
    random = np.random.default_rng(7)
    covered, repeats = 0, 200
    for _ in range(repeats):
        easy = random.beta(2, 2, 60)
        models = {"a": {"auc": easy + random.normal(0.02, 0.1, 60)}, "b": {"auc": easy}}
        found = resample(models).difference("a", "b")["auc"]
        covered += found["low"] <= 0.02 <= found["high"]
    assert 0.88 <= covered / repeats <= 0.99
