"""Low-rank EASE (Steck 2019, arXiv 1905.03375), without an items-by-items matrix.

Let X be the users' taken items (`visrec.models.ease`), X = U S V^T its singular value
decomposition, lambda the penalty and w_k = s_k^2 / (s_k^2 + lambda). Then the matrix P of equation
8 of the paper, the inverse of X^T X + lambda 1, is (1 - V W V^T) / lambda, so for i != j

    B_ij = -P_ij / P_jj = [V W V^T]_ij / (1 - [V W V^T]_jj)

An item of the profile is not ranked, so B_jj = 0 need not hold. Then the score is a dot product,

    x_uj = q_u . y_j        q_u = sum of V_i over the items i of the profile / sqrt(their number)
                            y_j = W V_j / (1 - V_j . W V_j)

up to the square root, which changes no ranking. It brings the scores of long and short profiles to
about the same scale, so that one weight for all users adds them to other scores.

The r largest singular values are kept, for w_k shrinks with s_k; with all of them the scores are
those of EASE. They are found by subspace iteration (Halko, Martinsson & Tropp 2011, SIAM Review
53), in which X is only ever multiplied by r + 16 columns. So time and memory are proportional to
the number of interactions, users and items, and not to that of pairs of items.

The standard deviation of x_uj over the items j is sqrt(q_u . C q_u), where C is the covariance of
y. `low_rank_ease` divides y by the root of the mean of q_u . C q_u over the training's users.

Shapes: U users, B lists, I items of training, r rank, m columns of a subspace; V, S and W above are
matrices.
"""

import numpy as np
import torch
from torch import Tensor

from visrec.jagged import Jagged
from visrec.models.inputs import JaggedTensor
from visrec.models.pooling import pool

_OVERSAMPLING = 16  # columns beyond the rank, without which the last ones are inexact
_ITERATIONS = 8
MIN_TAKERS = 2  # takers that an item needs to say anything about co-occurrence
_MIN_SPREAD = 1e-9  # of scores, relative to the largest y: below it they differ by rounding alone


def low_rank_ease(train: Jagged, items: int, penalty: float, rank: int) -> tuple[Tensor, Tensor]:
    """V and y of the module's docstring, (I, r) float32 each; zeros for items of a single taker.

    If all items have the same score, as two items do that the same users took, y is zero.

    Args:
        train: U lists of items.
        items: I.
        penalty: lambda.
        rank: r; fewer are returned if there are fewer items or users, none if no item has two
            takers.
    """
    taken = _distinct(train, items)
    enough_I = np.bincount(taken.values, minlength=items) >= MIN_TAKERS
    taken = taken.keep(enough_I[taken.values])
    if not rank or not len(taken.values):
        return torch.zeros(items, 0), torch.zeros(items, 0)
    singular_r, vector_Ir = _right_singular_vectors(taken, items, rank)
    # A singular vector of the value 0 is arbitrary, and may have entries for any item.
    vector_Ir *= torch.from_numpy(enough_I)[:, None]
    weighted_Ir = vector_Ir * (singular_r**2 / (singular_r**2 + penalty))
    rest_I1 = 1 - (vector_Ir * weighted_Ir).sum(dim=1, keepdim=True)
    listed_Ir = weighted_Ir / rest_I1
    profile_Ir = vector_Ir.float()
    user_Ur = profile_vectors(profile_Ir, JaggedTensor.from_jagged(taken)).double()
    covariance_rr = torch.cov(listed_Ir.T, correction=0)
    variance = ((user_Ur.T @ user_Ur) * covariance_rr).sum() / len(taken)
    spread = variance.clamp(min=0).sqrt()
    if spread < _MIN_SPREAD * listed_Ir.abs().max():
        return profile_Ir, torch.zeros_like(profile_Ir)
    return profile_Ir, (listed_Ir / spread).float()


def profile_vectors(vector_Ir: Tensor, profiles: JaggedTensor) -> Tensor:
    """(B, r) q of B profiles; zeros for an empty one.

    Args:
        vector_Ir: V.
        profiles: B lists of its rows.
    """
    length_B1 = profiles.lengths.clamp(min=1).to(vector_Ir.dtype)[:, None]
    return pool(vector_Ir, profiles, "sum") / length_B1.sqrt()


def _distinct(lists: Jagged, items: int) -> Jagged:
    """The lists in the order of their items, each item once."""
    code_V = np.unique(lists.row_ids * np.int64(items) + lists.values)
    return Jagged.from_row_ids(code_V // items, code_V % items, len(lists))


def _right_singular_vectors(taken: Jagged, items: int, rank: int) -> tuple[Tensor, Tensor]:
    """(r,) and (I, r) float64, the largest singular values of X and their right vectors.

    Args:
        taken: U lists of distinct items.
        items: I.
        rank: r, or more than there are.
    """
    by_user = JaggedTensor.from_jagged(taken)
    order = np.argsort(taken.values, kind="stable")
    by_item = JaggedTensor.from_jagged(
        Jagged.from_row_ids(taken.values[order], taken.row_ids[order], items)
    )
    rank = min(rank, items, len(taken))
    random = torch.Generator().manual_seed(0)
    base_Im = torch.randn(items, min(rank + _OVERSAMPLING, items), generator=random)
    for _ in range(_ITERATIONS):
        base_Im = _orthonormal(pool(pool(base_Im, by_user, "sum"), by_item, "sum"))
    product_Um = pool(base_Im, by_user, "sum").double()
    eigenvalue_m, eigenvector_mm = torch.linalg.eigh(product_Um.T @ product_Um)
    singular_r = eigenvalue_m[-rank:].flip(0).clamp(min=0).sqrt()
    return singular_r, base_Im.double() @ eigenvector_mm[:, -rank:].flip(1)


def _orthonormal(vector_Im: Tensor) -> Tensor:
    """(I, m) float32, an orthonormal basis of the columns."""
    base_Im: Tensor = torch.linalg.qr(vector_Im.double()).Q.float()
    return base_Im
