"""Dropout by bytes: how many values it takes, and what it does to the rest."""

import pytest
import torch
from torch import nn

from visrec.models.dropout import ByteDropout


@pytest.mark.parametrize("share", [0.125, 0.5, 0.75])
def test_takes_its_share_and_scales_the_rest(share: float) -> None:
    torch.manual_seed(0)
    dropped = ByteDropout(share).train()(torch.ones(501, 999))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - share)])
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=0.003)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)


def test_values_are_taken_independently() -> None:
    torch.manual_seed(0)
    kept_RV = ByteDropout(0.5).train()(torch.ones(20_000, 16)) > 0
    together = torch.corrcoef(kept_RV.T.float()) - torch.eye(16)
    assert together.abs().max() < 0.04  # five standard deviations of 20,000 draws are 0.035
    assert kept_RV.float().mean(dim=0).sub(0.5).abs().max() < 0.02


def test_drawn_by_torch_s_seed_anew_each_time() -> None:
    dropout, values = ByteDropout(0.5).train(), torch.ones(64)
    torch.manual_seed(1)
    first, second = dropout(values), dropout(values)
    torch.manual_seed(1)
    assert torch.equal(dropout(values), first)
    assert not torch.equal(first, second)


def test_gradient_is_that_of_what_is_kept() -> None:
    values = torch.randn(7, 5, requires_grad=True)
    torch.manual_seed(0)
    dropped = ByteDropout(0.25).train()(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad != 0, dropped != 0)
    assert values.grad[dropped != 0].unique().tolist() == pytest.approx([4 / 3])


@pytest.mark.parametrize("dropout", [ByteDropout(0.5).eval(), ByteDropout(0.0).train()])
def test_nothing_is_dropped_in_evaluation_or_by_none(dropout: nn.Module) -> None:
    values = torch.randn(9)
    assert torch.equal(dropout(values), values)
