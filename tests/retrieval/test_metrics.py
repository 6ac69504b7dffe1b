"""Metrics against ranx and scikit-learn, and against loops over their definitions."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from tests.conftest import environment
from tests.retrieval import TableScorer
from tests.training import jagged_lists
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import rank_targets

CUTOFFS = (1, 3, 10, 50)
USERS, ITEMS = 60, 45


class Users:
    """Random scores of few or many levels, profiles and held-out items of all sizes."""

    def __init__(self, levels: int, seed: int = 0) -> None:
        random = np.random.default_rng([levels, seed])
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
        ranks = rank_targets(
            TableScorer(self.score_BN),
            jagged_lists(self.profiles),
            np.arange(USERS),
            jagged_lists(self.targets),
        )
        return per_user(ranks, CUTOFFS)

    def ranked(self, user: int) -> list[int]:
        """Items outside the profile, best first, ties by row."""
        rows = [row for row in range(ITEMS) if row not in self.profiles[user]]
        return sorted(rows, key=lambda row: (-self.score_BN[user, row], row))


@pytest.fixture(params=[1, 3, 12, 1000], ids=lambda levels: f"{levels}-levels")
def users(request: pytest.FixtureRequest) -> Users:
    return Users(request.param)


def test_auc_equals_scikit_learn(users: Users) -> None:
    expected = []
    for user in range(USERS):
        rows = users.ranked(user)
        held = [row in users.targets[user] for row in rows]
        expected.append(roc_auc_score(held, users.score_BN[user, rows]))
    np.testing.assert_allclose(users.metrics()["auc"], expected, rtol=1e-12)


def test_auc_without_ties_equals_the_formula_over_ranks() -> None:
    users = Users(1000)
    expected = []
    for user in range(USERS):
        ranked = users.ranked(user)
        ranks = sorted(ranked.index(row) for row in users.targets[user])
        m, n = len(ranked), len(ranks)
        terms = [((m - (r + 1)) - (n - k)) / (m - n) for k, r in enumerate(ranks, start=1)]
        expected.append(sum(terms) / n)
    np.testing.assert_allclose(users.metrics()["auc"], expected, rtol=1e-12)


def test_reciprocal_rank_is_that_of_the_first_hit(users: Users) -> None:
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
def test_ndcg_divides_by_the_best_dcg_of_k_entries(users: Users, k: int) -> None:
    metrics = users.metrics()
    for user in range(USERS):
        held = users.targets[user]
        dcg = sum(
            1 / math.log2(rank + 2)
            for rank, row in enumerate(users.ranked(user)[:k])
            if row in held
        )
        best = sum(1 / math.log2(rank + 2) for rank in range(min(len(held), k)))
        assert metrics[f"ndcg@{k}"][user] == pytest.approx(dcg / best)


@pytest.mark.parametrize("k", CUTOFFS)
def test_ndcg_without_ties_equals_scikit_learn(k: int) -> None:
    users = Users(1000)
    for user, found in enumerate(users.metrics()[f"ndcg@{k}"]):
        rows = users.ranked(user)
        held = [[float(row in users.targets[user]) for row in rows]]
        assert found == pytest.approx(ndcg_score(held, users.score_BN[user, rows][None], k=k))


@pytest.mark.parametrize("k", CUTOFFS)
def test_tutorial_ndcg_divides_by_the_best_order_of_the_hits(users: Users, k: int) -> None:
    metrics = users.metrics()
    for user in range(USERS):
        found = [row in users.targets[user] for row in users.ranked(user)[:k]]
        dcg = sum(1 / math.log2(rank + 2) for rank, hit in enumerate(found) if hit)
        best = sum(1 / math.log2(rank + 2) for rank in range(sum(found)))
        expected = dcg / best if any(found) else 0
        assert metrics[f"ndcg_tutorial@{k}"][user] == pytest.approx(expected)


@pytest.fixture(scope="module")
def ranx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module, which by default creates folders in the home directory."""
    with environment({"IR_DATASETS_HOME": str(tmp_path_factory.mktemp("ranx"))}):
        import ranx

        yield ranx


@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaTypeSafetyWarning")
def test_metrics_equal_those_of_ranx(ranx: Any) -> None:
    """All users in one call, because ranx is compiled anew for tables of other types."""
    draws = [Users(1000, seed) for seed in range(5)]  # no ties, which ranx breaks differently
    held, scores = {}, {}
    for seed, users in enumerate(draws):
        for user in range(USERS):
            name = f"{seed}-{user:02}"
            held[name] = {f"i{row}": 1 for row in users.targets[user]}
            scores[name] = {
                f"i{row}": float(users.score_BN[user, row]) for row in users.ranked(user)
            }
    ours = {
        f"{kind}@{k}": f"{kind}@{k}" for kind in ("recall", "precision", "ndcg") for k in CUTOFFS
    }
    ours["mrr"] = "rr"
    found = ranx.evaluate(ranx.Qrels(held), ranx.Run(scores), list(ours), return_mean=False)
    metrics = [users.metrics() for users in draws]
    for name, our_name in ours.items():
        of_all = np.concatenate([of_draw[our_name] for of_draw in metrics])
        np.testing.assert_allclose(of_all, found[name], rtol=1e-12, err_msg=name)


def test_metrics_are_one_without_negatives() -> None:
    ranks = rank_targets(
        TableScorer(np.array([[3, 1, 2]], np.float32)),
        jagged_lists([[1]]),
        np.array([0]),
        jagged_lists([[0, 2]]),
    )
    metrics = per_user(ranks, (2,))
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "auc": [1],
        "rr": [1],
        "precision@2": [1],
        "recall@2": [1],
        "ndcg@2": [1],
        "ndcg_tutorial@2": [1],
    }
