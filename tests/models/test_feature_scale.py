"""The z-score, numpy's in float64 and zero where nothing varies; and whitening."""

import numpy as np
import pytest
import torch

from visrec.models import feature_scale
from visrec.models.feature_scale import FeatureScale, Whitening


def _scaled(feature_ND: np.ndarray) -> np.ndarray:
    scale = FeatureScale(feature_ND.shape[1])
    scale.fit(feature_ND)
    return scale(torch.from_numpy(feature_ND.astype(np.float32))).numpy()


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("rows", [7, 65536])
def test_equals_numpy_in_float64(kind: type, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_scale, "_ROWS", rows)  # 7: blocks that do not divide the rows
    random = np.random.default_rng(0)
    feature_ND = (random.normal(size=(100, 5)) * [1, 0.01, 30, 5, 2] + [0, 1, -40, 9, 100]).astype(
        kind
    )
    exact = feature_ND.astype(np.float64)
    expected = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    np.testing.assert_allclose(_scaled(feature_ND), expected, rtol=1e-4, atol=1e-4)


def test_many_large_float16_do_not_overflow() -> None:
    feature_ND = np.array([[60000.0], [50000.0]] * 500, np.float16)
    np.testing.assert_allclose(_scaled(feature_ND)[:2], [[1], [-1]], rtol=1e-5)


def test_dimension_that_never_varies_becomes_zero() -> None:
    feature_ND = np.array([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]], np.float32)
    scaled = _scaled(feature_ND)
    assert (scaled[:, 1] == 0).all()
    assert np.isfinite(scaled).all()


def test_new_value_in_such_a_dimension_is_zero_too() -> None:
    scale = FeatureScale(1)
    scale.fit(np.full((3, 1), 2.0, np.float32))
    assert scale(torch.tensor([[7.0]])).tolist() == [[0.0]]


def test_scale_travels_with_the_weights() -> None:
    scale, other = FeatureScale(3), FeatureScale(3)
    scale.fit(np.random.default_rng(0).normal(size=(9, 3)))
    other.load_state_dict(scale.state_dict())
    rows = torch.randn(4, 3)
    assert torch.equal(scale(rows), other(rows))


def _whitened(feature_ND: np.ndarray, components: int) -> np.ndarray:
    whitening = Whitening(feature_ND.shape[1], components)
    whitening.fit(feature_ND)
    return whitening(torch.from_numpy(feature_ND.astype(np.float32))).double().numpy()


@pytest.mark.parametrize("rows", [7, 65536])
def test_whitened_features_are_uncorrelated_and_of_variance_one(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_scale, "_ROWS", rows)
    random = np.random.default_rng(0)
    feature_ND = random.normal(size=(200, 6)) @ random.normal(size=(6, 6)) + 3
    white_NK = _whitened(feature_ND, 4)
    np.testing.assert_allclose(white_NK.T @ white_NK / 200, np.eye(4), atol=1e-4)


def test_components_are_those_of_largest_variance() -> None:
    random = np.random.default_rng(0)
    shared_N = random.normal(size=(500, 1))  # in four columns of five: the first component
    alike = shared_N + 0.1 * random.normal(size=(500, 4))
    feature_ND = np.concatenate([alike, random.normal(size=(500, 1))], axis=1)
    first_N = _whitened(feature_ND, 1)[:, 0]
    assert abs(np.corrcoef(first_N, shared_N[:, 0])[0, 1]) > 0.99


def test_directions_without_variance_become_zero() -> None:
    feature_ND = np.random.default_rng(0).normal(size=(4, 9))  # four items: three directions
    white_NK = _whitened(feature_ND, 6)
    np.testing.assert_allclose(white_NK[:, 3:], 0, atol=1e-5)
    np.testing.assert_allclose((white_NK[:, :3] ** 2).mean(axis=0), 1, rtol=1e-3)
