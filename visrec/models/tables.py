"""Tables with a row for each user or item that training has seen."""

import torch
from torch import Tensor, nn


def table(rows: int, width: int, spread: float = 0.1) -> nn.Embedding:
    """A table of normal numbers, whose gradients are of the rows that a batch reads.

    Args:
        rows: users or items of training.
        width: of a row.
        spread: standard deviation; 0.1 as in the peers' matrix factorisations.
    """
    made = nn.Embedding(rows, width, sparse=True)
    nn.init.normal_(made.weight, std=spread)
    return made


def with_one(vector_Bd: Tensor) -> Tensor:
    """(B, d + 1) vectors with a 1 behind, which meets the bias of an item."""
    return torch.cat([vector_Bd, vector_Bd.new_ones(len(vector_Bd), 1)], dim=1)
