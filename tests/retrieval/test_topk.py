"""Top-k lists equal those of a full sort, whatever the tiles, the batch and the ties."""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory import peak_memory
from tests.retrieval import COMPILED, KERNELS, TORCH, TableScorer, select_kernel
from tests.training import jagged_lists
from visrec.errors import VisrecError
from visrec.jagged import Jagged
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import DotScorer
from visrec.retrieval import topk
from visrec.retrieval.kernel import PackedItems, load_kernel
from visrec.retrieval.topk import TopKResult, top_k

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
    """Few users and items, scores with few levels, tiles of all sizes."""
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


def _full_sort(case: Case, user: int) -> list[tuple[int, float]]:
    """(row, score) of the allowed items, best first, ties by row; -1 and -inf behind them."""
    allowed = [
        (-float(score), row)
        for row, score in enumerate(case.score_BN[user])
        if row not in case.excluded[user] and (case.available_N is None or case.available_N[row])
    ]
    best = [(row, -minus) for minus, row in sorted(allowed)[: case.k]]
    return best + [(-1, -np.inf)] * (case.k - len(best))


def _list(best: TopKResult, user: int) -> list[tuple[int, float]]:
    """(row, score) of a user's list."""
    return list(zip(best.row_BK[user].tolist(), best.score_BK[user].tolist(), strict=True))


def _shuffled(lists: list[list[int]]) -> Jagged:
    random = np.random.default_rng(0)
    return jagged_lists([random.permutation(rows).astype(int).tolist() for rows in lists])


def _top_k(case: Case) -> TopKResult:
    users = len(case.score_BN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "USER_ROWS", case.user_rows)
        patch.setattr(topk, "ITEM_COLUMNS", case.item_columns)
        return top_k(
            TableScorer(case.score_BN),
            jagged_lists([[]] * users),
            np.arange(users),
            _shuffled(case.excluded),
            case.available_N,
            case.k,
        )


@given(cases())
@settings(max_examples=300)
def test_lists_of_any_scores_equal_a_full_sort(case: Case) -> None:
    best = _top_k(case)
    assert best.row_BK.shape == best.score_BK.shape == (len(case.score_BN), case.k)
    assert (best.row_BK.dtype, best.score_BK.dtype) == (np.int64, np.float32)
    for user in range(len(case.score_BN)):
        assert _list(best, user) == _full_sort(case, user)


@dataclass(frozen=True)
class Vectors:
    """Users and items whose products are integers, so that sums in any order are equal."""

    item_Nd: Floats
    user_Bd: Floats
    excluded: list[list[int]]
    available_N: npt.NDArray[np.bool_] | None
    k: int

    def search(self, rows: slice = slice(None)) -> TopKResult:
        user_Bd = torch.from_numpy(self.user_Bd)
        scorer = DotScorer(torch.from_numpy(self.item_Nd), lambda _, user_B: user_Bd[user_B])
        user_B = np.arange(len(self.user_Bd))[rows]
        nothing, excluded = jagged_lists([[]] * len(user_B)), _shuffled(self.excluded[rows])
        return top_k(scorer, nothing, user_B, excluded, self.available_N, self.k)

    def case(self) -> Case:
        exact = self.user_Bd.astype(np.float64) @ self.item_Nd.astype(np.float64).T
        return Case(exact.astype(np.float32), self.excluded, self.available_N, self.k, 128, 8192)


@st.composite
def vectors(draw: st.DrawFn) -> Vectors:
    """A few blocks of 64 items and groups of 6 users; many equal, or long and short ones mixed."""
    users, items = draw(st.integers(1, 14)), draw(st.integers(1, 400))
    d = draw(st.sampled_from([1, 3, 4, 17, 64]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([0, 1, 3, 100]))
    item_Nd = random.integers(-levels, levels + 1, (items, d)).astype(np.float32)
    if draw(st.booleans()):
        item_Nd *= 2.0 ** random.integers(-3, 4, (items, 1))
    item_Nd += draw(st.sampled_from([0, 500]))  # a common offset
    user_Bd = random.integers(-9, 10, (users, d)).astype(np.float32)
    user_Bd[random.random(users) < 0.2] = 0
    share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    return Vectors(
        item_Nd=item_Nd,
        user_Bd=user_Bd,
        excluded=[np.flatnonzero(random.random(items) < share).tolist() for _ in range(users)],
        available_N=random.random(items) < 0.7 if draw(st.booleans()) else None,
        k=draw(st.integers(1, 130)),
    )


@KERNELS
@given(vectors())
@settings(max_examples=150)
def test_lists_of_dot_products_equal_a_full_sort(isa: str, given_: Vectors) -> None:
    with pytest.MonkeyPatch.context() as patch:
        select_kernel(patch, isa)
        best = given_.search()
    assert (best.row_BK.dtype, best.score_BK.dtype) == (np.int64, np.float32)
    case = given_.case()
    for user in range(len(given_.user_Bd)):
        assert _list(best, user) == _full_sort(case, user)


def _normal(users: int, items: int, d: int) -> Vectors:
    random = np.random.default_rng(0)
    item_Nd, user_Bd = (
        (random.normal(size=(n, d)) * random.uniform(0.2, 5, (n, 1))).astype(np.float32)
        for n in (items, users)
    )
    excluded = [random.choice(items, 20, replace=False).tolist() for _ in range(users)]
    return Vectors(item_Nd + 0.5, user_Bd, excluded, None, 100)


@KERNELS
@pytest.mark.parametrize("k", [10, 100])  # for a small k, torch looks at groups of scores first
def test_lists_of_dot_products_equal_those_in_float64(
    isa: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_kernel(monkeypatch, isa)
    given_ = replace(_normal(users=140, items=9000, d=50), k=k)
    best = given_.search()
    exact = given_.user_Bd.astype(np.float64) @ given_.item_Nd.astype(np.float64).T
    for user, rows in enumerate(given_.excluded):
        exact[user, rows] = -np.inf
    expected = np.argsort(-exact.astype(np.float32), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(best.row_BK, expected)
    np.testing.assert_allclose(
        best.score_BK, np.take_along_axis(exact, expected, axis=1), rtol=6e-8
    )


@KERNELS
def test_nearly_equal_items_are_ordered_by_rounded_score_and_row(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Near 64, float32 scores are 7.6e-6 apart, so many items share the best one.
    select_kernel(monkeypatch, isa)
    random = np.random.default_rng(0)
    item_Nd = (1 + 1e-6 * random.normal(size=(1000, 64))).astype(np.float32)
    given_ = Vectors(item_Nd, np.ones((7, 64), np.float32), [[0]] * 7, None, 10)
    best, expected = given_.search(), _full_sort(given_.case(), 0)
    assert len({score for _, score in expected}) < 10
    for user in range(7):
        assert _list(best, user) == expected


@KERNELS
def test_subnormal_vectors_are_ordered_exactly(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    select_kernel(monkeypatch, isa)
    # The other items cancel out, so the mean is tiny, and so are these two without the mean.
    random = np.random.default_rng(0)
    half_Nd = random.integers(-3, 4, (199, 8)).astype(np.float32)
    tiny_Nd = np.full((2, 8), 1e-44, np.float32)
    user_Bd = random.integers(-3, 4, (3, 8)).astype(np.float32)
    user_Bd[1] = 1e-44
    given_ = Vectors(np.concatenate([tiny_Nd, half_Nd, -half_Nd]), user_Bd, [[]] * 3, None, 20)
    best = given_.search()
    for user in (0, 2):
        assert _list(best, user) == _full_sort(given_.case(), user)
    assert (best.row_BK[1] >= 0).all()


@st.composite
def magnitudes(draw: st.DrawFn) -> Vectors:
    """`vectors` scaled by powers of two that float32 just represents."""
    given_ = draw(vectors())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = sorted(draw(st.tuples(*[st.integers(-145, 112)] * 2)))
    same_for_all = draw(st.booleans())
    parts = [
        part * 2.0 ** random.integers(low, high + 1, (1 if same_for_all else len(part), 1))
        for part in (given_.item_Nd, given_.user_Bd)
    ]
    item_Nd, user_Bd = (part.astype(np.float32) for part in parts)
    if draw(st.booleans()):
        item_Nd[random.random(len(item_Nd)) < 0.5] = item_Nd[0]  # a placeholder picture
    return replace(given_, item_Nd=item_Nd, user_Bd=user_Bd)


@KERNELS
@given(magnitudes())
@settings(max_examples=150)
def test_finite_vectors_give_the_lists_of_float64_or_an_error(isa: str, given_: Vectors) -> None:
    with np.errstate(over="ignore"):
        case = given_.case()
    expected = [_full_sort(case, user) for user in range(len(given_.user_Bd))]
    listed = [score for one in expected for row, score in one if row >= 0]
    with pytest.MonkeyPatch.context() as patch:
        select_kernel(patch, isa)
        if np.isfinite(listed).all():
            best = given_.search()
            for user, truth in enumerate(expected):
                assert _list(best, user) == truth
        else:
            with pytest.raises(VisrecError, match=r"beyond float32.*learning_rate"):
                given_.search()


def test_memory_of_a_search_does_not_depend_on_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the buffers of 96 users kept all of 300,000 equal items, they would take 700 MB."""
    select_kernel(monkeypatch, COMPILED[0])
    item_Nd = np.random.default_rng(0).normal(size=(300_000, 4)).astype(np.float32)
    equal_Nd = np.repeat(item_Nd[:1], len(item_Nd), axis=0)
    user_Bd = np.random.default_rng(1).normal(size=(96, 4)).astype(np.float32)
    peaks = []
    for vectors_Nd in (item_Nd, equal_Nd):
        packed = PackedItems(vectors_Nd, None, cast(Any, load_kernel()))
        with peak_memory() as peak:
            rows, scores = packed.top_k(user_Bd, Jagged.empty(96), 100)
        peaks.append(peak.grown)
    assert (rows == np.arange(100)).all()
    assert (scores == scores[:, :1]).all()
    assert peaks[1] < 1.2 * peaks[0] + 8 * 2**20  # a buffer may be 8 times as large: 6 MB in all


def test_most_popular_lists_equal_a_search_by_counts() -> None:
    random = np.random.default_rng(0)
    count_N = random.integers(0, 4, 60).astype(np.float32)
    available_N = random.random(60) < 0.8
    excluded = jagged_lists(
        [random.choice(60, n, replace=False).tolist() for n in (0, 3, 60, 41, 0)]
    )
    nothing, user_B = jagged_lists([[]] * 5), np.full(5, -1)
    scorer = DotScorer(
        torch.from_numpy(count_N)[:, None], lambda lists, _: torch.ones(len(lists), 1)
    )
    search = topk.TopK(scorer, available_N, 10)
    for k in (10, 59):
        expected = search(nothing, user_B, excluded, k)
        found = topk.MostPopular(count_N, available_N)(nothing, user_B, excluded, k)
        np.testing.assert_array_equal(found.row_BK, expected.row_BK)
        np.testing.assert_array_equal(found.score_BK, expected.score_BK)


@KERNELS
def test_lists_and_scores_do_not_depend_on_the_batch(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_kernel(monkeypatch, isa)
    given_ = _normal(users=150, items=2000, d=30)
    whole = given_.search()
    for size in (1, 7):
        for start in range(0, 21, size):
            part = given_.search(slice(start, start + size))
            np.testing.assert_array_equal(part.row_BK, whole.row_BK[start : start + size])
            np.testing.assert_array_equal(part.score_BK, whole.score_BK[start : start + size])


@pytest.mark.parametrize("isa", COMPILED)
def test_compiled_kernel_and_torch_give_the_same_lists(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_ = _normal(users=40, items=3000, d=200)
    select_kernel(monkeypatch, isa)
    compiled = given_.search()
    select_kernel(monkeypatch, TORCH)
    plain = given_.search()
    np.testing.assert_array_equal(compiled.row_BK, plain.row_BK)
    np.testing.assert_array_equal(compiled.score_BK, plain.score_BK)


@KERNELS
def test_products_of_the_largest_bytes_do_not_saturate(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries of one size become the largest bytes, and 16 bits hold few of their products."""
    select_kernel(monkeypatch, isa)
    random = np.random.default_rng(0)
    item_Nd, user_Bd = (np.sign(random.normal(size=(n, 64))).astype(np.float32) for n in (300, 8))
    user_Bd[0], user_Bd[1] = 1, -1
    item_Nd[:50], item_Nd[50:100] = 1, -1
    item_Nd[:100] *= np.sign(random.random((100, 64)) - 0.05)
    given_ = Vectors(item_Nd, user_Bd, [[]] * 8, None, 60)
    best, case = given_.search(), given_.case()
    for user in range(8):
        assert _list(best, user) == _full_sort(case, user)


@pytest.mark.parametrize("kind", ["item", "user"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_with_nan_or_infinity_are_refused(kind: str, value: float) -> None:
    given_ = _normal(users=3, items=100, d=4)
    (given_.item_Nd if kind == "item" else given_.user_Bd)[2, 1] = value
    with pytest.raises(VisrecError, match=f"{kind} vectors.*learning_rate"):
        given_.search()


def test_search_for_no_users_returns_no_lists() -> None:
    case = Case(np.zeros((0, 5), np.float32), [], None, 3, 128, 8192)
    assert _top_k(case).row_BK.shape == (0, 3)


def test_scores_are_computed_in_blocks_of_one_shape_for_any_number_of_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Products of one shape only make the scores independent of the batch.
    monkeypatch.setattr(topk, "USER_ROWS", 4)
    monkeypatch.setattr(topk, "ITEM_COLUMNS", 6)
    shapes = set()

    class RecordingScorer(TableScorer):
        def prepare(self, profiles: JaggedTensor, user_B: torch.Tensor) -> torch.Tensor:
            assert len(profiles) == len(user_B) == 4
            return super().prepare(profiles, user_B)

        def tile(self, state: torch.Tensor, start: int, stop: int) -> torch.Tensor:
            shapes.add(stop - start)
            return super().tile(state, start, stop)

    scores = np.random.default_rng(0).normal(size=(9, 20)).astype(np.float32)
    top_k(
        RecordingScorer(scores),
        jagged_lists([[]] * 9),
        np.arange(9),
        jagged_lists([[]] * 9),
        None,
        3,
    )
    assert shapes == {6}
