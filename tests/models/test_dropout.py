"""Hashed dropout: its rate, its independence, and the compiled version."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from visrec.models.arrays import BATCH_KERNEL
from visrec.models.dropout import drop_features, dropout_threshold, scale_and_drop
from visrec.models.feature_scale import FeatureScale
from visrec.native import compile_and_load

KERNEL, WHY = compile_and_load(BATCH_KERNEL)
needs_kernel = pytest.mark.skipif(KERNEL is None, reason=f"no compiled kernel here: {WHY}")
SEEDS = (0, 1, 2**62 + 12345)


@pytest.mark.parametrize("share", [0.125, 0.5, 0.75])
def test_share_of_values_is_dropped_and_the_rest_scaled(share: float) -> None:
    values = drop_features(torch.ones(501, 999), torch.arange(501), 7, dropout_threshold(share))
    assert values.unique().tolist() == pytest.approx([0, 1 / (1 - share)])
    assert (values == 0).float().mean().item() == pytest.approx(share, abs=0.003)
    assert values.mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_values_are_dropped_independently(seed: int) -> None:
    kept_RV = (
        drop_features(torch.ones(20_000, 16), torch.arange(20_000), seed, dropout_threshold(0.5))
        > 0
    )
    correlation = torch.corrcoef(kept_RV.T.float()) - torch.eye(16)
    assert correlation.abs().max() < 0.04  # five standard deviations of 20,000 draws are 0.035
    assert kept_RV.float().mean(dim=0).sub(0.5).abs().max() < 0.02
    other = (
        drop_features(
            torch.ones(20_000, 16), torch.arange(20_000), seed + 1, dropout_threshold(0.5)
        )
        > 0
    )
    assert abs((kept_RV == other).float().mean() - 0.5) < 0.01


def test_mask_of_an_item_does_not_depend_on_the_batch() -> None:
    items = torch.tensor([5, 900, 31, 0])
    values = torch.randn(4, 37)
    whole = drop_features(values, items, 3, dropout_threshold(0.4))
    for rows in ([2], [3, 1], [0, 1, 2, 3]):
        assert torch.equal(
            drop_features(values[rows], items[rows], 3, dropout_threshold(0.4)), whole[rows]
        )


def test_gradient_is_zero_where_values_are_dropped() -> None:
    values = torch.randn(7, 5, requires_grad=True)
    kept = drop_features(values, torch.arange(7), 0, dropout_threshold(0.25))
    kept.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad != 0, kept != 0)
    assert values.grad[kept != 0].unique().tolist() == pytest.approx([4 / 3])


def test_rate_of_zero_drops_nothing() -> None:
    values = torch.randn(3, 9)
    assert torch.equal(drop_features(values, torch.arange(3), 1, dropout_threshold(0.0)), values)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_kernel
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("m", "d"), [(1, 1), (5, 7), (4, 16), (9, 33), (33, 1280)])
@pytest.mark.parametrize("share", [0.0, 1 / 256, 0.5, 0.99])
def test_compiled_pass_equals_torch(count: int, m: int, d: int, share: float) -> None:
    torch.set_num_threads(count)
    random = np.random.default_rng(m * d)
    stored = torch.from_numpy(random.normal(2, 3, (m, d)).astype(np.float16))
    scale = FeatureScale(d)
    scale.fit(random.normal(2, 3, (50, d)).astype(np.float16))
    scale.scale_D[0] = np.inf  # a dimension that never varies
    items = torch.from_numpy(random.choice(10_000, m, replace=False))
    for seed in SEEDS:
        found = scale_and_drop(stored, scale, items, seed, dropout_threshold(share))
        expected = drop_features(scale(stored.float()), items, seed, dropout_threshold(share))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(found == 0, expected == 0)


def test_float64_features_go_through_torch() -> None:
    scale = FeatureScale(4)
    scale.fit(np.random.default_rng(0).normal(size=(9, 4)))
    values = torch.randn(3, 4, dtype=torch.float64)
    found = scale_and_drop(values, scale, torch.arange(3), 5, dropout_threshold(0.5))
    assert found.dtype == torch.float64
    assert torch.equal(
        found, drop_features(scale(values), torch.arange(3), 5, dropout_threshold(0.5))
    )
