"""Metrics of ranked lists: pure functions of where the held-out items stand.

With n held-out items at 0-based ranks r_1 < ... < r_n among M ranked items:

    AUC     mean over k of (M - n - others above k - half of those equal) / (M - n); with no ties
            this is ((M - (r_k + 1)) - (n - k)) / (M - n), k from 1
    RR      1 / (r_1 + 1)
    P@K     hits in the first K / K            R@K   hits in the first K / n
    nDCG@K  sum over hits of 1 / log2(r + 2), over that of min(n, K) hits at the top
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from visrec.evaluation.ranking import Standing

Floats = npt.NDArray[np.float64]
CUTOFFS = (20, 100, 200)
_RESAMPLES = 1000
_CHUNK = 64  # resamples at a time: 51 MB of counts for 100 k users


def per_user(standing: Standing, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, Floats]:
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
        metrics[f"ndcg@{k}"] = _sums(hit_P / np.log2(rank_P + 2.0), starts) / _ideal(
            np.minimum(n_B, k)
        )
    return metrics


def _sums(value_P: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> Floats:
    """(B,) each user's sum of the P values."""
    return np.asarray(np.add.reduceat(value_P.astype(np.float64), starts))


def _ideal(hits_B: npt.NDArray[np.int64]) -> Floats:
    """(B,) the DCG of that many hits at the top."""
    gains = 1 / np.log2(np.arange(int(hits_B.max())) + 2.0)
    return np.asarray(np.cumsum(gains)[hits_B - 1])


def summarise(metrics: Mapping[str, Floats], seed: int = 0) -> dict[str, dict[str, float]]:
    """`{"auc": {"mean", "low", "high", "n"}, ...}`: means over users and 95 % intervals.

    The interval is the bootstrap's, the users drawn anew 1,000 times with the same draws for every
    metric and model.
    """
    names = list(metrics)
    value_MB = np.stack([metrics[name] for name in names])
    users = value_MB.shape[1]
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, _RESAMPLES, _CHUNK):
        chosen = random.integers(0, users, (min(_CHUNK, _RESAMPLES - start), users))
        counts_SB = np.stack([np.bincount(row, minlength=users) for row in chosen])
        means.append(value_MB @ counts_SB.T / users)
    low_M, high_M = np.percentile(np.concatenate(means, axis=1), [2.5, 97.5], axis=1)
    return {
        name: {
            "mean": float(value_MB[m].mean()),
            "low": float(low_M[m]),
            "high": float(high_M[m]),
            "n": users,
        }
        for m, name in enumerate(names)
    }
