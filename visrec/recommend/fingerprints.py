"""Marks of items and of the owners of lists: hashes of all that scoring knows of them.

Equal marks mean equal scores, under the same model: 64 bits, of which a chance collision among a
million items or users has a probability of 3e-8.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.hashes import Hashes, combined, hash_lists, hash_rows, hash_strings
from visrec.jagged import Jagged


def item_fingerprints(
    names: Sequence[pa.Array], columns: Sequence[npt.NDArray[np.generic]]
) -> Hashes:
    """(N,) the marks of items.

    Args:
        names: strings of each, null where there is none; the id among them.
        columns: numbers of each, the first axis N.
    """
    every = np.arange(len(names[0]))
    return combined(*map(hash_strings, names), *(hash_rows(each, every) for each in columns))


def query_fingerprints(
    fingerprint_N: Hashes, flags_BF: npt.NDArray[np.bool_], *lists: Jagged
) -> Hashes:
    """(B,) the marks of owners: their items in order, and whatever else is told of them.

    Args:
        fingerprint_N: of the items.
        flags_BF: facts of each owner.
        lists: B lists of items each.
    """
    of_lists = (hash_lists(fingerprint_N[each.values], each) for each in lists)
    return combined(hash_rows(flags_BF, np.arange(len(flags_BF))), *of_lists)
