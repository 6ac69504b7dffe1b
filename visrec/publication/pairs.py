"""Pairs of a row and an item as single integers, for set operations on long arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

from visrec.retrieval.rules import count_keys

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def pair_codes(row_V: Ints, item_V: Ints, items: int) -> Ints:
    """(V,) one number for each pair; `np.divmod` by `items` gives the pair back."""
    return np.asarray(row_V * items + item_V, np.int64)


def distinct(value_V: Ints) -> Ints:
    """The values, sorted, each once."""
    return count_keys(value_V)[0]


def is_pair_among(row_V: Ints, item_V: Ints, sorted_codes: Ints, items: int) -> Bools:
    """(V,) whether each pair is one of the codes; False where the row or the item is below 0."""
    code_V = np.where((row_V >= 0) & (item_V >= 0), pair_codes(row_V, item_V, items), -1)
    if not len(sorted_codes):
        return np.zeros(len(code_V), bool)
    position_V = np.searchsorted(sorted_codes, code_V).clip(max=len(sorted_codes) - 1)
    return np.asarray(sorted_codes[position_V] == code_V)


def count(mask: npt.NDArray[Any]) -> int:
    """How many are true."""
    return int(np.count_nonzero(mask))
