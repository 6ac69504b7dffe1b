"""The split against plain loops and planted users."""

import json
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visrec.config import plain
from visrec.errors import InputError
from visrec.interactions.log import InteractionLog
from visrec.interactions.read import build_log
from visrec.interactions.split import (
    HeldOut,
    SplitConfig,
    SplitPart,
    explain_empty_part,
    has_marked_test_rows,
    held_out_pairs,
    restore_split,
    select_held_out,
    split,
)

BOTH = SplitConfig()
ITEMS = pa.array([f"{n:02}" for n in range(40)])
Baskets = dict[str, list[list[int]]]  # each user's baskets of items, oldest first


def logged(users: Baskets, flagged: set[int] | None = None) -> InteractionLog:
    """The log of some baskets, an hour apart; `flagged` items are for evaluation."""
    rows = [
        (user, f"{item:02}", 3_600 * hour, item in (flagged or ()))
        for user, baskets in users.items()
        for hour, basket in enumerate(baskets)
        for item in basket
    ]
    user_id, item_id, timestamp, evaluation = map(list, zip(*rows, strict=True))
    table = pa.table({"user_id": user_id, "item_id": item_id, "timestamp": timestamp})
    if flagged is not None:
        table = table.append_column("evaluation", [evaluation])
    return build_log([table], ITEMS)


def items_of(
    log: InteractionLog, part_R: npt.NDArray[np.int8], part: SplitPart
) -> dict[str, list[int]]:
    lists = log.items_where(part_R == part)
    return {user: lists[u].tolist() for u, user in enumerate(log.user_ids.to_pylist())}


PLANTED: Baskets = {
    "five": [[1], [2, 3], [4], [5], [6, 7]],
    "one": [[10, 11]],
    "three": [[20], [21, 22], [23]],
    "two": [[30, 31], [32]],
}


@pytest.mark.parametrize(
    ("config", "train", "validation", "test"),
    [
        (
            BOTH,
            {"five": [1, 2, 3, 4], "one": [10, 11], "three": [20], "two": [30, 31]},
            {"five": [5], "one": [], "three": [21, 22], "two": []},
            {"five": [6, 7], "one": [], "three": [23], "two": [32]},
        ),
        (
            SplitConfig(validation=False),
            {"five": [1, 2, 3, 4, 5], "one": [10, 11], "three": [20, 21, 22], "two": [30, 31]},
            {},
            {"five": [6, 7], "one": [], "three": [23], "two": [32]},
        ),
        (
            SplitConfig(test=False),
            {"five": [1, 2, 3, 4, 5], "one": [10, 11], "three": [20, 21, 22], "two": [30, 31]},
            {"five": [6, 7], "one": [], "three": [23], "two": [32]},
            {},
        ),
        (
            SplitConfig(by="item"),
            {"five": [1, 2, 3, 4, 5], "one": [10], "three": [20, 21], "two": [30]},
            {"five": [6], "one": [], "three": [22], "two": [31]},
            {"five": [7], "one": [11], "three": [23], "two": [32]},
        ),
        (
            SplitConfig(test=False, validation=False),
            {user: [*chain(*baskets)] for user, baskets in PLANTED.items()},
            {},
            {},
        ),
    ],
)
def test_last_baskets_are_held_out_if_the_user_has_enough_baskets(
    config: SplitConfig,
    train: dict[str, list[int]],
    validation: dict[str, list[int]],
    test: dict[str, list[int]],
) -> None:
    log = logged(PLANTED)
    part_R = split(log, config)
    nothing: dict[str, list[int]] = {user: [] for user in PLANTED}
    assert items_of(log, part_R, SplitPart.TRAIN) == train
    assert items_of(log, part_R, SplitPart.VALIDATION) == (validation or nothing)
    assert items_of(log, part_R, SplitPart.TEST) == (test or nothing)


def test_evaluation_column_decides_the_test_rows() -> None:
    log = logged(PLANTED, flagged={2, 10, 11, 23})
    part_R = split(log, BOTH)
    assert items_of(log, part_R, SplitPart.TEST) == {
        "five": [2], "one": [10, 11], "three": [23], "two": [],
    }  # fmt: skip
    # Validation is the last basket of the rest, where the rest has two.
    assert items_of(log, part_R, SplitPart.VALIDATION) == {
        "five": [6, 7], "one": [], "three": [21, 22], "two": [32],
    }  # fmt: skip


def test_flagged_rows_are_training_rows_if_no_test_part_is_held_out() -> None:
    log = logged(PLANTED, flagged={1})
    assert items_of(log, split(log, SplitConfig(test=False)), SplitPart.TRAIN)["five"][0] == 1


def test_held_out_users_have_a_profile_and_targets() -> None:
    log = logged(PLANTED)
    part_R = split(log, BOTH)
    validation, test = (
        select_held_out(log, part_R, p, BOTH) for p in (SplitPart.VALIDATION, SplitPart.TEST)
    )

    def shown(held: HeldOut) -> dict[str, tuple[list[int], list[int]]]:
        assert len(held) == len(held.user_E)
        return {
            log.user_ids[int(u)].as_py(): (held.profiles[e].tolist(), held.targets[e].tolist())
            for e, u in enumerate(held.user_E)
        }

    assert shown(validation) == {"five": ([1, 2, 3, 4], [5]), "three": ([20], [21, 22])}
    assert shown(test) == {
        "five": ([1, 2, 3, 4, 5], [6, 7]),
        "three": ([20, 21, 22], [23]),
        "two": ([30, 31], [32]),
    }
    assert shown(test.take(np.array([2, 0]))) == {
        "two": ([30, 31], [32]),
        "five": ([1, 2, 3, 4, 5], [6, 7]),
    }


def test_user_without_a_profile_is_not_evaluated() -> None:
    log = logged({"new": [[1, 2]], "old": [[3], [4]]}, flagged={1, 2, 4})
    test = select_held_out(log, split(log, BOTH), SplitPart.TEST, BOTH)
    assert log.user_ids.take(pa.array(test.user_E)).to_pylist() == ["old"]


ROWS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.integers(0, 9), st.integers(0, 5), st.booleans()),
    min_size=1,
    max_size=40,
)
CONFIGS = st.builds(
    SplitConfig,
    test=st.booleans(),
    validation=st.booleans(),
    by=st.sampled_from(["basket", "item"]),
) | st.builds(
    SplitConfig, validation=st.booleans(), at=st.integers(0, 6).map("1970-01-01T00:00:0{}".format)
)


def random_log(rows: list[tuple[str, int, int, bool]], evaluation: bool) -> InteractionLog:
    users, items, times, flags = map(list, zip(*rows, strict=True))
    table = pa.table({"user_id": users, "item_id": [f"{i:02}" for i in items], "timestamp": times})
    return build_log([table.append_column("evaluation", [flags]) if evaluation else table], ITEMS)


@given(ROWS, CONFIGS, st.booleans())
def test_parts_of_a_split_cover_all_rows_and_held_out_rows_are_in_no_profile(
    rows: list[tuple[str, int, int, bool]], config: SplitConfig, evaluation: bool
) -> None:
    log = random_log(rows, evaluation)
    part_R = split(log, config)
    sets = {part: items_of(log, part_R, part) for part in SplitPart}
    for u, user in enumerate(log.user_ids.to_pylist()):
        every_item = chain.from_iterable(sets[part][user] for part in SplitPart)
        assert sorted(every_item) == sorted(log.items[u].tolist())
    for part in (SplitPart.VALIDATION, SplitPart.TEST):
        held = select_held_out(log, part_R, part, config)
        for e, u in enumerate(held.user_E):
            user = log.user_ids[int(u)].as_py()
            profile, targets = set(held.profiles[e].tolist()), set(held.targets[e].tolist())
            assert profile
            assert targets == set(sets[part][user])
            assert not profile & targets
            assert not profile & set(sets[SplitPart.TEST][user])
            before_R = (log.user_R == u) & (part_R < part) & (log.time_R <= held.time_E[e])
            assert profile == set(log.item_R[before_R].tolist())


@given(ROWS, CONFIGS)
def test_held_out_rows_are_later_than_profiles(
    rows: list[tuple[str, int, int, bool]], config: SplitConfig
) -> None:
    log = random_log(rows, evaluation=False)
    part_R = split(log, config)
    by_item = config.by == "item"
    for u in range(len(log.user_ids)):
        of_user_R = log.user_R == u
        times = [log.time_R[of_user_R & (part_R == part)].tolist() for part in SplitPart]
        earlier: list[int] = []
        for later in times:
            # Baskets, which have one timestamp, are never cut; items of one timestamp may be.
            assert not earlier or not later or max(earlier) < min(later) + by_item
            earlier += later
        if config.at is None:
            assert not of_user_R.any() or times[SplitPart.TRAIN]
            assert len(set(times[SplitPart.TEST])) <= 1
        assert len(set(times[SplitPart.VALIDATION])) <= 1


@given(ROWS)
def test_split_by_item_equals_leave_one_out_by_a_plain_loop(
    rows: list[tuple[str, int, int, bool]],
) -> None:
    log = random_log(rows, evaluation=False)
    part_R = split(log, SplitConfig(by="item"))
    parts = {part: items_of(log, part_R, part) for part in SplitPart}
    for user in "uvw":
        first: dict[int, int] = {}  # when each item was first taken
        for _, item, time, _ in sorted((r for r in rows if r[0] == user), key=lambda r: r[2]):
            first.setdefault(item, time)
        taken = sorted(first, key=lambda item: (first[item], item))
        test = [taken.pop()] if len(taken) > 1 else []
        validation = [taken.pop()] if test and len(taken) > 1 else []
        if first:
            assert [parts[part][user] for part in SplitPart] == [taken, validation, test]


@given(
    ROWS,
    ROWS,
    CONFIGS | st.just(SplitConfig()),
    st.booleans(),
    st.sampled_from([SplitPart.VALIDATION, SplitPart.TEST]),
)
def test_profile_has_no_row_later_than_what_is_held_out(
    rows: list[tuple[str, int, int, bool]],
    late: list[tuple[str, int, int, bool]],
    config: SplitConfig,
    evaluation: bool,
    part: SplitPart,
) -> None:
    trained, now = random_log(rows, evaluation), random_log(rows + late, evaluation)
    held = select_held_out(trained, split(trained, config), part, config)
    pairs = held_out_pairs(held, trained.user_ids, ITEMS)
    end = int(trained.time_R.max())
    marked = has_marked_test_rows(trained, config)
    restored = restore_split(now, ITEMS, pairs, end, config, is_marked=marked)
    may_cut_baskets = evaluation or config.by == "item"
    for log, found in ((trained, held), (restored.log, restored.held_out)):
        for e, u in enumerate(found.user_E):
            first = min(
                int(log.time_R[(log.user_R == u) & (log.item_R == item)][0])
                for item in found.targets[e]
            )
            assert found.time_E[e] in (first, config.at_timestamp())
            for item in found.profiles[e]:
                time = int(log.time_R[(log.user_R == u) & (log.item_R == item)][0])
                assert time < found.time_E[e] + may_cut_baskets
    # What a row marks as test is unknown to baselines, even if its user is not evaluated.
    if evaluation and config.test and config.at is None:
        assert restored.log.evaluation_flag_R is not None
        known_R = ~restored.log.evaluation_flag_R
        assert len(restored.known_items.values) <= known_R.sum()


def test_marked_row_is_ranked_for_what_its_user_had_taken_by_then() -> None:
    log = logged({"five": PLANTED["five"], "first": [[8], [9]]}, flagged={2, 4, 8})
    test = select_held_out(log, split(log, BOTH), SplitPart.TEST, BOTH)
    assert log.user_ids.take(pa.array(test.user_E)).to_pylist() == ["five"]
    assert (test.profiles[0].tolist(), test.targets[0].tolist()) == ([1, 3], [2, 4])
    assert (test.last_time_E > test.time_E).all()  # the marked rows are of two baskets
    pairs = held_out_pairs(test, log.user_ids, ITEMS)
    restored = restore_split(log, ITEMS, pairs, 3_600 * 4, BOTH, is_marked=True)
    assert restored.held_out.profiles.values.tolist() == [1, 3]
    assert sorted(restored.known_items.values.tolist()) == [1, 3, 5, 6, 7, 9]


def test_column_that_came_after_the_training_changes_nothing() -> None:
    users: Baskets = {"u": [[1], [2], [3]]}
    trained, now = logged(users), logged(users, flagged={1, 2})
    test = select_held_out(trained, split(trained, BOTH), SplitPart.TEST, BOTH)
    pairs = held_out_pairs(test, trained.user_ids, ITEMS)
    restored = restore_split(now, ITEMS, pairs, 3_600 * 2, BOTH)
    assert restored.num_missing == 0
    assert restored.held_out.profiles.values.tolist() == [1, 2]
    assert restored.known_items.values.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("config", "flagged", "expected"),
    [
        (BOTH, {2}, True),
        (BOTH, None, False),
        (SplitConfig(test=False), {2}, False),
        (SplitConfig(at="1970-01-01"), {2}, False),
    ],
)
def test_test_rows_are_marked_unless_something_else_chooses_them(
    config: SplitConfig, flagged: set[int] | None, expected: bool
) -> None:
    assert has_marked_test_rows(logged({"u": [[1], [2]]}, flagged), config) == expected


def test_split_config_from_json_equals_the_original() -> None:
    for config in (BOTH, SplitConfig(by="item", validation=False)):
        assert SplitConfig(**json.loads(json.dumps(plain(config)))) == config
    assert SplitConfig(test=True, validation=True).by == "night"


def test_split_does_not_depend_on_the_order_of_rows() -> None:
    rows = [
        (u, i, t, False) for u, i, t in zip("uvuuvw", range(6), [3, 1, 2, 1, 5, 4], strict=True)
    ]
    forth, back = (random_log(order, evaluation=False) for order in (rows, rows[::-1]))
    for config in (BOTH, SplitConfig(by="item")):
        assert split(forth, config).tolist() == split(back, config).tolist()


TIMED = [("u", 1, 1, False), ("u", 2, 3, False), ("u", 3, 4, False), ("u", 4, 5, False)]
NEW_AND_GONE = [("v", 5, 4, False), ("w", 6, 2, False)]
AT = SplitConfig(at="1970-01-01T00:00:04")


def test_everything_from_a_moment_on_is_held_out_for_test() -> None:
    log = random_log(TIMED + NEW_AND_GONE, evaluation=False)
    part_R = split(log, AT)
    assert items_of(log, part_R, SplitPart.TEST) == {"u": [3, 4], "v": [5], "w": []}
    assert items_of(log, part_R, SplitPart.VALIDATION) == {"u": [2], "v": [], "w": []}
    test = select_held_out(log, part_R, SplitPart.TEST, AT)
    assert log.user_ids.take(pa.array(test.user_E)).to_pylist() == ["u"]
    assert (test.profiles[0].tolist(), test.targets[0].tolist()) == ([1, 2], [3, 4])
    assert test.time_E.tolist() == [4]
    assert test.target_times.values.tolist() == [4, 5]
    assert test.last_time_E.tolist() == [5]


def test_restored_global_split_knows_nothing_from_its_moment_on() -> None:
    log = random_log(TIMED + NEW_AND_GONE, evaluation=False)
    test = select_held_out(log, split(log, AT), SplitPart.TEST, AT)
    pairs = held_out_pairs(test, log.user_ids, ITEMS)
    restored = restore_split(log, ITEMS, pairs, 5, AT)
    known = {
        user: restored.known_items[u].tolist() for u, user in enumerate(log.user_ids.to_pylist())
    }
    assert known == {"u": [1, 2], "v": [], "w": [6]}
    assert restored.held_out.time_E.tolist() == [4]


def test_moment_at_which_nothing_can_be_split_is_explained() -> None:
    log = random_log(TIMED, evaluation=False)
    late = SplitConfig(at="1971-01-01")
    text = explain_empty_part(log, late, SplitPart.TEST)
    assert "No user has items both before and from 1971-01-01 on" in text
    assert "The interactions are from 1970-01-01 to 1970-01-01." in text


@pytest.mark.parametrize("fields", [{"at": "next week"}, {"at": "2026-01-01", "test": False}])
def test_moment_that_is_none_or_is_not_used_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"--split\.at"):
        SplitConfig(**fields)


def test_empty_part_is_explained_with_a_remedy() -> None:
    at_once = [("u", item, 7, False) for item in range(4)]
    log = random_log(at_once, evaluation=False)
    text = explain_empty_part(log, BOTH, SplitPart.TEST)
    assert text.startswith("No user has 2 baskets, so nobody is held out for test")
    assert "all timestamps are 7. --split.by item holds out single items instead." in text
    assert "No user has 3 baskets" in explain_empty_part(log, BOTH, SplitPart.VALIDATION)
    assert "No user has 2 baskets" in explain_empty_part(
        log, SplitConfig(test=False), SplitPart.VALIDATION
    )
    by_item = SplitConfig(by="item")
    assert len(select_held_out(log, split(log, by_item), SplitPart.TEST, by_item)) == 1
    single = random_log([("u", 1, 7, False), ("v", 2, 8, False)], evaluation=False)
    assert explain_empty_part(single, SplitConfig(by="item"), SplitPart.TEST).startswith(
        "No user has 2 items"
    )
    assert "--split.by item" not in explain_empty_part(
        single, BOTH, SplitPart.TEST
    )  # it would not help
    flagged = random_log([("u", 1, 7, False), ("u", 2, 8, False)], evaluation=True)
    assert "other rows that are not later" in explain_empty_part(flagged, BOTH, SplitPart.TEST)


def test_only_baskets_that_could_be_held_out_count_for_the_explanation() -> None:
    two = [("u", 1, 1, False), ("u", 2, 5, False)]
    text = explain_empty_part(random_log(two, evaluation=False), AT, SplitPart.VALIDATION)
    assert text == (
        "No user has 2 baskets before 1970-01-01T00:00:04 (--split.at), so nobody is held out for "
        "validation (--split.validation)."
    )
    marked = [("u", 1, 1, False), ("u", 2, 5, True), ("u", 3, 6, True)]
    text = explain_empty_part(random_log(marked, evaluation=True), BOTH, SplitPart.VALIDATION)
    assert text == (
        "No user has 2 baskets without a row that the evaluation column marks, so nobody is held "
        "out for validation (--split.validation)."
    )
    at_once = [("u", 1, 1, False), ("u", 2, 1, False), ("u", 3, 5, False)]
    text = explain_empty_part(random_log(at_once, evaluation=False), AT, SplitPart.VALIDATION)
    assert text.endswith("--split.by item holds out single items instead.")
