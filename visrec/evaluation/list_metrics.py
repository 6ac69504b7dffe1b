"""What lists are like apart from being right: how varied, how obscure, how new, how widely spread.

Of a user's list, the K best items outside the profile:

    diversity@K  1 - mean over its pairs of the cosine similarity of their visual features (intra-
                 list similarity, Ziegler et al. 2005): about 1 for items drawn at random. With f_i
                 of length 1, the sum over pairs i != j is |sum of f_i|^2 - sum of |f_i|^2.
    novelty@K    mean over its items of -log2 p_i, with p_i the share of users who took item i
                 before the test basket (Vargas and Castells 2011), in bits. An item that nobody
                 took counts as one that one user took: no item counts more.
    cold@K       the share of its items that nobody took before the test baskets, which is all that
                 a model may have been trained on.

Of all lists together:

    coverage@K   the share of the catalogue that is in somebody's list (Ge et al. 2010).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LENGTH = 100  # K: as many as are published
COVERAGE, DIVERSITY, NOVELTY, COLD = (
    f"{name}@{LENGTH}" for name in ("coverage", "diversity", "novelty", "cold")
)
OF_A_LIST = (DIVERSITY, NOVELTY, COLD)


@dataclass(frozen=True)
class ItemFacts:
    """What is asked of the items in a list.

    Args:
        unit_ND: (N, D) float32 z-scored visual features of length 1, as VisRank compares them.
        novelty_N: (N,) -log2 of the share of users who took each item.
        cold_N: (N,) whether nobody took it before the test baskets.
    """

    unit_ND: npt.NDArray[np.float32]
    novelty_N: Floats
    cold_N: npt.NDArray[np.bool_]


def novelty(takers_N: npt.NDArray[np.int64], users: int) -> Floats:
    """(N,) bits of each item.

    Args:
        takers_N: (N,) users who took each.
        users: how many users there are.
    """
    return np.asarray(-np.log2(np.maximum(takers_N, 1) / users))


def per_list(row_BK: npt.NDArray[np.int64], facts: ItemFacts) -> dict[str, Floats]:
    """Each measure's (B,) values, one a list.

    Args:
        row_BK: (B, K) catalogue rows, best first, -1 behind the last of a shorter list. An empty
            list counts 0 in all, and one of a single item, which has no pairs, 0 in diversity.
        facts: of the N items.
    """
    lists = [row_K[row_K >= 0] for row_K in row_BK]
    return {
        DIVERSITY: np.array([_diversity(facts.unit_ND[rows]) for rows in lists]),
        NOVELTY: np.array([_mean(facts.novelty_N[rows]) for rows in lists]),
        COLD: np.array([_mean(facts.cold_N[rows]) for rows in lists]),
    }


def _mean(value_K: npt.NDArray[np.float64 | np.bool_]) -> float:
    return float(value_K.mean()) if len(value_K) else 0.0


def _diversity(unit_KD: npt.NDArray[np.float32]) -> float:
    """1 - the mean cosine of the pairs; added up in float64, list by list."""
    k = len(unit_KD)
    if k < 2:
        return 0.0
    exact_KD = unit_KD.astype(np.float64)
    whole = float(np.sum(exact_KD.sum(axis=0) ** 2))
    return 1 - (whole - float(np.sum(exact_KD**2))) / (k * (k - 1))


def covered_bits(row_BK: npt.NDArray[np.int64], items: int) -> npt.NDArray[np.uint8]:
    """One bit an item, set where it is in one of the lists; `|` of two blocks is that of both."""
    covered_N = np.zeros(items, bool)
    covered_N[row_BK[row_BK >= 0]] = True
    return np.packbits(covered_N)


def coverage(bits: npt.NDArray[np.uint8], items: int) -> float:
    """The share of the items whose bit is set."""
    return int(np.unpackbits(bits, count=items).sum()) / items
