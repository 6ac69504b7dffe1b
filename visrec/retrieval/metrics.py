"""Metrics of ranked lists: pure functions of where the held-out items stand.

With n held-out items at 0-based ranks r_1 < ... < r_n among M ranked items:

    AUC     mean over k of (M - n - others above k - half of those equal) / (M - n); with no ties
            this is ((M - (r_k + 1)) - (n - k)) / (M - n), k from 1
    RR      1 / (r_1 + 1)
    P@K     hits in the first K / K            R@K   hits in the first K / n
    nDCG@K  sum over hits of 1 / log2(r + 2), over that of min(n, K) hits at the top
    nDCG_tutorial@K  the same over that of as many hits at the top as were found, 0 where none was:
            as the tutorial on visual recommenders at IUI 2021 divides, for comparison with its
            tables. Never below nDCG.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from visrec.retrieval.ranks import TargetRanks

Floats = npt.NDArray[np.float64]
CUTOFFS = (20, 100, 200)


def per_user(standing: TargetRanks, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, Floats]:
    """Each metric's (B,) values, one a user; every user has at least one held-out item."""
    starts = standing.offsets[:-1]
    n_B = np.diff(standing.offsets)
    rank_P = standing.above_P
    negatives_B = standing.ranked_B - n_B
    lost_P = standing.others_above_P + 0.5 * standing.others_equal_P
    # With nothing to rank below, every order is right.
    auc_B = 1 - _sums(lost_P, starts) / n_B / np.maximum(negatives_B, 1)
    metrics = {"auc": auc_B, "rr": 1 / (np.minimum.reduceat(rank_P, starts) + 1.0)}
    for k in cutoffs:
        hit_P = rank_P < k
        hits_B = _sums(hit_P, starts)
        metrics[f"precision@{k}"] = hits_B / k
        metrics[f"recall@{k}"] = hits_B / n_B
        dcg_B = _sums(hit_P / np.log2(rank_P + 2.0), starts)
        metrics[f"ndcg@{k}"] = dcg_B / _ideal(np.minimum(n_B, k))
        metrics[f"ndcg_tutorial@{k}"] = dcg_B / _ideal(np.maximum(hits_B, 1).astype(np.int64))
    return metrics


def _sums(value_P: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> Floats:
    """(B,) each user's sum of the P values."""
    return np.asarray(np.add.reduceat(value_P.astype(np.float64), starts))


def _ideal(hits_B: npt.NDArray[np.int64]) -> Floats:
    """(B,) the DCG of that many hits at the top."""
    gains = 1 / np.log2(np.arange(int(hits_B.max())) + 2.0)
    return np.asarray(np.cumsum(gains)[hits_B - 1])
