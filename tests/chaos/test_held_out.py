"""Promise 24: whatever happens to the interactions, a model is evaluated only on unseen rows."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from tests.chaos.harness import amount, measured
from visrec.interactions.log import InteractionLog
from visrec.interactions.read import build_log
from visrec.interactions.split import (
    HeldOut,
    SplitConfig,
    SplitPart,
    held_out_pairs,
    restore_split,
    select_held_out,
    split,
)

ITEMS = pa.array([f"i{n:02}" for n in range(30)])
Rows = list[tuple[str, str, int]]  # user, item, timestamp
Pairs = set[tuple[str, str]]  # user, item


@dataclass(frozen=True)
class Training:
    """What a training saw and held out.

    Attributes:
        seen: the rows that it was trained on.
        held_out: the rows that it held out, as the artifact records them.
        last_timestamp: the last timestamp of all its rows.
    """

    seen: Pairs
    held_out: pa.Table
    last_timestamp: int


def random_rows(random: np.random.Generator, users: int) -> Rows:
    return [
        (f"u{user}", f"i{item:02}", int(random.integers(0, 9)))
        for user in range(users)
        for item in random.choice(30, random.integers(1, 9), replace=False)
    ]


def to_log(rows: Rows) -> InteractionLog:
    user_id, item_id, timestamp = map(list, zip(*rows, strict=True))
    table = pa.table({"user_id": user_id, "item_id": item_id, "timestamp": timestamp})
    return build_log([table], ITEMS)


def to_pairs(log: InteractionLog, mask_R: np.ndarray) -> Pairs:
    users = log.user_ids.take(pa.array(log.user_R[mask_R])).to_pylist()
    return set(zip(users, ITEMS.take(pa.array(log.item_R[mask_R])).to_pylist(), strict=True))


def target_pairs(log: InteractionLog, held_out: HeldOut) -> Pairs:
    return {
        (log.user_ids[int(user)].as_py(), ITEMS[int(item)].as_py())
        for e, user in enumerate(held_out.user_E)
        for item in held_out.targets[e]
    }


def train(rows: Rows, config: SplitConfig) -> Training:
    log = to_log(rows)
    part_R = split(log, config)
    held_out = select_held_out(log, part_R, SplitPart.TEST, config)
    pairs = held_out_pairs(held_out, log.user_ids, ITEMS)
    return Training(to_pairs(log, part_R < SplitPart.TEST), pairs, int(log.time_R.max()))


def change(rows: Rows, how: str, random: np.random.Generator) -> Rows:
    """The interactions at the time of the evaluation."""
    if how == "the last rows are gone":
        return [row for row in rows if row[2] < random.integers(4, 9)]
    if how == "rows are gone anywhere":
        return [row for row in rows if random.random() < 0.7]
    if how == "later rows were added":
        return rows + [(user, item, time + 9) for user, item, time in random_rows(random, 12)]
    if how == "timestamps changed":
        return [(user, item, int(random.integers(0, 9))) for user, item, _ in rows]
    return random_rows(random, 12)


CHANGES = [
    "the last rows are gone",
    "rows are gone anywhere",
    "later rows were added",
    "timestamps changed",
    "another file",
]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("by", ["basket", "item"])
def test_only_rows_that_training_held_out_become_targets(
    how: str, by: Literal["basket", "item"]
) -> None:
    evaluated = leaks = 0
    for seed in range(amount(20, 500)):
        random = np.random.default_rng(seed)
        rows = random_rows(random, 12)
        training = train(rows, SplitConfig(by=by))
        rows_now = change(rows, how, random)
        if not rows_now:
            continue
        log = to_log(rows_now)
        restored = restore_split(
            log, ITEMS, training.held_out, training.last_timestamp, SplitConfig(by=by)
        )
        targets = target_pairs(log, restored.held_out)
        held_out = set(zip(*training.held_out.to_pydict().values(), strict=True))
        assert targets <= held_out & {(user, item) for user, item, _ in rows_now}
        assert restored.num_missing == len(held_out) - len(targets)
        # No profile has a row from after the training, or a target.
        for u, user in enumerate(log.user_ids.to_pylist()):
            profile = {ITEMS[int(item)].as_py() for item in restored.known_items[u]}
            for item in profile:
                first = min(t for n, j, t in rows_now if (n, j) == (user, item))
                assert first <= training.last_timestamp
            assert not {(user, item) for item in profile} & targets
        evaluated += len(targets)
        leaks += len(targets & training.seen)
    assert evaluated
    assert not leaks
    measured(24, targets_evaluated=evaluated, trained_rows_evaluated=leaks)


def test_unchanged_interactions_give_the_split_of_the_training() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows = random_rows(random, 12)
        training, log = train(rows, SplitConfig()), to_log(rows)
        restored = restore_split(
            log, ITEMS, training.held_out, training.last_timestamp, SplitConfig()
        )
        expected = select_held_out(log, split(log, SplitConfig()), SplitPart.TEST, SplitConfig())
        assert restored.num_missing == 0
        np.testing.assert_array_equal(restored.held_out.user_E, expected.user_E)
        np.testing.assert_array_equal(restored.held_out.targets.values, expected.targets.values)
        np.testing.assert_array_equal(restored.held_out.profiles.values, expected.profiles.values)
