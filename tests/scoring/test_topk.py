"""Top-k lists: those of a full sort, whatever the tiles, the batch and the ties."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scoring import TableScorer
from tests.training import ragged
from visrec.models.contract import Bags, DotScorer
from visrec.ragged import Ragged
from visrec.scoring import topk
from visrec.scoring.topk import Best, nearest_of_profile, top_k

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    score_BN: Floats
    excluded: list[list[int]]
    available_N: npt.NDArray[np.bool_] | None
    k: int
    user_rows: int
    item_columns: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few users and items, scores of few levels, tiles of all sizes."""
    users, items = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 2, 5, 10**6]))
    share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    return Case(
        score_BN=(random.integers(0, levels, (users, items)) - levels // 2).astype(np.float32),
        excluded=[np.flatnonzero(random.random(items) < share).tolist() for _ in range(users)],
        available_N=random.random(items) < 0.7 if draw(st.booleans()) else None,
        k=draw(st.integers(1, 45)),
        user_rows=draw(st.sampled_from([1, 3, 128])),
        item_columns=draw(st.sampled_from([1, 4, 7, 39, 8192])),
    )


def _sorted_whole(case: Case, user: int) -> list[tuple[int, float]]:
    """(row, score) of the candidates, best first, ties by row; -1 and -inf behind them."""
    candidates = [
        (-float(score), row)
        for row, score in enumerate(case.score_BN[user])
        if row not in case.excluded[user] and (case.available_N is None or case.available_N[row])
    ]
    best = [(row, -minus) for minus, row in sorted(candidates)[: case.k]]
    return best + [(-1, -np.inf)] * (case.k - len(best))


def _shuffled(lists: list[list[int]]) -> Ragged:
    random = np.random.default_rng(0)
    return ragged([random.permutation(rows).astype(int).tolist() for rows in lists])


def _top_k(case: Case) -> Best:
    users = len(case.score_BN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "USER_ROWS", case.user_rows)
        patch.setattr(topk, "ITEM_COLUMNS", case.item_columns)
        return top_k(
            TableScorer(case.score_BN),
            ragged([[]] * users),
            np.arange(users),
            _shuffled(case.excluded),
            case.available_N,
            case.k,
        )


@given(cases())
@settings(max_examples=300, deadline=None)
def test_equals_a_full_sort(case: Case) -> None:
    best = _top_k(case)
    assert best.row_BK.shape == best.score_BK.shape == (len(case.score_BN), case.k)
    assert (best.row_BK.dtype, best.score_BK.dtype) == (np.int64, np.float32)
    for user in range(len(case.score_BN)):
        found = list(zip(best.row_BK[user].tolist(), best.score_BK[user].tolist(), strict=True))
        assert found == _sorted_whole(case, user)


@pytest.mark.parametrize("columns", [1, 16, 100, 8192])
def test_dot_products_equal_those_in_float64(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "ITEM_COLUMNS", columns)
    random = np.random.default_rng(0)
    vector_Nd = random.normal(size=(100, 9)).astype(np.float32)
    user_Bd = random.normal(size=(140, 9)).astype(np.float32)
    scorer = DotScorer(
        torch.from_numpy(vector_Nd), lambda _, rows: torch.from_numpy(user_Bd)[rows.clamp(min=0)]
    )
    excluded = ragged([[b % 100, (b + 7) % 100] for b in range(140)])
    best = top_k(scorer, ragged([[]] * 140), np.arange(140), excluded, None, 12)
    exact = user_Bd.astype(np.float64) @ vector_Nd.astype(np.float64).T
    exact[excluded.owners, excluded.values] = -np.inf
    expected = np.argsort(-exact, axis=1)[:, :12]
    np.testing.assert_array_equal(best.row_BK, expected)
    np.testing.assert_allclose(
        best.score_BK, np.take_along_axis(exact, expected, axis=1), rtol=1e-4, atol=1e-5
    )


def test_nobody_gives_no_lists() -> None:
    case = Case(np.zeros((0, 5), np.float32), [], None, 3, 128, 8192)
    assert _top_k(case).row_BK.shape == (0, 3)


def test_every_block_has_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    # What makes the scores independent of the batch: products of one shape only.
    monkeypatch.setattr(topk, "USER_ROWS", 4)
    monkeypatch.setattr(topk, "ITEM_COLUMNS", 6)
    shapes = set()

    class Watched(TableScorer):
        def prepare(self, profiles: Bags, user_B: torch.Tensor) -> torch.Tensor:
            assert len(profiles) == len(user_B) == 4
            return super().prepare(profiles, user_B)

        def tile(self, state: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            shapes.add(stop - start)
            return super().tile(state, start, stop)

    scores = np.random.default_rng(0).normal(size=(9, 20)).astype(np.float32)
    top_k(Watched(scores), ragged([[]] * 9), np.arange(9), ragged([[]] * 9), None, 3)
    assert shapes == {6}


def _nearest(space_Nd: Floats, profile: list[int], rows: list[int]) -> Iterator[int]:
    for row in rows:
        if row < 0 or not profile:
            yield -1
            continue
        cosines = [
            float(
                np.dot(space_Nd[row], space_Nd[p])
                / np.linalg.norm(space_Nd[row])
                / np.linalg.norm(space_Nd[p])
            )
            for p in profile
        ]
        yield profile[cosines.index(max(cosines))]


def test_nearest_profile_item_is_that_of_plain_cosines() -> None:
    random = np.random.default_rng(0)
    space_Nd = (random.normal(size=(50, 6)) * random.uniform(0.1, 9, (50, 1))).astype(np.float32)
    profiles = [random.choice(50, n, replace=False).tolist() for n in range(1, 12)]
    profiles[4] = []
    row_BK = random.integers(0, 50, (len(profiles), 7))
    row_BK[3, 2:] = -1
    row_BK[6] = -1
    nearest = nearest_of_profile(torch.from_numpy(space_Nd), ragged(profiles), row_BK)
    expected = [
        list(_nearest(space_Nd.astype(np.float64), profile, row_K))
        for profile, row_K in zip(profiles, row_BK.tolist(), strict=True)
    ]
    assert nearest.tolist() == expected


def test_nearest_of_twins_is_the_first_of_the_profile() -> None:
    space_Nd = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    nearest = nearest_of_profile(space_Nd, ragged([[1, 2, 0]]), np.array([[3]]))
    assert nearest.tolist() == [[2]]
