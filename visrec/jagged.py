"""Lists of different lengths without padding: one flat array and the offsets of its parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]  # of int32 or int64


@dataclass(frozen=True)
class Jagged:
    """B lists as one array.

    Args:
        values: (V,) integers, list after list.
        offsets: (B + 1,) int64; list b is `values[offsets[b]:offsets[b + 1]]`.
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
    def owners(self) -> Ints:
        """(V,) the list that each value is in."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: Ints) -> "Jagged":
        """The lists at `rows`, in that order."""
        starts, lengths = self.offsets[:-1][rows], self.lengths[rows]
        offsets = offsets_of(lengths)
        return Jagged(self.values[positions(starts, offsets)], offsets)

    def keep(self, kept_V: npt.NDArray[np.bool_]) -> "Jagged":
        """The same lists without the values that a (V,) mask leaves out."""
        counts = np.bincount(self.owners[kept_V], minlength=len(self))
        return Jagged(self.values[kept_V], offsets_of(counts))

    def joined(self, other: "Jagged") -> "Jagged":
        """Each list with the other's list of that place behind it."""
        if not len(other.values):
            return self
        order = np.argsort(np.concatenate([self.owners, other.owners]), kind="stable")
        values = np.concatenate([self.values, other.values])[order]
        return Jagged(values, self.offsets + other.offsets)

    def slice(self, start: int, stop: int) -> "Jagged":
        """The lists from `start` to `stop`; no values are copied."""
        offsets = self.offsets[start : stop + 1]
        return Jagged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def pad_to(self, count: int) -> "Jagged":
        """The same lists with empty ones behind, `count` in all."""
        return Jagged(self.values, np.pad(self.offsets, (0, count - len(self)), mode="edge"))

    @staticmethod
    def empty(count: int) -> "Jagged":
        """`count` lists without values."""
        return Jagged(np.zeros(0, np.int64), np.zeros(count + 1, np.int64))

    @staticmethod
    def group(owners: Ints, values: Ints, count: int) -> "Jagged":
        """`count` lists from values and their owners, which must be sorted."""
        return Jagged(values, offsets_of(np.bincount(owners, minlength=count)))


def offsets_of(lengths: Ints) -> npt.NDArray[np.int64]:
    """(B + 1,) offsets of lists with these (B,) lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def portions(length_B: Ints, most: int) -> Iterator[slice]:
    """Slices of consecutive lists that hold at most `most` values, or one list."""
    end_B, start = np.cumsum(length_B), 0
    while start < len(end_B):
        before = end_B[start - 1] if start else 0
        stop = max(int(np.searchsorted(end_B, before + most, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def positions(starts: Ints, offsets: Ints) -> npt.NDArray[np.int64]:
    """(V,) start, start + 1, ... for each list: the arange of every part, in one go."""
    within: npt.NDArray[np.int64] = np.arange(offsets[-1]) + np.repeat(
        starts - offsets[:-1], np.diff(offsets)
    )
    return within
