"""The z-score: numpy's in float64, and zero for a dimension that never varies."""

import numpy as np
import pytest
import torch

from visrec.models import feature_scale
from visrec.models.feature_scale import FeatureScale


def _scaled(feature_ND: np.ndarray) -> np.ndarray:
    scale = FeatureScale(feature_ND.shape[1])
    scale.fit(feature_ND)
    return scale(torch.from_numpy(feature_ND.astype(np.float32))).numpy()


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("rows", [7, 65536])
def test_equals_numpy_in_float64(kind: type, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_scale, "_ROWS", rows)  # 7 does not divide the rows
    random = np.random.default_rng(0)
    feature_ND = (random.normal(size=(100, 5)) * [1, 0.01, 30, 5, 2] + [0, 1, -40, 9, 100]).astype(
        kind
    )
    exact = feature_ND.astype(np.float64)
    expected = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    np.testing.assert_allclose(_scaled(feature_ND), expected, rtol=1e-4, atol=1e-4)


def test_sums_of_large_float16_do_not_overflow() -> None:
    feature_ND = np.array([[60000.0], [50000.0]] * 500, np.float16)
    np.testing.assert_allclose(_scaled(feature_ND)[:2], [[1], [-1]], rtol=1e-5)


def test_dimension_that_never_varies_becomes_zero() -> None:
    feature_ND = np.array([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]], np.float32)
    scaled = _scaled(feature_ND)
    assert (scaled[:, 1] == 0).all()
    assert np.isfinite(scaled).all()


def test_new_value_of_a_constant_dimension_becomes_zero() -> None:
    scale = FeatureScale(1)
    scale.fit(np.full((3, 1), 2.0, np.float32))
    assert scale(torch.tensor([[7.0]])).tolist() == [[0.0]]


def test_scale_is_saved_with_the_weights() -> None:
    scale, other = FeatureScale(3), FeatureScale(3)
    scale.fit(np.random.default_rng(0).normal(size=(9, 3)))
    other.load_state_dict(scale.state_dict())
    rows = torch.randn(4, 3)
    assert torch.equal(scale(rows), other(rows))
