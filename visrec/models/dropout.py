"""Dropout (Srivastava et al. 2014) that draws a byte for each value."""

import torch
from torch import Tensor, nn

_LEVELS = 256


class ByteDropout(nn.Module):
    """Sets a share of the values to zero in training and scales the rest, so that means stay.

    torch's own draws a double for each value: of the features of 2,312 items, 54 ms on one core
    instead of 18, which was a third of a training step.

    Args:
        share: from 0 to below 1; rounded to the next 1/256.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self._zeroed = min(round(share * _LEVELS), _LEVELS - 1)

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape."""
        if not self.training or not self._zeroed:
            return values
        count = values.numel()
        words = torch.empty(-(-count // 8), dtype=torch.int64, device=values.device)
        # From the least of all integers on: all 64 bits are random.
        drawn = words.random_(-(2**63), None).view(torch.uint8)[:count].view(values.shape)
        return values * (drawn >= self._zeroed) * (_LEVELS / (_LEVELS - self._zeroed))
