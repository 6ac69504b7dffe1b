"""The gates of runs with rules: lists against them are held back, lists they shorten are not."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from tests.chaos.harness import measured
from tests.publication.test_gates import AGAINST_RULES, CONSUMED, WRONG_LENGTH
from tests.recommend import with_queries
from tests.shop import (
    K,
    Shop,
    failed,
    groups_of,
    may_follow,
    open_shop,
)
from visrec.jagged import Jagged
from visrec.publication.list_tables import Layout
from visrec.retrieval.rules import Rules

# Every twentieth of the 400 items has no group, each group twenty. Every two look the same.
NO_RULES, CAPPED = Rules(0, None, None), Rules(2, np.arange(400) % 20 - 1, None)
ALIKE = Rules(0, None, groups_of([(n, n + 1) for n in range(0, 400, 2)], 400))
BOTH = replace(CAPPED, near_duplicate_N=ALIKE.near_duplicate_N)
FEW = Rules(2, np.arange(400) % 4, None)  # two of each of four groups, and nothing is left
Ruled = Callable[[Shop, int], bool]


def put(against: Rules, keeping: Rules = NO_RULES) -> Ruled:
    """A mutant with an open item behind a list, or as its last, against one rule alone."""

    def mutate(shop: Shop, user: int) -> bool:
        data, row_K, score_K = shop.data, shop.row_UK[user], shop.score_UK[user]
        place = min(int((row_K >= 0).sum()), K - 1)
        before = row_K[:place].tolist()
        closed = {*shop.queries.profiles[user].tolist(), *row_K.tolist()}
        for item in set(np.flatnonzero(data.available_N).tolist()) - closed:
            if not may_follow(item, before, against) and may_follow(item, before, keeping):
                row_K[place], score_K[place] = item, np.nextafter(score_K[place - 1], -np.inf)
                return True
        return False

    return mutate


def cut(shop: Shop, user: int) -> bool:
    shop.row_UK[user, (shop.row_UK[user] >= 0).sum() - 1] = -1
    return True


def block(shop: Shop, user: int) -> bool:
    item, row = shop.row_UK[user, 3:4], np.array([user])
    shop.data = with_queries(shop.data, blocked=Jagged.from_row_ids(row, item, len(shop.row_UK)))
    return True


RULED: Mapping[str, tuple[str, Rules, Ruled]] = {
    "a third of a group": (AGAINST_RULES, BOTH, put(CAPPED, ALIKE)),
    "a ninth of four groups": (AGAINST_RULES, FEW, put(FEW)),
    "two that look the same": (AGAINST_RULES, BOTH, put(ALIKE, CAPPED)),
    "a list cut short": (WRONG_LENGTH, BOTH, cut),
    "a short list cut shorter": (WRONG_LENGTH, FEW, cut),
    "an entry that is blocked": (CONSUMED, BOTH, block),
}


@pytest.mark.parametrize("cold", [False, True], ids=["own", "fallback"])
@pytest.mark.parametrize("layout", ["nested", "long"])
@pytest.mark.parametrize("name", RULED)
def test_list_against_the_rules_is_held_back(name: str, layout: Layout, cold: bool) -> None:
    """It is the only such list, and only the gate that says what is wrong with it fails."""
    key, rules, mutate = RULED[name]
    shop = open_shop(layout=layout, rules=rules)
    assert not failed(shop)
    users = np.flatnonzero(shop.queries.cold_U == cold)
    assert any(mutate(shop, int(user)) for user in users)
    shop.tables = shop.write()
    assert failed(shop) == {key}
    assert [gate.found for gate in shop.gates() if gate.name == key] == [1]
    measured(9, mutants_tried=1, mutants_held_back=1)


@pytest.mark.parametrize("layout", ["nested", "long"])
@pytest.mark.parametrize("rules", [None, CAPPED, ALIKE, BOTH, FEW])
def test_clean_run_with_rules_is_not_held_back(rules: Rules | None, layout: Layout) -> None:
    """Some of what each would be shown is blocked; by few groups every list is short."""
    free = open_shop(3, layout=layout, rules=rules)
    first_U = free.row_UK[:, 0]
    blocked = Jagged.from_row_ids(np.arange(200), first_U, 200)
    shop = open_shop(3, layout=layout, rules=rules, blocked=blocked)
    assert not (shop.row_UK == first_U[:, None]).any()
    assert ((shop.row_UK >= 0).sum(axis=1) == (8 if rules is FEW else K)).all()
    for night in (free, shop):
        assert [gate.sentence for gate in night.gates() if gate.outcome == "failed"] == []
        assert {gate.key for gate in night.gates() if gate.outcome == "skipped"} == {""}
    measured(9, clean_nights=2)


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_short_lists_pass_if_rules_and_profiles_leave_no_item(
    layout: Layout,
) -> None:
    rules = Rules(1, np.arange(15) % 9, groups_of([(0, 1), (1, 2), (3, 4)], 15))
    shop = open_shop(5, users=60, items=15, layout=layout, rules=rules)
    shop.before = []
    lengths = (shop.row_UK >= 0).sum(axis=1)
    assert len(set(lengths.tolist())) > 2
    assert lengths.max() < 9
    assert not failed(shop)
