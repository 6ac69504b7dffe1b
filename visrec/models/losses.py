"""Ranking losses over the vectors of a batch; every model with user and item vectors takes these.

With x the score u . i of a user and an item, divided by a temperature:

    BPR       mean of -log sigmoid(x_i - x_j) over triples (Rendle et al. 2009, equation 4); with
              several negatives a triple, j is the one that scores highest: the hard negative of
              dynamic negative sampling (Zhang et al. 2013)
    softmax   mean of -log(exp x_i / (exp x_i + sum over candidates j of exp x_j)): the likelihood
              of the positive among candidates that the user did not take. Of candidates that were
              drawn, log Q, the logarithm of the chance that a step has the item, is taken off each
              score: the sum then estimates, without bias, that over the whole catalogue (importance
              sampling, Bengio & Senecal 2008). The positive is there with certainty, so nothing is
              taken off its score.
"""

import torch
from torch import Tensor
from torch.nn import functional

from visrec.models.contract import TripleBatch


def ranking_loss(
    user_Bd: Tensor, item_Md: Tensor, batch: TripleBatch, temperature: float
) -> Tensor:
    """The mean loss of B examples: softmax where the batch has candidates, else BPR.

    Args:
        user_Bd: vectors of the users.
        item_Md: vectors of the batch's distinct items.
        batch: positives, and negatives or candidates.
        temperature: every score is divided by it.
    """
    scaled_Bd = user_Bd / temperature
    positive_B = (scaled_Bd * item_Md[batch.positive_B]).sum(dim=1)
    if batch.candidates is None:
        negative_BK = torch.einsum("bd,bkd->bk", scaled_Bd, item_Md[batch.negative_BK])
        return functional.softplus(negative_BK.amax(dim=1) - positive_B).mean()
    drawn = batch.candidates
    logit_BC = scaled_Bd @ item_Md[drawn.place_C].T - drawn.log_q_C
    logit_BC.masked_fill_(drawn.taken_BC, -torch.inf)
    every_BC = torch.cat([positive_B[:, None], logit_BC], dim=1)
    first_B = torch.zeros(len(every_BC), dtype=torch.int64, device=every_BC.device)
    return functional.cross_entropy(every_BC, first_B)
