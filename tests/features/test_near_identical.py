"""Groups of near-identical pictures, compared with all pairs."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse.csgraph import connected_components

from visrec.features import near_identical
from visrec.features.near_identical import near_identical_groups, near_identical_groups_within

DIM = 16


def _same_partition(one: npt.NDArray[np.integer], other: npt.NDArray[np.integer]) -> bool:
    pairs = len(set(zip(one.tolist(), other.tolist(), strict=True)))
    return pairs == len(set(one.tolist())) == len(set(other.tolist()))


def test_near_identical_pictures_of_one_code_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_identical, "_BAND_ROWS", 7)  # so that groups span several blocks
    monkeypatch.setattr(near_identical, "_BLOCK_ROWS", 11)
    random = np.random.default_rng(1)
    unique = 10 * random.normal(size=(60, DIM))
    copy_N = random.integers(0, 60, 200)
    # A factor leaves the cosine as it is; a change of 1 in 100 does not.
    feature_ND = (unique[copy_N] * random.choice([1.0, 2.0], (200, 1))).astype(np.float16)
    feature_ND[:20] *= 1 + random.choice([-0.01, 0.01], (20, DIM)).astype(np.float16)
    code_N = np.zeros(200, np.int32)
    code_N[100:] = 1
    group_N = near_identical_groups_within(feature_ND, code_N)
    wide_ND = feature_ND.astype(np.float64)
    wide_ND /= np.linalg.norm(wide_ND, axis=1, keepdims=True)
    near_NN = (wide_ND @ wide_ND.T >= 1 - 1e-7) & (code_N[:, None] == code_N)
    expected_N = np.arange(200)  # here near-identity is transitive
    for n in range(200):
        expected_N[n] = np.flatnonzero(near_NN[n])[0]
    assert 60 < len(set(expected_N.tolist())) < 160
    assert _same_partition(group_N, expected_N)


def test_chain_of_near_identical_pictures_is_one_group() -> None:
    angle_N = np.arange(40) * 4e-4  # a step's cosine is 1 - 8e-8, two steps' 1 - 3.2e-7
    feature_ND = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)
    group_N = near_identical_groups_within(feature_ND, np.zeros(40, np.int32))  # type: ignore[arg-type]
    assert set(group_N.tolist()) == {0}
    halves_N = np.repeat([0, 1], 20).astype(np.int32)
    group_N = near_identical_groups_within(feature_ND, halves_N)  # type: ignore[arg-type]
    assert _same_partition(group_N, halves_N)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("dim", [2, 8, 300])
def test_groups_equal_those_of_all_pairs(dim: int, kind: Any) -> None:
    """Copies at other lengths and with noise above and below the threshold, against all pairs."""
    for seed in range(4):
        random = np.random.default_rng(seed)
        row_N, noise_N = (
            random.integers(0, 60, 300),
            random.choice([0, 1e-5, 1e-4, 3e-4, 1e-3], 300),
        )
        feature_ND = random.normal(size=(60, dim))[row_N] * random.uniform(0.5, 2, (300, 1))
        feature_ND *= 1 + noise_N[:, None] * random.normal(size=(300, dim))
        feature_ND[random.integers(0, 300, 5)] = 0
        feature_ND = feature_ND.astype(kind)
        unit_ND = feature_ND.astype(np.float64)
        unit_ND /= np.maximum(np.linalg.norm(unit_ND, axis=1, keepdims=True), 1e-300)
        expected = connected_components(unit_ND @ unit_ND.T >= 1 - 1e-7, directed=False)[1]
        found = near_identical_groups(feature_ND)
        np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)
        assert 60 < len(set(expected.tolist())) < 300
