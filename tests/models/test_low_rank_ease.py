"""Low-rank EASE against the full model and against a plain singular value decomposition."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.training import jagged_lists
from visrec.models.ease import compute_weights
from visrec.models.inputs import JaggedTensor
from visrec.models.low_rank_ease import low_rank_ease, profile_vectors

USERS, ITEMS, PENALTY = 120, 50, 8.0
Floats = npt.NDArray[np.float64]


def _lists() -> list[list[int]]:
    """Users of five groups of ten items, who mostly take items of their own group."""
    random = np.random.default_rng(0)
    lists = []
    for user in range(USERS):
        group = random.permutation(np.arange(user % 5, ITEMS, 5))[:5]
        lists.append([*map(int, {*group, *random.integers(0, ITEMS, 3)})])
    return lists


LISTS = _lists()


def _scores(lists: list[list[int]], rank: int) -> Floats:
    """(U, I) q_u . y_j, with NaN for the items of the profiles."""
    vector_Ir, listed_Ir = low_rank_ease(jagged_lists(lists), ITEMS, PENALTY, rank)
    user_Ur = profile_vectors(vector_Ir, JaggedTensor.from_jagged(jagged_lists(lists)))
    return _without_profiles((user_Ur @ listed_Ir.T).double().numpy(), lists)


def _standardized(score_UI: Floats) -> Floats:
    """(U, I) the formula in float64, of sums over the items of `LISTS`; NaN for these items."""
    score_UI = score_UI / np.sqrt([[len(items)] for items in LISTS])
    return _without_profiles(score_UI / np.sqrt(score_UI.var(axis=1).mean()), LISTS)


def _without_profiles(scores: Floats, lists: list[list[int]]) -> Floats:
    for user, items in enumerate(lists):
        scores[user, items] = np.nan
    return scores


def test_scores_of_full_rank_are_those_of_ease() -> None:
    weight_II = np.empty((ITEMS, ITEMS), np.float32)
    compute_weights(jagged_lists(LISTS), PENALTY, weight_II)
    root_U1 = np.sqrt([[len(items)] for items in LISTS])
    expected = np.array([weight_II[items].sum(0) for items in LISTS]) / root_U1
    expected = _without_profiles(expected, LISTS)
    for rank in (ITEMS, 10 * ITEMS):
        scores = _scores(LISTS, rank)
        scale = np.nanstd(scores) / np.nanstd(expected)
        np.testing.assert_allclose(scores, scale * expected, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_scores_of_lower_rank_are_those_of_the_largest_singular_values(rank: int) -> None:
    taken = np.zeros((USERS, ITEMS))
    for user, items in enumerate(LISTS):
        taken[user, items] = 1
    _, singular, right = np.linalg.svd(taken)
    right, square = right[:rank], singular[:rank] ** 2
    smooth = (right.T * square / (square + PENALTY)) @ right
    expected = _standardized(taken @ (smooth / (1 - np.diag(smooth))))
    # The last of 20 singular values are too close together to be told apart.
    np.testing.assert_allclose(_scores(LISTS, rank), expected, atol=1e-2)


def test_scores_of_a_user_have_a_standard_deviation_of_one_on_average() -> None:
    vector_Ir, listed_Ir = low_rank_ease(jagged_lists(LISTS), ITEMS, PENALTY, 6)
    user_Ur = profile_vectors(vector_Ir, JaggedTensor.from_jagged(jagged_lists(LISTS)))
    variance_U = (user_Ur @ listed_Ir.T).var(dim=1, correction=0)
    assert float(variance_U.mean()) == pytest.approx(1, rel=1e-4)


def test_order_and_repeats_within_a_list_change_nothing() -> None:
    one = low_rank_ease(jagged_lists(LISTS), ITEMS, PENALTY, 6)
    repeated = jagged_lists([[*items[::-1], *items[:2]] for items in LISTS])
    other = low_rank_ease(repeated, ITEMS, PENALTY, 6)
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_items_of_a_single_taker_have_zeros() -> None:
    lists = [[items for items in taken if items != 7] for taken in LISTS]
    lists[3].append(7)
    vector_Ir, listed_Ir = low_rank_ease(jagged_lists(lists), ITEMS, PENALTY, 64)
    assert not vector_Ir[7].any()
    assert not listed_Ir[7].any()
    assert vector_Ir.any(dim=1).sum() == ITEMS - 1


@pytest.mark.parametrize("lists", [[], [[]], [[0, 1], [2], []]])
def test_data_without_an_item_of_two_takers_give_zeros(lists: list[list[int]]) -> None:
    vector_Ir, listed_Ir = low_rank_ease(jagged_lists(lists), ITEMS, PENALTY, 8)
    assert len(vector_Ir) == len(listed_Ir) == ITEMS
    assert not listed_Ir.any()


def test_items_that_the_same_users_took_have_zeros_because_their_scores_are_equal() -> None:
    _, listed_Ir = low_rank_ease(jagged_lists([[0, 1]] * 5), 2, PENALTY, 8)
    assert not listed_Ir.any()
