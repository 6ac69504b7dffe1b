"""Rules inside the search against a loop that looks at every item, from the best down."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.retrieval import TableScorer
from tests.shop import groups_of
from visrec.errors import InputError
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.models.scorers import DotScorer, ReRankScorer
from visrec.recommend.rescore import WrittenList, fill_in_order, is_top_k
from visrec.retrieval import near_duplicates
from visrec.retrieval.near_duplicates import near_duplicate_groups
from visrec.retrieval.rules import RuledTopK, Rules, RulesConfig
from visrec.retrieval.topk import TopK, TopKResult
from visrec.sources.items import read_item_groups

Rows = npt.NDArray[np.int64]


def jagged_lists(lists: list[Any]) -> Jagged:
    values = np.concatenate([np.asarray(one, np.int64) for one in [*lists, []]])
    return Jagged(
        values.astype(np.int64), offsets_from_lengths(np.array([len(one) for one in lists]))
    )


def dots(item_Nd: torch.Tensor, user_Ud: torch.Tensor) -> DotScorer:
    return DotScorer(item_Nd, lambda _, user_B: user_Ud[user_B.clamp(min=0)])


def greedy(
    score_N: npt.NDArray[Any],
    closed: set[int],
    k: int,
    cap: int | None,
    group_N: Rows | None,
    same_N: Rows | None,
) -> list[int]:
    """The list by its definition: every item in turn, best first, taken if nothing speaks against
    it."""
    taken: list[int] = []
    for row in sorted(range(len(score_N)), key=lambda row: (-score_N[row], row)):
        if row in closed or len(taken) == k:
            continue
        counted = cap is not None and group_N is not None and group_N[row] >= 0
        if counted and sum(group_N[other] == group_N[row] for other in taken) >= cap:
            continue
        alone = same_N is None or same_N[row] < 0
        if alone or all(same_N[other] != same_N[row] for other in taken):
            taken.append(row)
    return taken


def some_rules(
    rng: np.random.Generator, n: int, cap: int | None, alike: bool
) -> tuple[Rules, Rows | None, Rows | None]:
    group_N = rng.integers(-1, max(n // 8, 1), n) if cap else None
    same_N = groups_of(rng.integers(0, n, (n // 2, 2)).tolist(), n) if alike else None
    return Rules(cap or 0, group_N, same_N), group_N, same_N


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("cap", [None, 1, 3])
@pytest.mark.parametrize("kind", ["dot", "tiles"])
def test_lists_are_those_of_a_loop_over_all_items(kind: str, cap: int | None, alike: bool) -> None:
    """Few distinct scores, so that ties run through every list; and short lists."""
    rng = np.random.default_rng(7)
    for n, k in ((12, 10), (60, 5), (400, 20), (400, 100)):
        users = 40
        rules, group_N, same_N = some_rules(rng, n, cap, alike)
        available_N = rng.random(n) < 0.8
        excluded = jagged_lists(
            [rng.choice(n, rng.integers(0, n // 3), False) for _ in range(users)]
        )
        if kind == "dot":
            item_Nd = rng.integers(-2, 3, (n, 3)).astype(np.float32)
            user_Ud = rng.integers(-2, 3, (users, 3)).astype(np.float32)
            score_UN = user_Ud @ item_Nd.T
            scorer: Any = dots(torch.from_numpy(item_Nd), torch.from_numpy(user_Ud))
        else:
            score_UN = rng.integers(0, 9, (users, n)).astype(np.float32)
            scorer = TableScorer(score_UN)
        search = RuledTopK(TopK(scorer, available_N, k), rules, available_N, k)
        found = search(excluded, np.arange(users), excluded)
        for user in range(users):
            closed = {*np.flatnonzero(~available_N).tolist(), *excluded[user].tolist()}
            truth = greedy(score_UN[user], closed, k, cap, group_N, same_N)
            mine = found.row_BK[user]
            assert mine[mine >= 0].tolist() == truth
            assert found.score_BK[user][mine >= 0].tolist() == score_UN[user][truth].tolist()
            assert np.isneginf(found.score_BK[user][mine < 0]).all()


def test_a_list_is_filled_from_as_far_down_as_it_takes() -> None:
    """One artist has all the best 300 items; with a cap of two, the other 8 are below them."""
    score_1N = -np.arange(1000, dtype=np.float32)[None]
    group_N = np.where(np.arange(1000) < 300, 0, np.arange(1000))
    rules = Rules(2, group_N, None)
    every = np.ones(1000, bool)
    search = RuledTopK(TopK(TableScorer(score_1N), None, 10), rules, every, 10)
    none = jagged_lists([[]])
    assert search(none, np.zeros(1, np.int64), none).row_BK[0].tolist() == [0, 1, *range(300, 308)]


def test_a_cap_that_fills_no_list_is_not_looked_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five groups of 2,000 items and a cap of two: ten entries are all there can be."""
    score_UN = np.random.default_rng(0).random((3, 10_000)).astype(np.float32)
    rules, every = Rules(2, np.arange(10_000) % 5, None), np.ones(10_000, bool)
    assert rules.max_entries(every) == 10
    assert rules.max_entries(np.arange(10_000) < 7) == 7
    search, widths = TopK(TableScorer(score_UN), None, 50), []

    def watched(*args: Any) -> TopKResult:
        widths.append(args[3])
        return search(*args)

    none = jagged_lists([[], [], []])
    monkeypatch.setattr("visrec.retrieval.rules.ENTRIES", 200)  # two users at a time
    found = RuledTopK(watched, rules, every, 50)(none, np.arange(3), none)  # type: ignore[arg-type]
    assert widths == [100, 100]
    for user in range(3):
        truth = greedy(score_UN[user], set(), 50, 2, rules.group_N, None)
        assert found.row_BK[user].tolist() == [*truth, *[-1] * 40]


def reranked(items: int, candidates: int, ranked: list[int]) -> ReRankScorer:
    """Proposes the items in order, ranks them in reverse, and tells how many it ranked at once."""
    item_Nd = torch.arange(items, 0, -1.0)[:, None]
    one = lambda bags, _: torch.ones(len(bags), 1)  # noqa: E731

    def pairs(_: torch.Tensor, row_BC: torch.Tensor) -> torch.Tensor:
        ranked.append(row_BC.shape[1])
        return row_BC.float()

    return ReRankScorer(DotScorer(item_Nd, one), candidates, one, pairs)


def test_a_scorer_of_proposals_is_asked_for_others_of_them() -> None:
    """Six proposals at first, of which a rule leaves one; then six of those that may follow."""
    rules, none = Rules(1, np.arange(40) // 8, None), jagged_lists([[]])
    search = RuledTopK(TopK(reranked(40, 4, []), None, 3), rules, np.ones(40, bool), 3)
    found = search(none, np.zeros(1, np.int64), none)
    # Of 0 to 5, of 8 to 13 and of 16 to 21 the best by their own scores, in their order.
    assert found.row_BK[0].tolist() == [21, 13, 5]
    assert found.score_BK[0].tolist() == [21, 13, 5]


def test_a_rule_never_has_a_whole_catalogue_ranked_again() -> None:
    """Items that may follow lie behind 3,000 of one artist, and the user is to have no others."""
    ranked: list[int] = []
    group_N = np.zeros(3004, np.int64)
    group_N[3000:] = [1, 2, 3, 3]
    search = RuledTopK(
        TopK(reranked(3004, 20, ranked), None, 8), Rules(1, group_N, None), np.ones(3004, bool), 8
    )
    found = search(jagged_lists([[]]), np.zeros(1, np.int64), jagged_lists([[3001]]))
    assert found.row_BK[0].tolist() == [3003, 3000, 19, *[-1] * 5]
    assert sum(ranked) <= 40


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_lists_of_a_reranker_leave_out_nothing_that_may_follow(seed: int, k: int, c: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(5, 120))
    item_Nd, user_Ud, own_N = (
        torch.from_numpy(random.normal(size=shape)).float() for shape in ((n, 3), (4, 3), n)
    )
    users = lambda _, user_B: user_Ud[user_B.clamp(min=0)]  # noqa: E731
    scorer = ReRankScorer(DotScorer(item_Nd, users), c, users, lambda _, row_BC: own_N[row_BC])
    groups = [random.integers(-1, int(random.integers(1, n)), n) for _ in range(2)]
    rules, every = Rules(int(random.integers(1, 4)), *groups), np.ones(n, bool)
    closed = [random.permutation(n)[: random.integers(0, n // 2)] for _ in range(4)]
    search = RuledTopK(TopK(scorer, every, k), rules, every, k)
    found = search(jagged_lists([[]] * 4), np.arange(4), jagged_lists(closed))
    for user in range(4):
        row_K = found.row_BK[user][found.row_BK[user] >= 0]
        open_N = np.ones(n, bool)
        open_N[closed[user]] = False
        assert open_N[row_K].all()
        follow = fill_in_order(np.flatnonzero(open_N), set(row_K.tolist()), None, n)
        may = [
            row
            for row in follow
            if fill_in_order(np.append(row_K, row), set(), rules, k)[-1] == row
        ]
        assert len(row_K) == k or not may
        # The first proposals are looked at all, so none of them is left out for a worse one.
        first = np.argsort(-(item_Nd @ user_Ud[user]).numpy() - np.where(open_N, 1e9, 0))
        sure_N = np.zeros(n, bool)
        sure_N[first[: min(max(2 * k, c), open_N.sum())]] = True
        written = WrittenList(user, row_K, found.score_BK[user, : len(row_K)].astype(float), None)
        assert is_top_k(written, own_N.double().numpy(), sure_N, rules, k)


@pytest.mark.parametrize("nearest", [1, 16])
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9, 1.0]))
@settings(max_examples=25, deadline=None)
def test_near_duplicate_groups_are_the_connected_parts_of_all_pairs(
    nearest: int, seed: int, likeness: float
) -> None:
    """Copies to the bit, noisy ones, and chains of pictures each near the next one."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 120))
    feature_ND = rng.normal(size=(4, 6))[rng.integers(0, 4, n)].astype(np.float16)
    noisy = rng.random(n) < 0.6
    feature_ND[noisy] += rng.normal(scale=0.3, size=(n, 6)).astype(np.float16)[noisy]
    feature_ND[rng.random(n) < 0.05] = 0
    available_N = rng.random(n) < 0.9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_NEAREST", nearest)
        patch.setattr(near_duplicates, "_EXCLUDED", 30)
        found = near_duplicate_groups(feature_ND, available_N, likeness)
    length_N1 = np.linalg.norm(feature_ND.astype(np.float64), axis=1, keepdims=True)
    unit_ND = feature_ND.astype(np.float64) / np.where(length_N1 == 0, 1, length_N1)
    cosine_NN = unit_ND @ unit_ND.T
    cosine_NN[~available_N] = cosine_NN[:, ~available_N] = -1
    # Near the threshold float32 decides.
    if not (np.abs(cosine_NN - (likeness - 1e-6)) < 5e-7).any():
        pairs = np.argwhere(np.triu(cosine_NN >= likeness - 1e-6, 1))
        assert found.tolist() == groups_of(pairs.tolist(), n).tolist()


def test_one_picture_of_many_items_is_one_group_and_no_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feature_ND = np.random.default_rng(0).normal(size=(6000, 8)).astype(np.float16)
    feature_ND[500:5500] = feature_ND[500]
    asked = []
    search = near_duplicates.TopK

    def watched(scorer: DotScorer, *args: Any) -> TopK:
        asked.append(scorer.num_items)
        return search(scorer, *args)

    monkeypatch.setattr(near_duplicates, "TopK", watched)
    found = near_duplicate_groups(feature_ND, np.ones(6000, bool), 0.9999)
    assert np.flatnonzero(found >= 0).tolist() == list(range(500, 5500))
    assert set(found[500:5500].tolist()) == {500}
    assert asked == [1001]


def test_impossible_rules_are_refused_with_the_key(tmp_path: Path) -> None:
    ids = pa.array(["a"])
    table = str(tmp_path / "items.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "stock": [0]}), table)
    with pytest.raises(InputError, match=r"no column maker.*--rules.cap_by"):
        read_item_groups(table, "maker", ids)
    with pytest.raises(InputError, match=r"--rules.cap 0; expected a whole number in \[1, "):
        RulesConfig(cap=0)
    with pytest.raises(InputError, match=r"near_duplicate 1.5; expected a number in \(0, 1"):
        RulesConfig(near_duplicate=1.5)


def test_groups_are_of_any_column(tmp_path: Path) -> None:
    table = str(tmp_path / "items.parquet")
    pq.write_table(pa.table({"item_id": ["b", "a"], "room": [7, None]}), table)
    assert read_item_groups(table, "room", pa.array(["a", "b", "c"])).to_pylist() == [
        None,
        "7",
        None,
    ]
