"""Fingerprints of items and of queries: hashes of everything that decides a score.

Under one model, equal fingerprints mean equal scores. A fingerprint has 64 bits: among a million
items or queries, the probability that any two collide is 3e-8.

Shapes: N items, B queries, F flags.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.hashes import Hashes, combine_hashes, hash_lists, hash_rows, hash_strings
from visrec.jagged import Jagged


def item_fingerprints(
    names: Sequence[pa.Array], columns: Sequence[npt.NDArray[np.generic]]
) -> Hashes:
    """(N,) the fingerprints of the items.

    Args:
        names: string columns of length N, among them the item ids; null where an item has no value.
        columns: numeric columns; the first axis has length N.
    """
    rows = np.arange(len(names[0]))
    return combine_hashes(
        *map(hash_strings, names), *(hash_rows(column, rows) for column in columns)
    )


def query_fingerprints(
    fingerprint_N: Hashes, flags_BF: npt.NDArray[np.bool_], *lists: Jagged
) -> Hashes:
    """(B,) the fingerprints of the queries: their items, in order, and their flags.

    Args:
        fingerprint_N: (N,) the fingerprints of the items.
        flags_BF: (B, F) properties of each query.
        lists: each holds B lists of item rows.
    """
    list_hashes = (hash_lists(fingerprint_N[each.values], each) for each in lists)
    return combine_hashes(hash_rows(flags_BF, np.arange(len(flags_BF))), *list_hashes)
