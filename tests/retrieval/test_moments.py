"""Held-out items ranked as the nights were, against loops over users and items."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.interactions import batch, features_at
from tests.training import held_baskets, jagged_lists
from visrec.interactions.activity import DAY, Activity
from visrec.interactions.read import build_log
from visrec.interactions.split import (
    HeldOut,
    SplitConfig,
    SplitPart,
    has_marked_test_rows,
    held_out_pairs,
    restore_split,
    select_held_out,
    split,
)
from visrec.jagged import Jagged
from visrec.models.arrays import ACTIVITY, ItemArrays
from visrec.models.scorers import DotScorer
from visrec.retrieval.metrics import per_user
from visrec.retrieval.moments import ItemOrder, MomentRanker, Moments
from visrec.retrieval.topk import TopKResult

ITEMS, USERS = 30, 12
_RANDOM = np.random.default_rng(0)
ITEM_R = np.concatenate([np.arange(25), _RANDOM.integers(0, 25, 60)])  # 25 to 29: never taken
TIME_R = np.concatenate([_RANDOM.permutation(25), _RANDOM.integers(10, 40, 60)]) * DAY + 5
ACTIVITY_OF_ALL = Activity.from_rows(ITEM_R, TIME_R, ITEMS)
VECTOR_N = _RANDOM.normal(size=ITEMS).astype(np.float32)


def _held_out() -> HeldOut:
    """Users with two items that were out by then."""
    lists, profiles, times = [], [], []
    for _ in range(USERS):
        day = int(_RANDOM.integers(12, 45))
        out = np.flatnonzero(ACTIVITY_OF_ALL.first_N <= day * DAY)
        chosen = _RANDOM.choice(out, 5, replace=False)
        lists.append(chosen[:2].tolist())
        profiles.append(chosen[2:].tolist())
        times.append(day * DAY + 9)
    return held_baskets(
        np.arange(USERS), jagged_lists(profiles), jagged_lists(lists), np.array(times)
    )


def _held_out_from_a_moment_on() -> HeldOut:
    """Users with two items that were taken on different days after a moment (`SplitConfig.at`)."""
    at, days = 12, _RANDOM.integers(12, 26, (USERS, 2))
    was_out = np.flatnonzero(ACTIVITY_OF_ALL.first_N <= at * DAY)
    targets = [
        _RANDOM.choice(np.flatnonzero(ACTIVITY_OF_ALL.first_N <= day * DAY), 2, False).tolist()
        for day in days.min(axis=1)
    ]
    profiles = [np.setdiff1d(was_out, taken)[:3].tolist() for taken in targets]
    held = held_baskets(
        np.arange(USERS),
        jagged_lists(profiles),
        jagged_lists(targets),
        np.full(USERS, at * DAY),
    )
    times = Jagged(days.ravel() * DAY + 9, held.targets.offsets)
    return dataclasses.replace(held, target_times=times)


def _scorer(arrays: ItemArrays) -> DotScorer:
    """A vector of the item, and how often it was taken in the last week."""
    columns = (
        [arrays["vectors"], arrays[ACTIVITY][:, 2]] if ACTIVITY in arrays else [arrays["vectors"]]
    )
    vectors_Nd = torch.from_numpy(np.column_stack(columns))
    return DotScorer(vectors_Nd, lambda lists, _: torch.ones(len(lists), vectors_Nd.shape[1]))


def _auc(held: HeldOut, user: int, score_of: Callable[[int, int], float], by_night: bool) -> float:
    midnight = int(held.time_E[user]) // DAY * DAY
    end = int(held.target_times[user].max()) // DAY * DAY + DAY
    profile, targets = held.profiles[user], held.targets[user]
    ranked = [
        item
        for item in range(ITEMS)
        if item not in profile and (not by_night or ACTIVITY_OF_ALL.first_N[item] < end)
    ]
    others = [score_of(item, midnight) for item in ranked if item not in targets]
    wins = [
        (score_of(t, midnight) > o) + 0.5 * (score_of(t, midnight) == o)
        for t in targets
        for o in others
    ]
    return float(np.mean(wins))


@pytest.mark.parametrize("by_night", [True, False])
@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("held", [_held_out(), _held_out_from_a_moment_on()], ids=["last", "at"])
def test_ranks_equal_loops_whoever_shares_a_block(
    by_night: bool, moving: bool, held: HeldOut
) -> None:
    order = ItemOrder.of(ACTIVITY_OF_ALL)
    moments = Moments(order.of_held_out(held), order.activity, by_night)
    arrays: ItemArrays = {"vectors": VECTOR_N[order.item_N]}
    if moving:
        arrays[ACTIVITY] = features_at(order.activity, 0)
    ranker = MomentRanker(_scorer, arrays, np.full(USERS, -1), moments, k=40)

    def score(item: int, moment: int) -> float:
        taken = ((moment - 7 * DAY <= TIME_R) & (moment > TIME_R))[item == ITEM_R].sum()
        return float(VECTOR_N[item] + np.float32(np.log1p(taken) if moving else 0))

    users = moments.held_out.user_E
    expected = [_auc(held, int(user), score, by_night) for user in users]
    for block_users in (1, 5, USERS):
        blocks = np.split(np.arange(USERS), range(block_users, USERS, block_users))
        found = [per_user(ranker.ranks(rows))["auc"] for rows in blocks]
        np.testing.assert_allclose(np.concatenate(found), expected)
        groups = [group for rows in blocks for group in ranker.groups(rows)]
        lists = TopKResult.concatenate([group.lists() for group in groups])
        for user, row_K in zip(users, lists.row_BK, strict=True):
            listed = {int(order.item_N[row]) for row in row_K if row >= 0}
            end = held.target_times[user].max() // DAY * DAY + DAY
            out = {i for i in range(ITEMS) if not by_night or ACTIVITY_OF_ALL.first_N[i] < end}
            assert listed == out - set(held.profiles[user].tolist())


SEEN = [("u", "a", DAY), ("w", "f", 40 * DAY), *(("v", item, DAY) for item in "abde")]
TARGET, FUTURE = ("u", "b", 2 * DAY), ("u", "c", 10 * DAY)  # nobody else takes c
MARKED = [(*row, row == TARGET) for row in (*SEEN, TARGET, FUTURE)]


@pytest.mark.parametrize("by", ["night", "basket", "item"])
@pytest.mark.parametrize(
    ("trained", "now", "at"),
    [
        (MARKED, MARKED, None),
        ([*SEEN, TARGET], [*SEEN, TARGET, FUTURE], None),
        ([*SEEN, TARGET], [*SEEN, TARGET, FUTURE], "1970-01-03"),
    ],
    ids=["marked row", "late row", "late row after a moment"],
)
def test_item_that_a_user_takes_later_is_neither_in_the_profile_nor_subtracted_from_ranks(
    by: Literal["night", "basket", "item"],
    trained: list[tuple[Any, ...]],
    now: list[tuple[Any, ...]],
    at: str | None,
) -> None:
    items, config = pa.array([*"abcdefg"]), SplitConfig(by=by, at=at)
    log = build_log([batch(*trained)], items)
    held = select_held_out(log, split(log, config), SplitPart.TEST, config)
    pairs = held_out_pairs(held, log.user_ids, items)
    marked, end = has_marked_test_rows(log, config), int(log.time_R.max())
    log = build_log([batch(*now)], items)
    restored = restore_split(log, items, pairs, end, config, is_marked=marked)
    order = ItemOrder.of(Activity.from_rows(restored.log.item_R, restored.log.time_R, len(items)))
    held = order.of_held_out(restored.held_out)
    moments = Moments(held, order.activity, by == "night")
    user = order.item_N[held.targets.values].tolist().index(1)  # everybody has one target
    assert order.item_N[held.profiles[user]].tolist() == [0]
    # c has the highest score, and b the next. By night, c did not exist yet.
    score_N = np.array([0.1, 0.5, 0.9, 0.2, 0.3, 0.1, 0.1], np.float32)
    arrays: ItemArrays = {"vectors": score_N[order.item_N]}
    ranker = MomentRanker(_scorer, arrays, np.full(len(held), -1), moments, k=2)
    (group,) = ranker.groups(np.array([user]))
    ranks = group.ranks()
    assert ranks.ranked_B.tolist() == [3 if by == "night" else 6]
    assert ranks.above_P.tolist() == [0 if by == "night" else 1]
    assert per_user(ranks)["auc"].tolist() == [1 if by == "night" else 0.8]
    listed_2 = order.item_N[group.lists().row_BK[0]]
    assert listed_2.tolist() == ([1, 4] if by == "night" else [2, 1])


def test_unique_works_are_ranked_among_all_items() -> None:
    first = Activity.from_rows(np.arange(10), np.arange(10) * DAY, ITEMS)
    targets = jagged_lists([[5], [8]])
    held = held_baskets(np.arange(2), jagged_lists([[0], [1]]), targets, np.array([5, 8]) * DAY)
    assert not Moments(held, first, by_night=True).among_known


def test_static_model_is_prepared_once_and_a_moving_one_once_a_moment() -> None:
    order, made = ItemOrder.of(ACTIVITY_OF_ALL), []
    moments = Moments(order.of_held_out(_held_out()), order.activity, by_night=False)
    arrays: ItemArrays = {"vectors": VECTOR_N[order.item_N]}

    def scorer(arrays: ItemArrays) -> DotScorer:
        made.append(arrays)
        return _scorer(arrays)

    def rank_by_blocks(arrays: ItemArrays) -> int:
        made.clear()
        ranker = MomentRanker(scorer, arrays, np.full(USERS, -1), moments, k=4)
        for rows in np.split(np.arange(USERS), 3):
            for group in ranker.groups(rows):
                group.ranks()
                group.lists()
        return len(made)

    assert rank_by_blocks(arrays) == 1
    arrays[ACTIVITY] = features_at(order.activity, 0)
    assert rank_by_blocks(arrays) == len(np.unique(moments.moment_E))


def test_arrays_and_lists_are_put_in_order() -> None:
    order = ItemOrder.of(Activity.from_rows(np.array([2, 0]), np.array([1, 9]), 3))
    assert order.item_N.tolist() == [2, 0, 1]
    ordered = order.of_arrays({"vectors": np.eye(3), "trained": np.array([5, 6, -1])})
    assert ordered["vectors"].argmax(1).tolist() == [2, 0, 1]
    assert ordered["trained"].tolist() == [-1, 5, 6]
    assert order.of_lists(Jagged(np.array([0, 2]), np.array([0, 2]))).values.tolist() == [1, 0]
