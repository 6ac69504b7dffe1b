"""Lists of different lengths without padding: one flat array of values, and offsets into it.

Shapes: B lists, V values in all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]  # int32 or int64: item rows are stored in 32 bits and computed in 64
_VALUES_AT_ONCE = 4_000_000  # bounds the memory of `Jagged.take` beyond its result


@dataclass(frozen=True)
class Jagged:
    """B lists, stored one after another.

    Attributes:
        values: (V,) integers; list b is `values[offsets[b]:offsets[b + 1]]`.
        offsets: (B + 1,) int64.
    """

    values: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, b: int) -> Ints:
        return self.values[self.offsets[b] : self.offsets[b + 1]]

    @property
    def lengths(self) -> Ints:
        """(B,) the length of each list."""
        return np.diff(self.offsets)

    @property
    def row_ids(self) -> Ints:
        """(V,) the index of the list that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: Ints) -> "Jagged":
        """Selects the lists at `rows`, in that order."""
        starts = self.offsets[rows]
        offsets = offsets_from_lengths(self.offsets[rows + 1] - starts)
        values = np.empty(offsets[-1], self.values.dtype)
        for part in chunk_rows(np.diff(offsets), _VALUES_AT_ONCE):
            bounds = offsets[part.start : part.stop + 1]
            ranges = concat_ranges(starts[part], bounds - bounds[0])
            values[bounds[0] : bounds[-1]] = self.values[ranges]
        return Jagged(values, offsets)

    def keep(self, mask_V: npt.NDArray[np.bool_]) -> "Jagged":
        """Keeps the values where the mask is true; a list may end up empty."""
        counts = np.bincount(self.row_ids[mask_V], minlength=len(self))
        return Jagged(self.values[mask_V], offsets_from_lengths(counts))

    def append_values(self, other: "Jagged") -> "Jagged":
        """Appends the values of `other`, which also has B lists, list by list."""
        if not len(other.values):
            return self
        order = np.argsort(np.concatenate([self.row_ids, other.row_ids]), kind="stable")
        values = np.concatenate([self.values, other.values])[order]
        return Jagged(values, self.offsets + other.offsets)

    def slice(self, start: int, stop: int) -> "Jagged":
        """Selects the lists from `start` to `stop` without copying values."""
        offsets = self.offsets[start : stop + 1]
        return Jagged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def pad_rows(self, count: int) -> "Jagged":
        """Appends empty lists until there are `count` lists."""
        return Jagged(self.values, np.pad(self.offsets, (0, count - len(self)), mode="edge"))

    @staticmethod
    def join(parts: Sequence["Jagged"]) -> "Jagged":
        """The lists of at least one part, one part after another."""
        lengths = np.concatenate([part.lengths for part in parts])
        values = np.concatenate([part.values for part in parts])
        return Jagged(values, offsets_from_lengths(lengths))

    @staticmethod
    def empty(count: int) -> "Jagged":
        """`count` empty lists."""
        return Jagged(np.zeros(0, np.int64), np.zeros(count + 1, np.int64))

    @staticmethod
    def from_row_ids(row_ids: Ints, values: Ints, count: int) -> "Jagged":
        """`count` lists from values and the sorted index of the list that each belongs to."""
        return Jagged(values, offsets_from_lengths(np.bincount(row_ids, minlength=count)))

    @staticmethod
    def by_code(code_N: Ints) -> "Jagged":
        """For each code from 0 on, the positions that have it; those of code -1 are in no list."""
        order = np.argsort(code_N, kind="stable")[np.count_nonzero(code_N < 0) :]
        return Jagged.from_row_ids(code_N[order], order, int(code_N.max(initial=-1)) + 1)


def offsets_from_lengths(lengths: Ints) -> npt.NDArray[np.int64]:
    """(B + 1,) offsets of lists with these (B,) lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def chunk_rows(length_B: Ints, max_values: int) -> Iterator[slice]:
    """Slices of consecutive lists with at most `max_values` values, but at least one list."""
    end_B = np.cumsum(length_B)
    start = 0
    while start < len(end_B):
        used = end_B[start - 1] if start else 0
        stop = max(int(np.searchsorted(end_B, used + max_values, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def concat_ranges(starts: Ints, offsets: Ints) -> npt.NDArray[np.int64]:
    """(V,) the ranges that begin at (B,) `starts` and have the lengths that `offsets` imply."""
    within: npt.NDArray[np.int64] = np.arange(offsets[-1]) + np.repeat(
        starts - offsets[:-1], np.diff(offsets)
    )
    return within
