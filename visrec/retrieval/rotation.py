"""Rotates vectors so that a few dimensions have most of a score, if that makes the search faster.

Any invertible matrix A leaves products as they are: u . i = (A^-T u) . (A^T i). The chosen A
gives items and users the same diagonal covariance S, which decreases as fast as possible. Then the
search multiplies the first dimensions only (the lead), bounds what the others (the rest) can add by
Cauchy-Schwarz, |u_rest| |i_rest|, and multiplies the rest for the few items that may still be among
the best. The principal axes of FEXIPRO (Li et al., SIGMOD 2017) are those of the items alone; here
the users decide as well. As in OPTIMUS (Abuzaid et al., ICDE 2019), whether to do it is measured
first, on a sample. The lists are the same, because all bounds hold for any A and any lead.

Within the lead and within the rest, a random rotation spreads the lengths evenly over the
dimensions, so that rounding to bytes loses little.

Shapes: B users, N items, S sampled items, d width.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_MIN_ITEMS, _MIN_WIDTH = 8192, 48  # below, other work is most of a search
# After so many users, a rotation has saved the time that it takes to choose it (70 ms) and to pack
# the items again (3 us each). Measured: for 20,000 items 4,200 users with AVX2 and 13,000 with
# AVX-512 VNNI; for 200,000 items 1,800 and 4,600 (200 dimensions, variances 1 / rank^2).
_FIRST_USERS, _FIRST_SCORES = 3000, 1e8
_LEADS = (32, 48, 64, 96)
# Sizes of the sample; `_COST_USERS` of its users estimate the cost.
_USERS, _ITEMS, _COST_USERS = 1024, 8192, 64
_REGULAR = 1e-3  # of the mean variance, added to each, for directions that the sample lacks
# Cost of an item that passes the lead, in whole products: 8 to read its rest, times 2.5, because
# more items pass early in a search (AVX-512 VNNI, trained vectors).
_COST_OF_PASSING = 20.0
# Rotate only if the estimated cost is below this share of the cost without a rotation. Work that
# both have in common is not estimated.
_WORTHWHILE = 0.7


@dataclass(frozen=True)
class Rotation:
    """Which matrices items and users are multiplied by.

    Attributes:
        item_dd: for the items' centred vectors, as rows.
        user_dd: for the users' vectors, as rows.
        lead: how many dimensions are multiplied for every item.
    """

    item_dd: Doubles
    user_dd: Doubles
    lead: int


def users_before_choice(n: int, d: int) -> float | None:
    """How many users are searched for before a rotation is chosen; None if there is no choice.

    Args:
        n: how many items there are.
        d: width of the vectors.
    """
    return _FIRST_USERS + _FIRST_SCORES / n if n >= _MIN_ITEMS and d >= _MIN_WIDTH else None


def choose_rotation(item_Nd: Floats, user_Bd: Floats, k: int) -> Rotation | None:
    """A rotation that, judged on a sample of these vectors, makes a search faster; None if there is
    none.

    Args:
        item_Nd: the items' finite vectors; so many and so wide that there is a choice.
        user_Bd: some users' finite vectors.
        k: list length.
    """
    n, d = item_Nd.shape
    random = np.random.default_rng(0)
    item_Sd = item_Nd[random.choice(n, min(n, _ITEMS), replace=False)].astype(np.float64)
    item_Sd -= item_Sd.mean(axis=0)
    wide_Bd = user_Bd[random.permutation(len(user_Bd))[:_USERS]].astype(np.float64)
    length_B = _lengths(wide_Bd)
    unit_Bd = wide_Bd[length_B > 0] / length_B[length_B > 0, None]
    if len(unit_Bd) < _COST_USERS or not item_Sd.any():
        return None
    item_dd, user_dd = _balanced(_covariance(item_Sd), _covariance(unit_Bd))
    rotated_Sd, rotated_Bd = item_Sd @ item_dd, unit_Bd[:_COST_USERS] @ user_dd
    costs = _costs(rotated_Sd, rotated_Bd, [lead for lead in _LEADS if lead < d], k / n)
    lead = min(costs, key=lambda lead: costs[lead])
    if not costs[lead] < _WORTHWHILE:
        return None
    spread_dd = np.zeros((d, d))
    for part in (slice(lead), slice(lead, d)):
        size = len(range(d)[part])
        spread_dd[part, part] = np.linalg.qr(random.normal(size=(size, size)))[0]
    return Rotation(item_dd @ spread_dd, user_dd @ spread_dd, lead)


def _covariance(vector_Xd: Doubles) -> Doubles:
    covariance_dd = vector_Xd.T @ vector_Xd / len(vector_Xd)
    d = len(covariance_dd)
    regular: Doubles = covariance_dd + _REGULAR * np.trace(covariance_dd) / d * np.eye(d)
    return regular


def _balanced(item_dd: Doubles, user_dd: Doubles) -> tuple[Doubles, Doubles]:
    """The matrices that give both covariances the same decreasing diagonal."""
    root_dd = np.linalg.cholesky(item_dd)
    square_d, axes_dd = np.linalg.eigh(root_dd.T @ user_dd @ root_dd)
    axes_dd, root_d = axes_dd[:, ::-1], np.sqrt(np.sqrt(square_d[::-1]))
    return np.linalg.solve(root_dd.T, axes_dd * root_d), root_dd @ axes_dd / root_d


def _costs(item_Sd: Doubles, user_Bd: Doubles, leads: list[int], share: float) -> dict[int, float]:
    """The cost of a search with each lead, as a share of that without.

    Args:
        item_Sd: rotated items.
        user_Bd: rotated users.
        leads: how many dimensions are multiplied for every item, ascending.
        share: the share of the items that are listed.
    """
    score_BS = user_Bd @ item_Sd.T
    kth = max(1, round(share * len(item_Sd)))
    least_B1 = np.partition(score_BS, -kth, axis=1)[:, [-kth]]
    lead_BS, costs = np.zeros_like(score_BS), {}
    for start, lead in pairwise([0, *leads]):
        lead_BS += user_Bd[:, start:lead] @ item_Sd[:, start:lead].T
        rest_BS = np.outer(_lengths(user_Bd[:, lead:]), _lengths(item_Sd[:, lead:]))
        passing = float((lead_BS + rest_BS >= least_B1).mean())
        costs[lead] = lead / item_Sd.shape[1] + _COST_OF_PASSING * passing
    return costs


def _lengths(vector_Xd: Doubles) -> Doubles:
    lengths: Doubles = np.sqrt(np.einsum("xd,xd->x", vector_Xd, vector_Xd))
    return lengths
