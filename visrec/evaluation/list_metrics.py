"""Beyond-accuracy metrics: diversity, novelty, share of cold items, and coverage of the catalogue.

Of a user's list, which holds the K best items outside the profile:

    diversity@K  1 - the mean cosine similarity of the visual features over all pairs of items
                 (intra-list similarity, Ziegler et al. 2005): about 1 for random items. If the
                 features f_i have length 1, the sum over pairs i != j is
                 |sum of f_i|^2 - sum of |f_i|^2.
    novelty@K    the mean over the items of -log2 p_i in bits, where p_i is the share of users who
                 took item i before the test baskets (Vargas and Castells 2011). An item that nobody
                 took counts as if one user had taken it, so novelty has an upper bound.
    cold@K       the share of items that nobody took before the test baskets. No model has seen an
                 interaction with them in training.

Of all lists together:

    coverage@K   the share of the catalogue that is in at least one list (Ge et al. 2010).

Shapes: N items, B users, K list length, D feature width.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LENGTH = 100  # K: the default length of published lists
COVERAGE, DIVERSITY, NOVELTY, COLD_SHARE = (
    f"{name}@{LENGTH}" for name in ("coverage", "diversity", "novelty", "cold")
)
PER_LIST_METRICS = (DIVERSITY, NOVELTY, COLD_SHARE)


@dataclass(frozen=True)
class ItemStatistics:
    """What the metrics of a list are computed from.

    Attributes:
        unit_ND: (N, D) float32 z-scored visual features, scaled to length 1 as in VisRank.
        novelty_N: (N,) bits of novelty of each item.
        cold_N: (N,) whether nobody took the item before the test baskets.
    """

    unit_ND: npt.NDArray[np.float32]
    novelty_N: Floats
    cold_N: npt.NDArray[np.bool_]


def novelty(takers_N: npt.NDArray[np.int64], users: int) -> Floats:
    """(N,) bits of novelty of each item.

    Args:
        takers_N: (N,) how many users took each item.
        users: how many users there are.
    """
    return np.asarray(-np.log2(np.maximum(takers_N, 1) / users))


def per_list(row_BK: npt.NDArray[np.int64], items: ItemStatistics) -> dict[str, Floats]:
    """The (B,) values of each metric. All metrics of an empty list are 0, and the diversity of a
    list of one item, which has no pairs, is 0 as well.

    Args:
        row_BK: (B, K) catalogue rows, best first, padded with -1.
        items: statistics of the N items.
    """
    lists = [row_K[row_K >= 0] for row_K in row_BK]
    return {
        DIVERSITY: np.array([_diversity(items.unit_ND[rows]) for rows in lists]),
        NOVELTY: np.array([_mean(items.novelty_N[rows]) for rows in lists]),
        COLD_SHARE: np.array([_mean(items.cold_N[rows]) for rows in lists]),
    }


def _mean(value_K: npt.NDArray[np.float64 | np.bool_]) -> float:
    return float(value_K.mean()) if len(value_K) else 0.0


def _diversity(unit_KD: npt.NDArray[np.float32]) -> float:
    """1 - the mean cosine of all pairs, computed in float64."""
    k = len(unit_KD)
    if k < 2:
        return 0.0
    exact_KD = unit_KD.astype(np.float64)
    sum_squared = float(np.sum(exact_KD.sum(axis=0) ** 2))
    return 1 - (sum_squared - float(np.sum(exact_KD**2))) / (k * (k - 1))


def covered_bits(row_BK: npt.NDArray[np.int64], items: int) -> npt.NDArray[np.uint8]:
    """One bit per item, set if the item is in at least one list. `|` combines blocks of lists."""
    covered_N = np.zeros(items, bool)
    covered_N[row_BK[row_BK >= 0]] = True
    return np.packbits(covered_N)


def coverage(bits: npt.NDArray[np.uint8], items: int) -> float:
    """The share of items whose bit is set."""
    return int(np.unpackbits(bits, count=items).sum()) / items
