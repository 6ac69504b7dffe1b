"""VisRank against plain loops over z-scored cosines."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.memory import peak_memory
from tests.training import jagged_lists
from visrec.models.base import Catalogue, Sizes
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import Scorer
from visrec.models.visrank import VisRank, VisRankConfig, _NearestScorer

ITEMS, DIM = 50, 6
FEATURES = np.random.default_rng(0).gamma(2.0, size=(ITEMS, DIM)).astype(np.float16)
# Profiles of 1 to 40 items; more than 256 in all, so that similarities take several blocks.
PROFILES = [
    np.random.default_rng(n).choice(ITEMS, n, replace=False).tolist()
    for n in (1, 40, 2, 3, 40, 33, 40, 4, 40, 39, 7)
]
MODES = [
    VisRankConfig(mode="max"),
    VisRankConfig(mode="mean"),
    VisRankConfig(mode="mean_top_k"),
    VisRankConfig(mode="mean_top_k", top_k=5),
]


def _scorer(config: VisRankConfig) -> Scorer:
    model = VisRank(config, Sizes(items=ITEMS, users=0, feature_dim=DIM))
    catalogue = Catalogue(FEATURES, np.arange(ITEMS))
    model.fit(catalogue, jagged_lists([]))
    return model.scorer(model.item_arrays(catalogue))


def _scores(config: VisRankConfig, profiles: list[list[int]]) -> npt.NDArray[np.float32]:
    scorer = _scorer(config)
    state = scorer.prepare(
        JaggedTensor.from_jagged(jagged_lists(profiles)), torch.full((len(profiles),), -1)
    )
    return scorer.tile(state, 0, ITEMS).numpy()


def _expected(config: VisRankConfig, profile: list[int]) -> list[float]:
    exact = FEATURES.astype(np.float64)
    z = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    scores = []
    for item in range(ITEMS):
        cosines = []
        for other in profile:
            length = np.sqrt(np.sum(z[item] ** 2)) * np.sqrt(np.sum(z[other] ** 2))
            cosines.append(float(np.sum(z[item] * z[other]) / length))
        cosines.sort(reverse=True)
        best = {"max": 1, "mean": len(cosines), "mean_top_k": config.top_k}[config.mode]
        chosen = cosines[:best]
        scores.append(sum(chosen) / len(chosen))
    return scores


@pytest.mark.parametrize("config", MODES, ids=str)
def test_scores_equal_plain_loops(config: VisRankConfig) -> None:
    expected = [_expected(config, profile) for profile in PROFILES]
    np.testing.assert_allclose(_scores(config, PROFILES), expected, atol=1e-5)


@pytest.mark.parametrize("config", MODES, ids=str)
def test_empty_profiles_score_zero_and_change_no_other_scores(config: VisRankConfig) -> None:
    alone = _scores(config, [[3, 4]])
    mixed = _scores(config, [[], [3, 4], []])
    np.testing.assert_array_equal(mixed[[0, 2]], 0)
    np.testing.assert_allclose(mixed[1], alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(_scores(config, [[], []]), np.zeros((2, ITEMS)))


@pytest.mark.parametrize("config", MODES, ids=str)
@pytest.mark.parametrize("entries", [1, 64, 100])
def test_profiles_that_span_blocks_have_the_same_scores(
    monkeypatch: pytest.MonkeyPatch, config: VisRankConfig, entries: int
) -> None:
    profiles = [[], *PROFILES, [], [1], []]
    whole = _scores(config, profiles)
    monkeypatch.setattr("visrec.models.visrank._BLOCK_ENTRIES", entries)
    np.testing.assert_allclose(_scores(config, profiles), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [MODES[0], MODES[2]], ids=str)
def test_memory_does_not_grow_with_the_length_of_profiles(config: VisRankConfig) -> None:
    items = 4096
    scorer = _NearestScorer(torch.ones(items, 2), 1 if config.mode == "max" else config.top_k)
    profiles = JaggedTensor.from_jagged(jagged_lists([list(range(items)) * 4]))
    scorer.tile(profiles, 0, 64)
    with peak_memory() as peak:
        scorer.tile(profiles, 0, items)
    assert peak.grown < 64e6  # all similarities of the profile would take 268 MB


def test_item_vectors_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _scorer(VisRankConfig()).space_Nd
    monkeypatch.setattr("visrec.models.arrays.ENCODE_ROWS", 7)
    blocks = _scorer(VisRankConfig()).space_Nd
    assert whole is not None
    assert blocks is not None
    torch.testing.assert_close(blocks, whole, rtol=1e-6, atol=1e-6)
