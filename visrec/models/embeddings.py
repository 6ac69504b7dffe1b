"""Embeddings: one trained vector for each user or item that training has seen."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from visrec.models.arrays import ENCODE_ROWS, rows_or_zeros
from visrec.models.base import Catalogue, TrainOverrides
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import UserEncoder
from visrec.scratch import row_blocks, scratch_array

# The best learning rate of a sweep, on movies and on clothing, for every model of embeddings with a
# ranking loss: the validation AUC is 0.001 to 0.014 higher than with rates from 1e-3 to 5e-3
# (benchmarks/results/models-*.json). With this rate, bpr_mf reaches 0.886 on movies at the default
# weight decay of 0.1, 0.883 at 0 and 0.861 at 1.
EMBEDDING_DEFAULTS = TrainOverrides(learning_rate=7e-3)


def make_embedding(rows: int, width: int, std: float = 0.1) -> nn.Embedding:
    """An embedding with normally distributed weights. Its gradients have only the rows of a batch.

    Args:
        rows: number of users or items in training.
        width: the width of a vector.
        std: standard deviation; 0.1 as in other libraries' matrix factorizations.
    """
    embedding = nn.Embedding(rows, width, sparse=True)
    # The values of a sparse gradient may be a view of a tensor from which other weights' gradients
    # are still to be computed. DDP divides gradients in place and would change that tensor, too.
    embedding.weight.register_hook(torch.clone)  # type: ignore[no-untyped-call]
    nn.init.normal_(embedding.weight, std=std)
    return embedding


def append_bias_column(vector_Bd: Tensor) -> Tensor:
    """(B, d + 1) vectors that end with a 1, which an item's bias is multiplied by."""
    return torch.cat([vector_Bd, vector_Bd.new_ones(len(vector_Bd), 1)], dim=1)


def embedding_user_encoder(users: nn.Embedding, with_bias: bool = False) -> UserEncoder:
    """An encoder that looks users' vectors up. It ignores profiles; unseen users get zeros.

    Args:
        users: the users' embedding.
        with_bias: whether to append a 1 for the items' biases.
    """

    def encode(profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        del profiles
        vector_Bd = rows_or_zeros(users.weight, user_B)
        return append_bias_column(vector_Bd) if with_bias else vector_Bd

    return encode


def embeddings_for(catalogue: Catalogue, weight_Id: Tensor) -> npt.NDArray[np.float32]:
    """(N, d) the embeddings of a catalogue's items; zeros for unseen items."""
    return embedding_rows(weight_Id, catalogue.trained_N)


def embedding_rows(weight_Rd: Tensor, row_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(N, d) rows of a matrix, in a `scratch_array`; zeros for a row of -1."""
    weight_Rd = weight_Rd.detach().cpu()
    vectors_Nd = scratch_array((len(row_N), weight_Rd.shape[1]), np.float32)
    for rows in row_blocks(len(row_N), ENCODE_ROWS):
        vectors_Nd[rows] = rows_or_zeros(weight_Rd, row_N[rows]).numpy()
    return vectors_Nd
