"""Groups of near-duplicates against the connected components of all pairs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shop import groups_of
from visrec.models.scorers import DotScorer
from visrec.retrieval import near_duplicates
from visrec.retrieval.near_duplicates import near_duplicate_groups
from visrec.retrieval.topk import TopK


@pytest.mark.parametrize("nearest", [1, 16])
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9, 1.0]))
@settings(max_examples=25)
def test_groups_are_the_connected_components_of_all_pairs(
    nearest: int, seed: int, threshold: float
) -> None:
    """Bit-identical copies, noisy ones, and chains of pictures that are near the next one."""
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
        found = near_duplicate_groups(feature_ND, available_N, threshold)
    length_N1 = np.linalg.norm(feature_ND.astype(np.float64), axis=1, keepdims=True)
    unit_ND = feature_ND.astype(np.float64) / np.where(length_N1 == 0, 1, length_N1)
    cosine_NN = unit_ND @ unit_ND.T
    cosine_NN[~available_N] = cosine_NN[:, ~available_N] = -1
    # Near the threshold, float32 rounding decides.
    if not (np.abs(cosine_NN - (threshold - 1e-6)) < 5e-7).any():
        pairs = np.argwhere(np.triu(cosine_NN >= threshold - 1e-6, 1))
        assert found.tolist() == groups_of(pairs.tolist(), n).tolist()


def test_identical_pictures_are_one_group_without_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feature_ND = np.random.default_rng(0).normal(size=(6000, 8)).astype(np.float16)
    feature_ND[500:5500] = feature_ND[500]
    searched = []
    search = near_duplicates.TopK

    def recording(scorer: DotScorer, *args: Any) -> TopK:
        searched.append(scorer.num_items)
        return search(scorer, *args)

    monkeypatch.setattr(near_duplicates, "TopK", recording)
    found = near_duplicate_groups(feature_ND, np.ones(6000, bool), 0.9999)
    assert np.flatnonzero(found >= 0).tolist() == list(range(500, 5500))
    assert set(found[500:5500].tolist()) == {500}
    assert searched == [1001]
