"""Random numbers that are a function of what they are for: the same wherever they are asked for."""

from torch import Tensor


def splitmix64(value: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014) over int64, wrapping."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return value ^ ((value >> 31) & 0x1FFFFFFFF)
