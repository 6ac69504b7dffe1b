"""Ranks of held-out items equal those of a full sort, whatever the tiles and the batch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.retrieval import KERNELS, TableScorer, select_kernel
from tests.training import jagged_lists
from visrec.evaluation.baselines import BASELINES
from visrec.jagged import Jagged
from visrec.models import MODELS
from visrec.models.base import Catalogue, Sizes
from visrec.models.scorers import DotScorer, ReRankScorer, Scorer
from visrec.retrieval import ranks, topk
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import TargetRanks, rank_targets
from visrec.threads import torch_threads


@pytest.mark.parametrize("dot", [True, False])
@pytest.mark.parametrize(("profile", "target"), [(4, 0), (-1, 0), (0, 4), (0, -1)])
def test_item_that_is_not_ranked_is_refused(dot: bool, profile: int, target: int) -> None:
    vectors_Nd, user_B = torch.ones(4, 1), np.zeros(1, np.int64)
    scorer = (
        DotScorer(vectors_Nd, lambda lists, _: torch.ones(len(lists), 1))
        if dot
        else TableScorer(np.ones((1, 4), np.float32))
    )
    with pytest.raises(IndexError, match="expected rows below 4"):
        rank_targets(scorer, jagged_lists([[profile]]), user_B, jagged_lists([[target]]))


@dataclass(frozen=True)
class Case:
    score_BN: npt.NDArray[Any]
    profiles: list[list[int]]
    targets: list[list[int]]


def _case(users: int, items: int, levels: int, seed: int) -> Case:
    random = np.random.default_rng(seed)
    profiles, targets = [], []
    for _ in range(users):
        order = random.permutation(items)
        held = int(random.integers(1, items + 1))
        known = int(random.integers(0, items - held + 1))
        targets.append(order[:held].tolist())
        profiles.append(order[held : held + known].tolist())
    score_BN = random.integers(0, levels, (users, items)).astype(np.float32)
    return Case(score_BN, profiles, targets)


def _rank(
    case: Case,
    users: slice = slice(None),
    *,
    rows: int = 128,
    columns: int = 8192,
    kept: int = ranks.KEPT_BYTES,
) -> TargetRanks:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "USER_ROWS", rows)
        patch.setattr(topk, "ITEM_COLUMNS", columns)
        patch.setattr(ranks, "KEPT_BYTES", kept)
        return rank_targets(
            TableScorer(case.score_BN),
            jagged_lists(case.profiles[users]),
            np.arange(len(case.score_BN))[users],
            jagged_lists(case.targets[users]),
        )


def _full_sort(case: Case) -> list[tuple[int, int, int]]:
    """(above, others above, others equal) of each held-out item, by sorting and counting."""
    counts = []
    for user, score_N in enumerate(case.score_BN.tolist()):
        ranked = [r for r in range(len(score_N)) if r not in case.profiles[user]]
        ranked.sort(key=lambda r, s=score_N: (-s[r], r))
        others = [r for r in ranked if r not in case.targets[user]]
        for row in case.targets[user]:
            counts.append(
                (
                    ranked.index(row),
                    sum(score_N[r] > score_N[row] for r in others),
                    sum(score_N[r] == score_N[row] for r in others),
                )
            )
    return counts


def _counts(target_ranks: TargetRanks) -> list[tuple[int, int, int]]:
    columns = (target_ranks.above_P, target_ranks.others_above_P, target_ranks.others_equal_P)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(
    users=st.integers(1, 9),
    items=st.integers(1, 40),
    levels=st.sampled_from([1, 2, 5, 10**6]),
    seed=st.integers(0, 2**32),
    rows=st.sampled_from([1, 4, 128]),
    columns=st.sampled_from([1, 5, 39, 8192]),
    kept=st.sampled_from([0, ranks.KEPT_BYTES]),
)
@settings(max_examples=200)
def test_ranks_of_any_scores_equal_a_full_sort(
    users: int, items: int, levels: int, seed: int, rows: int, columns: int, kept: int
) -> None:
    case = _case(users, items, levels, seed)
    found = _rank(case, rows=rows, columns=columns, kept=kept)
    assert _counts(found) == _full_sort(case)
    assert found.ranked_B.tolist() == [items - len(profile) for profile in case.profiles]
    assert np.diff(found.offsets).tolist() == [len(targets) for targets in case.targets]


@KERNELS
@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=60)
def test_dot_products_rank_like_a_table_of_the_same_scores(
    isa: str, seed: int, damaged: bool
) -> None:
    """The compiled kernel against tiles. Integer scores make ties frequent."""
    random = np.random.default_rng(seed)
    users, items, d = random.integers(1, 30), random.integers(12, 150), random.integers(1, 20)
    most = int(random.integers(0, 4))
    item_Nd, user_Bd = (
        random.integers(-most, most + 1, (n, d)).astype(np.float32) for n in (items, users)
    )
    if damaged:
        item_Nd[random.integers(0, items, 3)] = np.nan
        user_Bd[random.integers(0, users)] = np.nan
    drawn = [random.permutation(items)[:12].tolist() for _ in range(users)]
    cuts = random.integers(0, 11, users)
    profiles = jagged_lists([rows[:cut] for rows, cut in zip(drawn, cuts, strict=True)])
    targets = jagged_lists([rows[cut:] for rows, cut in zip(drawn, cuts, strict=True)])
    vectors = torch.from_numpy(user_Bd)
    scorer = DotScorer(torch.from_numpy(item_Nd), lambda _, rows: vectors[rows.clamp(min=0)])
    user_B = np.arange(users)
    with pytest.MonkeyPatch.context() as patch:
        select_kernel(patch, isa)
        found = rank_targets(scorer, profiles, user_B, targets)
    expected = rank_targets(TableScorer(user_Bd @ item_Nd.T), profiles, user_B, targets)
    for name, values in expected.__dict__.items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


@given(st.integers(0, 2**32))
@settings(max_examples=100)
def test_re_ranker_is_ranked_like_its_lists(seed: int) -> None:
    """Integer scores make ties frequent: of the proposer, of the re-ranker, and of both."""
    random = np.random.default_rng(seed)
    users, items, candidates = (int(random.integers(1, most)) for most in (9, 40, 30))
    case = _case(users, items, 4, seed)
    item_Nd, user_Bd = (random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (items, users))
    vectors, score_BN = torch.from_numpy(user_Bd), torch.from_numpy(case.score_BN)
    proposer = DotScorer(torch.from_numpy(item_Nd), lambda _, rows: vectors[rows.clamp(min=0)])
    scorer = ReRankScorer(
        proposer,
        candidates,
        lambda _, rows: rows.clamp(min=0)[:, None].float(),
        lambda user_B1, row_BC: score_BN[user_B1[:, 0].long()].gather(1, row_BC),
    )
    found = rank_targets(
        scorer, jagged_lists(case.profiles), np.arange(users), jagged_lists(case.targets)
    )
    expected = []
    for user in range(users):
        proposed_N = (item_Nd @ user_Bd[user]).tolist()
        ranked = sorted(
            set(range(items)) - set(case.profiles[user]), key=lambda r, s=proposed_N: (-s[r], r)
        )
        key = {r: (0, -case.score_BN[user, r]) for r in ranked[:candidates]}
        key |= {r: (1, -proposed_N[r]) for r in ranked[candidates:]}
        ranked.sort(key=lambda r, k=key: (k[r], r))
        others = [r for r in ranked if r not in case.targets[user]]
        expected += [
            (
                ranked.index(row),
                sum(key[r] < key[row] for r in others),
                sum(key[r] == key[row] for r in others),
            )
            for row in case.targets[user]
        ]
    assert _counts(found) == expected


@KERNELS
@given(st.integers(0, 2**32), st.tuples(*[st.integers(-140, 112)] * 2))
@settings(max_examples=40)
def test_ranks_equal_those_of_float64_at_any_magnitude(
    isa: str, seed: int, powers: tuple[int, int]
) -> None:
    random, (low, high) = np.random.default_rng(seed), sorted(powers)
    users, items = random.integers(1, 20), random.integers(12, 150)
    item_Nd, user_Bd = (
        (random.integers(-9, 10, (n, 5)) * 2.0 ** random.integers(low, high + 1, (n, 1))).astype(
            np.float32
        )
        for n in (items, users)
    )
    drawn = [random.permutation(items)[:12].tolist() for _ in range(users)]
    profiles, targets = (
        jagged_lists([rows[:5] for rows in drawn]),
        jagged_lists([rows[5:] for rows in drawn]),
    )
    vectors = torch.from_numpy(user_Bd)
    scorer = DotScorer(torch.from_numpy(item_Nd), lambda _, rows: vectors[rows.clamp(min=0)])
    with pytest.MonkeyPatch.context() as patch:
        select_kernel(patch, isa)
        found = rank_targets(scorer, profiles, np.arange(users), targets)
    score_BN = user_Bd.astype(np.float64) @ item_Nd.astype(np.float64).T
    case = Case(score_BN, profiles=[r[:5] for r in drawn], targets=[r[5:] for r in drawn])
    assert _counts(found) == _full_sort(case)


def test_user_with_more_held_out_items_than_one_part_is_ranked_exactly() -> None:
    case = _case(8, 200, 20, seed=3)
    assert max(map(len, case.targets)) > 96  # of one user, and so of all
    assert _counts(_rank(case, columns=64)) == _full_sort(case)


def test_more_equal_scores_than_a_byte_holds_are_counted_exactly() -> None:
    # 5,000 items are below one and equal to another: more than 255 for each byte of a word.
    score_BN = np.zeros((2, 5003), np.float32)
    score_BN[:, [0, 5002]] = 1, -1
    case = Case(score_BN, [[], [7]], [[0, 1], [5001, 5002]])
    assert _counts(_rank(case)) == [(0, 0, 0), (1, 0, 5000), (5000, 1, 4999), (5001, 5000, 0)]


def test_nan_scores_never_improve_a_rank() -> None:
    """A held-out item with NaN is last; other items with NaN are above the held-out ones."""
    nan = np.nan
    case = Case(
        np.array([[nan, nan, nan, nan], [3, nan, 1, 2], [3, nan, 1, nan]], np.float32),
        [[], [], [2]],
        [[1], [1, 3], [0]],
    )
    found = _rank(case)
    assert _counts(found) == [(3, 3, 0), (3, 2, 0), (2, 1, 0), (2, 2, 0)]
    assert per_user(found)["auc"].tolist() == [0, 0.25, 0]


def _lists(users: int) -> tuple[Jagged, npt.NDArray[np.int64], Jagged]:
    return jagged_lists([[]] * users), np.arange(users), jagged_lists([[0]] * users)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_ranks_do_not_depend_on_threads_which_are_restored(threads: int) -> None:
    case = _case(21, 30, 4, seed=1)
    with torch_threads(threads):
        assert _counts(_rank(case, rows=4, columns=8)) == _full_sort(case)
        assert torch.get_num_threads() == threads
        with pytest.raises(IndexError):  # users that the table does not have
            rank_targets(TableScorer(case.score_BN[:1]), *_lists(300))
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize("size", [1, 7])
def test_ranks_do_not_depend_on_the_batch_of_users(size: int) -> None:
    case = _case(21, 30, 4, seed=1)
    whole = _counts(_rank(case))
    parts = [
        _counts(_rank(case, slice(b, b + size), rows=4, columns=8)) for b in range(0, 21, size)
    ]
    assert [count for part in parts for count in part] == whole


def test_held_out_items_at_tile_borders_are_counted_once() -> None:
    # Tiles of 8 over 20 items: 0-7, 8-15, 16-19, the last one read from 12.
    borders = [0, 7, 8, 11, 12, 15, 16, 19]
    random = np.random.default_rng(0)
    score_BN = random.permutation(20)[None].astype(np.float32)
    case = Case(score_BN, [[1, 9, 13, 17]], [borders])
    assert _counts(_rank(case, columns=8)) == _full_sort(case)


USERS, ITEMS, DIM = 520, 500, 64
REAL = {
    "curatornet": ("curatornet", MODELS["curatornet"].Config()),
    **{baseline.label: (str(baseline.model), baseline.config) for baseline in BASELINES},
}


def _real_scorer(label: str, profiles: Jagged) -> Scorer:
    """The scorer of a model with random weights and features with many distinct values."""
    name, config = REAL[label]
    random = np.random.default_rng(0)
    catalogue = Catalogue(random.gamma(2.0, size=(ITEMS, DIM)), np.arange(ITEMS))
    torch.manual_seed(0)
    model = MODELS[name](config, Sizes(items=ITEMS, users=USERS, feature_dim=DIM))
    model.fit(catalogue, profiles)
    scorer: Scorer = model.eval().scorer(model.item_arrays(catalogue))
    return scorer


@pytest.mark.parametrize("label", sorted(REAL))
def test_scores_and_metrics_are_bit_identical_for_any_batch_and_threads(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topk, "ITEM_COLUMNS", 200)
    random = np.random.default_rng(1)
    orders = [random.permutation(ITEMS).tolist() for _ in range(USERS)]
    # Profiles of 1 to 40 items, so that blocks of users end anywhere in sums over profile items.
    profiles = jagged_lists([order[: 1 + user % 40] for user, order in enumerate(orders)])
    targets = jagged_lists([order[40 : 41 + user % 3] for user, order in enumerate(orders)])
    scorer = _real_scorer(label, profiles)

    def found(size: int) -> dict[str, bytes]:
        blocks = []
        for start in range(0, USERS, size):
            stop = min(start + size, USERS)
            known, held = profiles.slice(start, stop), targets.slice(start, stop)
            unseen_B = np.full(stop - start, -1)
            best = topk.top_k(scorer, known, unseen_B, known, None, 100)
            metrics = per_user(rank_targets(scorer, known, unseen_B, held))
            blocks.append({**metrics, "items": best.row_BK, "scores": best.score_BK})
        return {name: np.concatenate([b[name] for b in blocks]).tobytes() for name in blocks[0]}

    whole = found(512)
    assert found(7) == whole
    assert found(1) == whole
    with torch_threads(2):
        assert found(512) == whole
