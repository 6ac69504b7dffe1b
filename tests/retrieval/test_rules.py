"""Rules inside the search against a loop over all items, from the best down."""

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
from tests.training import jagged_lists
from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import DotScorer, ReRankScorer
from visrec.recommend.rescore import WrittenList, fill_in_order, is_top_k
from visrec.retrieval.rules import RuledTopK, Rules, RulesConfig
from visrec.retrieval.topk import TopK, TopKResult
from visrec.sources.items import read_item_groups
from visrec.storage.input_table import InputTable

Rows = npt.NDArray[np.int64]


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
    """The list by its definition: every item in turn, best first, unless a rule skips it."""
    taken: list[int] = []
    for row in sorted(range(len(score_N)), key=lambda row: (-score_N[row], row)):
        if row in closed or len(taken) == k:
            continue
        is_capped = cap is not None and group_N is not None and group_N[row] >= 0
        if is_capped and sum(group_N[other] == group_N[row] for other in taken) >= cap:
            continue
        is_unique = same_N is None or same_N[row] < 0
        if is_unique or all(same_N[other] != same_N[row] for other in taken):
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
def test_lists_equal_a_loop_over_all_items(kind: str, cap: int | None, alike: bool) -> None:
    """Few distinct scores, so that every list has ties; and lists that cannot be filled."""
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
            row_K, score_K = found.row_BK[user], found.score_BK[user]
            assert row_K[row_K >= 0].tolist() == truth
            assert score_K[row_K >= 0].tolist() == score_UN[user][truth].tolist()
            assert np.isneginf(score_K[row_K < 0]).all()


def test_list_is_filled_even_if_the_rules_skip_many_items() -> None:
    """One artist has the 300 best items; with a cap of two, the other 8 come from below them."""
    score_1N = -np.arange(1000, dtype=np.float32)[None]
    group_N = np.where(np.arange(1000) < 300, 0, np.arange(1000))
    rules = Rules(2, group_N, None)
    every = np.ones(1000, bool)
    search = RuledTopK(TopK(TableScorer(score_1N), None, 10), rules, every, 10)
    none = jagged_lists([[]])
    assert search(none, np.zeros(1, np.int64), none).row_BK[0].tolist() == [0, 1, *range(300, 308)]


class RecordingSearch:
    """A search that records the list lengths that it is asked for."""

    num_proposals = 0

    def __init__(self, search: TopK) -> None:
        self._search = search
        self.lengths: list[int] = []

    def __call__(self, profiles: Jagged, user_B: Rows, excluded: Jagged, k: int) -> TopKResult:
        self.lengths.append(k)
        return self._search(profiles, user_B, excluded, k)


def test_search_ends_when_the_cap_allows_no_more_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """With five groups of 2,000 items and a cap of two, a list has at most ten entries."""
    score_UN = np.random.default_rng(0).random((3, 10_000)).astype(np.float32)
    rules, every = Rules(2, np.arange(10_000) % 5, None), np.ones(10_000, bool)
    assert rules.max_entries(every) == 10
    assert rules.max_entries(np.arange(10_000) < 7) == 7
    search = RecordingSearch(TopK(TableScorer(score_UN), None, 50))
    none = jagged_lists([[], [], []])
    monkeypatch.setattr("visrec.retrieval.rules.ENTRIES", 200)  # two users at a time
    found = RuledTopK(search, rules, every, 50)(none, np.arange(3), none)
    assert search.lengths == [100, 100]
    for user in range(3):
        truth = greedy(score_UN[user], set(), 50, 2, rules.group_N, None)
        assert found.row_BK[user].tolist() == [*truth, *[-1] * 40]


def reverse_reranker(items: int, num_proposals: int, scored: list[int]) -> ReRankScorer:
    """Proposes the items in order and ranks them in reverse; appends how many it scores at once."""
    item_Nd = torch.arange(items, 0, -1.0)[:, None]

    def encode_users(profiles: JaggedTensor, _: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(profiles), 1)

    def score_pairs(_: torch.Tensor, row_BC: torch.Tensor) -> torch.Tensor:
        scored.append(row_BC.shape[1])
        return row_BC.float()

    proposer = DotScorer(item_Nd, encode_users)
    return ReRankScorer(proposer, num_proposals, encode_users, score_pairs)


def test_proposer_is_searched_again_until_the_list_is_full() -> None:
    """The rule leaves one of the first six proposals; then six of the items that may follow."""
    rules, none = Rules(1, np.arange(40) // 8, None), jagged_lists([[]])
    search = RuledTopK(TopK(reverse_reranker(40, 4, []), None, 3), rules, np.ones(40, bool), 3)
    found = search(none, np.zeros(1, np.int64), none)
    # The best of 0 to 5, of 8 to 13 and of 16 to 21, sorted by the re-ranker's scores.
    assert found.row_BK[0].tolist() == [21, 13, 5]
    assert found.score_BK[0].tolist() == [21, 13, 5]


def test_rules_never_re_rank_the_whole_catalogue() -> None:
    """The items that may follow are below 3,000 of one artist, and one of them is excluded."""
    scored: list[int] = []
    group_N = np.zeros(3004, np.int64)
    group_N[3000:] = [1, 2, 3, 3]
    search = RuledTopK(
        TopK(reverse_reranker(3004, 20, scored), None, 8),
        Rules(1, group_N, None),
        np.ones(3004, bool),
        8,
    )
    found = search(jagged_lists([[]]), np.zeros(1, np.int64), jagged_lists([[3001]]))
    assert found.row_BK[0].tolist() == [3003, 3000, 19, *[-1] * 5]
    assert sum(scored) <= 40


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 20))
@settings(max_examples=60)
def test_list_of_a_re_ranker_lacks_no_item_that_may_follow(seed: int, k: int, c: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(5, 120))
    item_Nd, user_Ud, score_N = (
        torch.from_numpy(random.normal(size=shape)).float() for shape in ((n, 3), (4, 3), n)
    )
    proposer = dots(item_Nd, user_Ud)
    scorer = ReRankScorer(proposer, c, proposer.prepare, lambda _, row_BC: score_N[row_BC])
    groups = [random.integers(-1, int(random.integers(1, n)), n) for _ in range(2)]
    rules, every = Rules(int(random.integers(1, 4)), *groups), np.ones(n, bool)
    closed = [random.permutation(n)[: random.integers(0, n // 2)] for _ in range(4)]
    search = RuledTopK(TopK(scorer, every, k), rules, every, k)
    found = search(jagged_lists([[]] * 4), np.arange(4), jagged_lists(closed))
    for user in range(4):
        row_K = found.row_BK[user][found.row_BK[user] >= 0]
        allowed_N = np.ones(n, bool)
        allowed_N[closed[user]] = False
        assert allowed_N[row_K].all()
        rest = fill_in_order(np.flatnonzero(allowed_N), set(row_K.tolist()), None, n)
        may_follow = [
            row for row in rest if fill_in_order(np.append(row_K, row), set(), rules, k)[-1] == row
        ]
        assert len(row_K) == k or not may_follow
        # All of the first proposals are scored, so none of them is missing in favor of a worse one.
        first = np.argsort(-(item_Nd @ user_Ud[user]).numpy() - np.where(allowed_N, 1e9, 0))
        proposed_N = np.zeros(n, bool)
        proposed_N[first[: min(max(2 * k, c), allowed_N.sum())]] = True
        written = WrittenList(user, row_K, found.score_BK[user, : len(row_K)].astype(float), None)
        assert is_top_k(written, score_N.double().numpy(), proposed_N, rules, k)


def test_impossible_rules_are_refused_with_the_key(tmp_path: Path) -> None:
    ids = pa.array(["a"])
    table = str(tmp_path / "items.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "stock": [0]}), table)
    with pytest.raises(InputError, match=r"no column maker.*--rules.cap_by"):
        read_item_groups(InputTable(uri=table, key="items"), "maker", ids)
    with pytest.raises(InputError, match=r"--rules.cap 0; expected a whole number in \[1, "):
        RulesConfig(cap=0)
    with pytest.raises(InputError, match=r"near_duplicate 1.5; expected a number in \(0, 1"):
        RulesConfig(near_duplicate=1.5)


def test_item_groups_may_be_of_any_column(tmp_path: Path) -> None:
    table = str(tmp_path / "items.parquet")
    pq.write_table(pa.table({"item_id": ["b", "a"], "room": [7, None]}), table)
    assert read_item_groups(
        InputTable(uri=table, key="items"), "room", pa.array(["a", "b", "c"])
    ).to_pylist() == [
        None,
        "7",
        None,
    ]
