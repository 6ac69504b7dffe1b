"""Ranking losses over the vectors of a batch, shared by every model with user and item vectors.

The score x of a user and an item is u . i divided by a temperature; i is an example's positive, j
are its J negatives, and s is the softmax of the x_j over the negatives alone:

    softmax   -log(exp x_i / (exp x_i + sum_j exp x_j)), the negative log-likelihood of the positive
              among the negatives; with one negative it equals bpr
    bpr       mean_j of -log sigmoid(x_i - x_j), the loss of a triple (Rendle et al. 2009,
              equation 4)
    bpr_max   -log sum_j s_j sigmoid(x_i - x_j) + lambda sum_j s_j x_j^2
    top1      mean_j of sigmoid(x_j - x_i) + sigmoid(x_j^2)
    top1_max  sum_j s_j (sigmoid(x_j - x_i) + sigmoid(x_j^2))

The last three are from Hidasi & Karatzoglou (2018, arXiv 1706.03847, section 3). A loss is the mean
over the examples; an example without negatives contributes 0 to it.

The negatives are either those drawn for the triple, or the step's candidates that are valid
negatives for its user and positive (`Candidates.invalid_BC`).

With sampled candidates, softmax subtracts log Q from each score, where Q is the probability that a
step has the item. The sum over the candidates then is an unbiased estimate of the sum over the
catalogue (importance sampling, Bengio & Senecal 2008). The positive is in every sum, so nothing is
subtracted from its score. The other losses make no such correction, so an item that is sampled more
often weighs more.

Shapes: B examples, M distinct items of a batch, K negatives of an example, C candidates of a step,
J either of these, d width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from visrec.config import check_fields
from visrec.models.base import ModelConfig
from visrec.models.inputs import TripleBatch

LossName = Literal["softmax", "bpr", "bpr_max", "top1", "top1_max"]


@dataclass(frozen=True, kw_only=True)
class RankingConfig(ModelConfig):
    """The loss of a model with user and item vectors.

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
    user_Bd: Tensor,
    item_Md: Tensor,
    batch: TripleBatch,
    config: RankingConfig,
    added: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The mean loss of B examples.

    Args:
        user_Bd: the users' vectors.
        item_Md: the vectors of the batch's distinct items.
        batch: positives, and negatives or candidates.
        config: which loss.
        added: (B,) and (B, C) what is added to the scores of positives and of candidates.
    """
    scaled_Bd = user_Bd / config.temperature
    positive_B = (scaled_Bd * _lookup(item_Md, batch.positive_B)).sum(dim=1)
    candidates = batch.candidates
    if candidates is None:
        negative_BK = torch.einsum("bd,bkd->bk", scaled_Bd, _lookup(item_Md, batch.negative_BK))
        return loss_from_scores(positive_B, negative_BK, None, config)
    score_BC = scaled_Bd @ item_Md[: len(candidates)].T
    if added is not None:
        positive_B, score_BC = positive_B + added[0], score_BC + added[1]
    if config.loss == "softmax":
        score_BC = score_BC - candidates.log_q_C
    return loss_from_scores(positive_B, score_BC, candidates.invalid_BC, config)


def loss_from_scores(
    positive_B: Tensor, negative_BJ: Tensor, invalid_BJ: Tensor | None, config: RankingConfig
) -> Tensor:
    """The mean loss of B examples.

    Args:
        positive_B: the scores of the positives.
        negative_BJ: the scores of the negatives; overwritten.
        invalid_BJ: bool, which of them are not valid negatives; None if all are valid.
        config: which loss.
    """
    if invalid_BJ is not None:
        if config.loss != "softmax" and bool((lacks_negatives_B := invalid_BJ.all(dim=1)).any()):
            rest_B = ~lacks_negatives_B
            mean = loss_from_scores(
                positive_B[rest_B], negative_BJ[rest_B], invalid_BJ[rest_B], config
            )
            return (
                mean * (int(rest_B.sum()) / len(rest_B)) if rest_B.any() else positive_B.sum() * 0
            )
        negative_BJ = negative_BJ.masked_fill_(invalid_BJ, -torch.inf)
    if config.loss == "softmax":
        logits = torch.cat([positive_B[:, None], negative_BJ], dim=1)
        label_B = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return functional.cross_entropy(logits, label_B)
    margin_BJ = negative_BJ - positive_B[:, None]
    if config.loss == "bpr":
        return _mean_over_negatives(functional.softplus(margin_BJ), invalid_BJ)
    # An invalid negative has the score -inf, whose sigmoid is 0. Its square must be 0, too.
    finite_BJ = negative_BJ if invalid_BJ is None else negative_BJ.masked_fill(invalid_BJ, 0)
    if config.loss == "bpr_max":
        # log sum_j s_j sigmoid(x_i - x_j) in log space, because s may underflow.
        log_s_BJ = functional.log_softmax(negative_BJ, dim=1)
        log_likelihood_B = torch.logsumexp(log_s_BJ + functional.logsigmoid(-margin_BJ), dim=1)
        square_B = (log_s_BJ.exp() * finite_BJ**2).sum(dim=1)
        return (config.score_penalty * square_B - log_likelihood_B).mean()
    loss_BJ = torch.sigmoid(margin_BJ) + torch.sigmoid(finite_BJ**2)
    if config.loss == "top1":
        return _mean_over_negatives(loss_BJ, invalid_BJ)
    return (functional.softmax(negative_BJ, dim=1) * loss_BJ).sum(dim=1).mean()


def _lookup(item_Md: Tensor, position_X: Tensor) -> Tensor:
    """(X, d) rows. The backward pass is several times faster than that of indexing."""
    return functional.embedding(position_X, item_Md)


def _mean_over_negatives(value_BJ: Tensor, invalid_BJ: Tensor | None) -> Tensor:
    """The mean over the examples of each one's mean over its valid negatives."""
    if invalid_BJ is None:
        return value_BJ.mean()
    count_B = (~invalid_BJ).sum(dim=1)
    return (value_BJ.masked_fill(invalid_BJ, 0).sum(dim=1) / count_B).mean()
