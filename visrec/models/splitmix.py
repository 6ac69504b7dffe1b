"""Random numbers as hashes of a key such as (step, item), the same on every worker."""

from torch import Tensor


def splitmix64(value: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele et al. 2014) of int64 numbers; products wrap around."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def uniform(hash_X: Tensor) -> Tensor:
    """(X,) float64 from 0 to below 1: the upper 53 bits of each hash."""
    return ((hash_X >> 11) & ((1 << 53) - 1)).double() / (1 << 53)
