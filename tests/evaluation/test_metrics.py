"""Metrics against scikit-learn and against loops over their definitions."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from tests.scoring import TableScorer
from tests.training import ragged
from visrec.evaluation.metrics import per_user, summarise
from visrec.evaluation.ranking import stand

CUTOFFS = (1, 3, 10, 50)
USERS, ITEMS = 60, 45


class Users:
    """Random scores of few or many levels, profiles and held-out items of all sizes."""

    def __init__(self, levels: int) -> None:
        random = np.random.default_rng(levels)
        self.score_BN = random.integers(0, levels, (USERS, ITEMS)).astype(np.float32)
        if levels > ITEMS:  # no ties
            self.score_BN = random.permuted(np.tile(np.arange(ITEMS), (USERS, 1)), axis=1).astype(
                np.float32
            )
        self.profiles, self.targets = [], []
        for _ in range(USERS):
            order = random.permutation(ITEMS).tolist()
            known, held = int(random.integers(0, 12)), int(random.integers(1, 25))
            self.profiles.append(order[:known])
            self.targets.append(order[known : known + held])

    def metrics(self) -> dict[str, npt.NDArray[np.float64]]:
        standing = stand(
            TableScorer(self.score_BN),
            ragged(self.profiles),
            np.arange(USERS),
            ragged(self.targets),
        )
        return per_user(standing, CUTOFFS)

    def ranked(self, user: int) -> list[int]:
        """Items outside the profile, best first, ties by row."""
        rows = [row for row in range(ITEMS) if row not in self.profiles[user]]
        return sorted(rows, key=lambda row: (-self.score_BN[user, row], row))


@pytest.fixture(params=[1, 3, 12, 1000], ids=lambda levels: f"{levels}-levels")
def users(request: pytest.FixtureRequest) -> Users:
    return Users(request.param)


def test_auc_is_scikit_learns(users: Users) -> None:
    expected = []
    for user in range(USERS):
        rows = users.ranked(user)
        held = [row in users.targets[user] for row in rows]
        expected.append(roc_auc_score(held, users.score_BN[user, rows]))
    np.testing.assert_allclose(users.metrics()["auc"], expected, rtol=1e-12)


def test_auc_without_ties_is_the_formula_over_ranks() -> None:
    users = Users(1000)
    expected = []
    for user in range(USERS):
        ranked = users.ranked(user)
        ranks = sorted(ranked.index(row) for row in users.targets[user])
        m, n = len(ranked), len(ranks)
        terms = [((m - (r + 1)) - (n - k)) / (m - n) for k, r in enumerate(ranks, start=1)]
        expected.append(sum(terms) / n)
    np.testing.assert_allclose(users.metrics()["auc"], expected, rtol=1e-12)


def test_reciprocal_rank_is_of_the_first_hit(users: Users) -> None:
    expected = []
    for user in range(USERS):
        ranked = users.ranked(user)
        first = next(r for r, row in enumerate(ranked) if row in users.targets[user])
        expected.append(1 / (first + 1))
    np.testing.assert_allclose(users.metrics()["rr"], expected)


@pytest.mark.parametrize("k", CUTOFFS)
def test_precision_and_recall_count_hits(users: Users, k: int) -> None:
    metrics = users.metrics()
    for user in range(USERS):
        hits = len(set(users.ranked(user)[:k]) & set(users.targets[user]))
        assert metrics[f"precision@{k}"][user] == pytest.approx(hits / k)
        assert metrics[f"recall@{k}"][user] == pytest.approx(hits / len(users.targets[user]))


@pytest.mark.parametrize("k", CUTOFFS)
def test_ndcg_divides_by_the_best_that_k_places_can_hold(users: Users, k: int) -> None:
    metrics = users.metrics()
    for user in range(USERS):
        held = users.targets[user]
        dcg = sum(
            1 / math.log2(place + 2)
            for place, row in enumerate(users.ranked(user)[:k])
            if row in held
        )
        best = sum(1 / math.log2(place + 2) for place in range(min(len(held), k)))
        assert metrics[f"ndcg@{k}"][user] == pytest.approx(dcg / best)


@pytest.mark.parametrize("k", CUTOFFS)
def test_ndcg_without_ties_is_scikit_learns(k: int) -> None:
    users = Users(1000)
    for user, found in enumerate(users.metrics()[f"ndcg@{k}"]):
        rows = users.ranked(user)
        held = [[float(row in users.targets[user]) for row in rows]]
        assert found == pytest.approx(ndcg_score(held, users.score_BN[user, rows][None], k=k))


def test_with_nothing_else_to_rank_every_order_is_right() -> None:
    standing = stand(
        TableScorer(np.array([[3, 1, 2]], np.float32)),
        ragged([[1]]),
        np.array([0]),
        ragged([[0, 2]]),
    )
    metrics = per_user(standing, (2,))
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "auc": [1],
        "rr": [1],
        "precision@2": [1],
        "recall@2": [1],
        "ndcg@2": [1],
    }


def test_summary_holds_mean_interval_and_count() -> None:
    random = np.random.default_rng(0)
    metrics = {"auc": random.random(80), "rr": random.random(80) ** 4}
    summary = summarise(metrics)
    assert summary.keys() == metrics.keys()
    for name, values in metrics.items():
        found = summary[name]
        assert found["n"] == 80
        assert found["mean"] == pytest.approx(values.mean())
        assert found["low"] < found["mean"] < found["high"]
        # 1.96 standard errors each side, by the central limit theorem.
        width = 2 * 1.96 * values.std() / math.sqrt(80)
        assert found["high"] - found["low"] == pytest.approx(width, rel=0.15)


def test_summary_is_the_same_twice_and_beside_other_metrics() -> None:
    values = np.random.default_rng(1).random(50)
    alone = summarise({"auc": values})
    assert summarise({"auc": values}) == alone
    beside = summarise({"rr": values[::-1], "auc": values})["auc"]
    assert beside == pytest.approx(alone["auc"], rel=1e-12)
    assert summarise({"auc": values}, seed=1) != alone


def test_users_that_are_all_alike_have_no_width() -> None:
    found = summarise({"auc": np.full(10, 0.75)})["auc"]
    assert (found["low"], found["mean"], found["high"]) == pytest.approx((0.75, 0.75, 0.75))


def test_interval_covers_the_truth_about_95_times_of_100() -> None:
    random = np.random.default_rng(2)
    truth, repeats = 0.7, 200
    covered = 0
    for _ in range(repeats):
        found = summarise({"auc": random.beta(7, 3, 60)})["auc"]  # of mean 7 / (7 + 3)
        covered += found["low"] <= truth <= found["high"]
    # A standard error of .015 at 200 repeats; the percentile bootstrap of 60 is a little narrow.
    assert 0.88 <= covered / repeats <= 0.99
