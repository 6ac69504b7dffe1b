"""Tables as dataclasses of arrays: the rows that items are drawn for, and the drawn triples.

Shapes: B rows, K negatives of a triple.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from visrec.sampling.index import Bools, Ints


@dataclass(frozen=True)
class Rows:
    """A base for dataclasses whose fields are arrays with B rows."""

    def take(self, rows: Ints | slice) -> Self:
        """Selects rows of every column."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class SampledTriples(Rows):
    """B triples. Each profile is the first items of a profile row, with or without the positive.

    Attributes:
        profile_row_B: (B,) see `visrec.sampling.index`.
        profile_length_B: (B,) how many items of the profile row.
        position_B: (B,) the position of the positive; -1 if it is not in the profile row.
        keeps_positive_B: (B,) whether a positive that is in the profile stays in it.
        positive_B: (B,) items.
        negative_BK: (B, K) items.
    """

    profile_row_B: Ints
    profile_length_B: Ints
    position_B: Ints
    keeps_positive_B: Bools
    positive_B: Ints
    negative_BK: Ints

    def put(self, rows: Ints, other: Self) -> None:
        """Overwrites the triples at `rows` with others."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)

    @classmethod
    def concat(cls, parts: Iterable[Self]) -> Self:
        parts = list(parts)
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
