"""List metrics against loops over their definitions, and against lists with known values."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visrec.evaluation.list_metrics import (
    COLD_SHARE,
    DIVERSITY,
    NOVELTY,
    ItemStatistics,
    coverage,
    covered_bits,
    novelty,
    per_list,
)


def planted_statistics(
    random: np.random.Generator, items: int, users: int
) -> tuple[ItemStatistics, list[int]]:
    unit_ND = random.normal(size=(items, 5))
    unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
    unit_ND[random.random(items) < 0.1] = 0  # the features of an average picture have no direction
    takers = random.integers(0, users + 1, items)
    cold_N = random.random(items) < 0.3
    return ItemStatistics(
        unit_ND.astype(np.float32), novelty(takers, users), cold_N
    ), takers.tolist()


@given(
    items=st.integers(1, 30),
    users=st.integers(1, 9),
    lists=st.integers(1, 6),
    k=st.integers(0, 12),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100)
def test_list_metrics_equal_loops_over_pairs_and_items(
    items: int, users: int, lists: int, k: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    known, takers = planted_statistics(random, items, users)
    row_BK = np.full((lists, k), -1)
    for row_K in row_BK:
        size = int(random.integers(0, min(k, items) + 1))
        row_K[:size] = random.permutation(items)[:size]
    found = per_list(row_BK, known)
    unit = known.unit_ND.astype(np.float64)
    for b, row_K in enumerate(row_BK.tolist()):
        rows = [row for row in row_K if row >= 0]
        cosines = [float(unit[i] @ unit[j]) for i in rows for j in rows if i != j]
        diversity = 1 - sum(cosines) / len(cosines) if cosines else 0
        bits = [-math.log2(max(takers[row], 1) / users) for row in rows]
        assert found[DIVERSITY][b] == pytest.approx(diversity, abs=1e-12)
        assert found[NOVELTY][b] == pytest.approx(sum(bits) / len(rows) if rows else 0, abs=1e-12)
        cold = [bool(known.cold_N[row]) for row in rows]
        assert found[COLD_SHARE][b] == pytest.approx(sum(cold) / len(rows) if rows else 0)
    in_a_list = {row for row_K in row_BK.tolist() for row in row_K if row >= 0}
    assert coverage(covered_bits(row_BK, items), items) == len(in_a_list) / items


def _diversity(unit_ND: npt.ArrayLike) -> float:
    unit = np.array(unit_ND, np.float32)
    known = ItemStatistics(unit, np.zeros(len(unit)), np.zeros(len(unit), bool))
    return float(per_list(np.arange(len(unit))[None], known)[DIVERSITY][0])


def test_diversity_of_orthogonal_and_opposite_pictures() -> None:
    east, west, north = [1, 0], [-1, 0], [0, 1]
    assert _diversity([east, east, east]) == 0
    assert _diversity([east, north]) == 1
    assert _diversity([east, west]) == 2
    # Pairs: east-west -1, east-north 0, west-north 0.
    assert _diversity([east, west, north]) == pytest.approx(1 + 1 / 3)


def test_novelty_is_in_bits_and_bounded() -> None:
    # Items taken by all 8 users, by half, by one, and by nobody, which counts as one.
    np.testing.assert_allclose(novelty(np.array([8, 4, 1, 0]), 8), [0, 1, 3, 3])


@given(
    items=st.integers(1, 40),
    lists=st.lists(st.lists(st.integers(0, 39), max_size=5), min_size=1, max_size=9),
    cut=st.integers(0, 9),
)
def test_combined_coverage_of_blocks_is_that_of_all_lists(
    items: int, lists: list[list[int]], cut: int
) -> None:
    row_BK = np.array([([row % items for row in rows] + [-1] * 5)[:5] for rows in lists])
    parts = [covered_bits(part, items) for part in (row_BK[:cut], row_BK[cut:])]
    assert (parts[0] | parts[1]).tolist() == covered_bits(row_BK, items).tolist()
