"""Random numbers as hashes of what they are for, so that every worker computes the same ones."""

from torch import Tensor


def splitmix64(value: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele et al. 2014) over int64, wrapping."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return value ^ ((value >> 31) & 0x1FFFFFFFF)
