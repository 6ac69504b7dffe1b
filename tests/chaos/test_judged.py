"""Promise 24: whatever becomes of the interactions, a model is judged by unseen rows alone."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from tests.chaos.harness import amount, measured
from visrec.interactions.log import InteractionLog
from visrec.interactions.read import build_log
from visrec.interactions.split import (
    SplitConfig,
    SplitPart,
    held_out_pairs,
    restore_split,
    select_held_out,
    split,
)

ITEMS = pa.array([f"i{n:02}" for n in range(30)])
Rows = list[tuple[str, str, int]]


@dataclass(frozen=True)
class Trained:
    """What a training saw and held out, as pairs of ids."""

    seen: set[tuple[str, str]]
    pairs: pa.Table
    last: int


def index_in(random: np.random.Generator, users: int) -> Rows:
    return [
        (f"u{user}", f"i{item:02}", int(random.integers(0, 9)))
        for user in range(users)
        for item in random.choice(30, random.integers(1, 9), replace=False)
    ]


def logged(rows: Rows) -> InteractionLog:
    user_id, item_id, timestamp = map(list, zip(*rows, strict=True))
    table = pa.table({"user_id": user_id, "item_id": item_id, "timestamp": timestamp})
    return build_log([table], ITEMS)


def pairs_of(log: InteractionLog, mask_R: np.ndarray) -> set[tuple[str, str]]:
    users = log.user_ids.take(pa.array(log.user_R[mask_R])).to_pylist()
    return set(zip(users, ITEMS.take(pa.array(log.item_R[mask_R])).to_pylist(), strict=True))


def trained(rows: Rows, config: SplitConfig) -> Trained:
    log = logged(rows)
    part_R = split(log, config)
    held = select_held_out(log, part_R, SplitPart.TEST)
    pairs = held_out_pairs(held, log.user_ids, ITEMS)
    return Trained(pairs_of(log, part_R < SplitPart.TEST), pairs, int(log.time_R.max()))


def changed(rows: Rows, how: str, random: np.random.Generator) -> Rows:
    """The interactions as they are when the model is judged."""
    if how == "the last rows are gone":
        return [row for row in rows if row[2] < random.integers(4, 9)]
    if how == "rows are gone anywhere":
        return [row for row in rows if random.random() < 0.7]
    if how == "a shop went on":
        return rows + [(user, item, time + 9) for user, item, time in index_in(random, 12)]
    if how == "times are others":
        return [(user, item, int(random.integers(0, 9))) for user, item, _ in rows]
    return index_in(random, 12)


CHANGES = [
    "the last rows are gone",
    "rows are gone anywhere",
    "a shop went on",
    "times are others",
    "another file",
]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("by", ["basket", "item"])
def test_only_rows_that_training_held_out_become_targets(how: str, by: str) -> None:
    judged = leaks = 0
    for seed in range(amount(20, 500)):
        random = np.random.default_rng(seed)
        rows = index_in(random, 12)
        config = SplitConfig(by=by)  # type: ignore[arg-type]
        known = trained(rows, config)
        now = changed(rows, how, random)
        if not now:
            continue
        log = logged(now)
        found = restore_split(log, ITEMS, known.pairs, known.last)
        targets = {
            (log.user_ids[int(user)].as_py(), ITEMS[int(item)].as_py())
            for user, items in zip(
                found.held_out.user_E, map(found.held_out.targets.__getitem__, range(len(found.held_out))),
                strict=True,
            )
            for item in items
        }  # fmt: skip
        held = set(zip(*known.pairs.to_pydict().values(), strict=True))
        there = {(user, item) for user, item, _ in now}
        assert targets <= held & there
        assert found.num_missing == len(held) - len(targets)
        # Nothing from after the training is in a profile, and no target either.
        for u, user in enumerate(log.user_ids.to_pylist()):
            profile = {ITEMS[int(item)].as_py() for item in found.known_items[u]}
            first = {i: min(t for n, j, t in now if (n, j) == (user, i)) for i in profile}
            assert all(time <= known.last for time in first.values())
            assert not {(user, item) for item in profile} & targets
        judged += len(targets)
        leaks += len(targets & known.seen)
    assert judged
    assert not leaks
    measured(24, targets_judged=judged, trained_rows_judged=leaks)


def test_the_same_interactions_give_the_same_split() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows = index_in(random, 12)
        known, log = trained(rows, SplitConfig()), logged(rows)
        found = restore_split(log, ITEMS, known.pairs, known.last)
        expected = select_held_out(log, split(log, SplitConfig()), SplitPart.TEST)
        assert found.num_missing == 0
        np.testing.assert_array_equal(found.held_out.user_E, expected.user_E)
        np.testing.assert_array_equal(found.held_out.targets.values, expected.targets.values)
        np.testing.assert_array_equal(found.held_out.profiles.values, expected.profiles.values)
