"""Tables with a row for each user or item that training has seen."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from visrec.models.arrays import known_rows
from visrec.models.base import Catalogue
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import UserVectors

# A sweep found it for every model of tables under a ranking loss, on movies and clothing alike:
# validation AUC rises by .001 to .014 over 1e-3 to 5e-3 (benchmarks/results/models-*.json). At this
# rate and the default decay of .1 bpr_mf has .886 on movies; without decay .883, with 1 .861.
EMBEDDING_DEFAULTS: Mapping[str, Any] = {"train.learning_rate": 7e-3}


def table(rows: int, width: int, spread: float = 0.1) -> nn.Embedding:
    """A table of normal numbers, whose gradients are of the rows that a batch reads.

    Args:
        rows: users or items of training.
        width: of a row.
        spread: standard deviation; 0.1 as in the peers' matrix factorisations.
    """
    made = nn.Embedding(rows, width, sparse=True)
    # A sparse gradient's values are a view of what other weights are still to get: whoever divides
    # them in place, as DDP does, would divide those too.
    made.weight.register_hook(torch.clone)  # type: ignore[no-untyped-call]
    nn.init.normal_(made.weight, std=spread)
    return made


def append_bias_column(vector_Bd: Tensor) -> Tensor:
    """(B, d + 1) vectors with a 1 behind, which meets the bias of an item."""
    return torch.cat([vector_Bd, vector_Bd.new_ones(len(vector_Bd), 1)], dim=1)


def embedding_user_encoder(users: nn.Embedding) -> UserVectors:
    """Users by their rows, whatever their profiles: zeros for those that training has not seen."""

    def vectors(profiles: JaggedTensor, user_B: Tensor) -> Tensor:
        del profiles
        return known_rows(users.weight, user_B)

    return vectors


def of_items(weight_Id: Tensor, catalogue: Catalogue) -> npt.NDArray[np.float32]:
    """(N, d) the rows of a table that the items of a catalogue have; zeros for unseen ones."""
    rows_Nd: npt.NDArray[np.float32] = known_rows(
        weight_Id.detach().cpu(), catalogue.trained_N
    ).numpy()
    return rows_Nd
