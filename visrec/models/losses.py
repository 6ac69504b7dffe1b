"""Ranking losses over the vectors of a batch; every model with user and item vectors takes these.

With x the score u . i of a user and an item divided by a temperature, i an example's positive, j
its J negatives, and s the softmax of the x_j over the negatives alone:

    softmax   -log(exp x_i / (exp x_i + sum_j exp x_j)): the likelihood of the positive among the
              negatives; with one negative it is BPR
    bpr       mean_j of -log sigmoid(x_i - x_j), the sigmoid cross-entropy of a triple (Rendle et
              al. 2009, equation 4)
    bpr_max   -log sum_j s_j sigmoid(x_i - x_j) + lambda sum_j s_j x_j^2
    top1      mean_j of sigmoid(x_j - x_i) + sigmoid(x_j^2)
    top1_max  sum_j s_j (sigmoid(x_j - x_i) + sigmoid(x_j^2))

The last three are of Hidasi & Karatzoglou (2018, arXiv 1706.03847, section 3). A loss is the mean
over the examples; one without any negative counts zero.

The negatives are those of the triple, or the candidates of the step that the user did not take. Of
candidates that were drawn, the softmax takes log Q off each score, Q the chance that a step has the
item: the sum then estimates, without bias, that over the whole catalogue (importance sampling,
Bengio & Senecal 2008). The positive is there with certainty, so nothing is taken off its score. To
the other losses, who is drawn more often is the heavier negative. Where a triple has several
negatives, the one that scores highest is its negative: the hard one of dynamic negative sampling
(Zhang et al. 2013).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from visrec.config import check_fields
from visrec.models.inputs import TripleBatch

LossName = Literal["softmax", "bpr", "bpr_max", "top1", "top1_max"]


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """What positives and negatives are to each other, for a model of user and item vectors.

    Attributes:
        loss: softmax, bpr, bpr_max, top1 or top1_max.
        temperature: scores are divided by it in training.
        score_penalty: lambda of bpr_max.
    """

    loss: LossName = "softmax"
    temperature: float = 1.0
    score_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "model", temperature="(0, 1000000]", score_penalty="[0, 1000000]")


def ranking_loss(
    user_Bd: Tensor, item_Md: Tensor, batch: TripleBatch, config: RankingConfig
) -> Tensor:
    """The mean loss of B examples.

    Args:
        user_Bd: vectors of the users.
        item_Md: vectors of the batch's distinct items.
        batch: positives, and negatives or candidates.
        config: which loss.
    """
    scaled_Bd = user_Bd / config.temperature
    positive_B = (scaled_Bd * _at(item_Md, batch.positive_B)).sum(dim=1)
    drawn = batch.candidates
    if drawn is None:
        negative_BK = torch.einsum("bd,bkd->bk", scaled_Bd, _at(item_Md, batch.negative_BK))
        hardest_BJ = negative_BK.amax(dim=1, keepdim=True)
        return loss_of_scores(positive_B, hardest_BJ, None, config)
    score_BJ = scaled_Bd @ item_Md[: len(drawn)].T
    if config.loss == "softmax":
        score_BJ = score_BJ - drawn.log_q_C
    return loss_of_scores(positive_B, score_BJ, drawn.taken_BC, config)


def loss_of_scores(
    positive_B: Tensor, negative_BJ: Tensor, taken_BJ: Tensor | None, config: RankingConfig
) -> Tensor:
    """The mean loss of B examples from their scores.

    Args:
        positive_B: each example's positive.
        negative_BJ: what stands against it; written over.
        taken_BJ: bool, what does not count; None where all do.
        config: which loss.
    """
    if taken_BJ is not None:
        if config.loss != "softmax" and bool((alone_B := taken_BJ.all(dim=1)).any()):
            rest_B = ~alone_B
            mean = loss_of_scores(positive_B[rest_B], negative_BJ[rest_B], taken_BJ[rest_B], config)
            return (
                mean * (int(rest_B.sum()) / len(rest_B)) if rest_B.any() else positive_B.sum() * 0
            )
        negative_BJ = negative_BJ.masked_fill_(taken_BJ, -torch.inf)
    if config.loss == "softmax":
        every_BJ = torch.cat([positive_B[:, None], negative_BJ], dim=1)
        first_B = torch.zeros(len(every_BJ), dtype=torch.int64, device=every_BJ.device)
        return functional.cross_entropy(every_BJ, first_B)
    above_BJ = negative_BJ - positive_B[:, None]
    if config.loss == "bpr":
        return _mean_of_rows(functional.softplus(above_BJ), taken_BJ)
    # What is taken scores -inf, of which the sigmoid is 0, and its square is to count nothing too.
    score_BJ = negative_BJ if taken_BJ is None else negative_BJ.masked_fill(taken_BJ, 0)
    if config.loss == "bpr_max":
        # log sum_j s_j sigmoid(x_i - x_j), in logarithms: s may be as good as zero.
        share_BJ = functional.log_softmax(negative_BJ, dim=1)
        right_B = torch.logsumexp(share_BJ + functional.logsigmoid(-above_BJ), dim=1)
        square_B = (share_BJ.exp() * score_BJ**2).sum(dim=1)
        return (config.score_penalty * square_B - right_B).mean()
    wrong_BJ = torch.sigmoid(above_BJ) + torch.sigmoid(score_BJ**2)
    if config.loss == "top1":
        return _mean_of_rows(wrong_BJ, taken_BJ)
    return (functional.softmax(negative_BJ, dim=1) * wrong_BJ).sum(dim=1).mean()


def _at(item_Md: Tensor, place_X: Tensor) -> Tensor:
    """(X, d) rows, whose way back is some times faster than an index's."""
    return functional.embedding(place_X, item_Md)


def _mean_of_rows(value_BJ: Tensor, taken_BJ: Tensor | None) -> Tensor:
    """The mean over the rows of each row's mean over what is not taken."""
    if taken_BJ is None:
        return value_BJ.mean()
    count_B = (~taken_BJ).sum(dim=1)
    return (value_BJ.masked_fill(taken_BJ, 0).sum(dim=1) / count_B).mean()
