"""Metrics of ranked lists: pure functions of the ranks of held-out items.

With n held-out items at 0-based ranks r_1 < ... < r_n among M ranked items:

    AUC     mean over k of (M - n - others above k - half of those equal) / (M - n); without ties
            this is ((M - (r_k + 1)) - (n - k)) / (M - n), with k from 1
    RR      1 / (r_1 + 1)
    P@K     hits in the first K / K            R@K   hits in the first K / n
    nDCG@K  sum over hits of 1 / log2(r + 2), divided by that of min(n, K) hits at the top
    nDCG_tutorial@K  the same sum, divided by the sum if all hits were at the top; 0 without hits.
            This is the definition in the tutorial on visual recommenders at IUI 2021, for
            comparison with its tables. It is never below nDCG.

Shapes: B users, P held-out items of all users.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from visrec.retrieval.ranks import TargetRanks

Floats = npt.NDArray[np.float64]
CUTOFFS = (20, 100, 200)
_AT_CUTOFFS = ("precision", "recall", "ndcg", "ndcg_tutorial")
METRICS = ("auc", "rr", *(f"{name}@{k}" for k in CUTOFFS for name in _AT_CUTOFFS))


def per_user(ranks: TargetRanks, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, Floats]:
    """Each metric's (B,) values, one per user; every user must have a held-out item."""
    starts = ranks.offsets[:-1]
    n_B = np.diff(ranks.offsets)
    rank_P = ranks.above_P
    # Without negatives, every order is right.
    auc_B = 1 - _sum_per_user(ranks.misordered_P, starts) / n_B / np.maximum(ranks.negatives_B, 1)
    metrics = {"auc": auc_B, "rr": 1 / (np.minimum.reduceat(rank_P, starts) + 1.0)}
    for k in cutoffs:
        is_hit_P = rank_P < k
        hits_B = _sum_per_user(is_hit_P, starts)
        metrics[f"precision@{k}"] = hits_B / k
        metrics[f"recall@{k}"] = hits_B / n_B
        dcg_B = _sum_per_user(is_hit_P / np.log2(rank_P + 2.0), starts)
        metrics[f"ndcg@{k}"] = dcg_B / _ideal_dcg(np.minimum(n_B, k))
        metrics[f"ndcg_tutorial@{k}"] = dcg_B / _ideal_dcg(np.maximum(hits_B, 1).astype(np.int64))
    return metrics


def _sum_per_user(value_P: npt.NDArray[np.generic], starts: npt.NDArray[np.int64]) -> Floats:
    """(B,) the sum of each user's values."""
    return np.asarray(np.add.reduceat(value_P.astype(np.float64), starts))


def _ideal_dcg(hits_B: npt.NDArray[np.int64]) -> Floats:
    """(B,) the DCG of that many hits at the top of a list."""
    gains = 1 / np.log2(np.arange(int(hits_B.max())) + 2.0)
    return np.asarray(np.cumsum(gains)[hits_B - 1])
