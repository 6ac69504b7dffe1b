"""Arrays that may be too large for memory: these are in a file that is mapped into it, and they are
read and written a block of rows at a time."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from visrec.errors import InputError

MAX_BYTES_IN_MEMORY = 256_000_000  # of one array
_COPIED_BYTES = 8 << 20  # at a time

Number = TypeVar("Number", bound=np.generic)


class SupportsRead(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


def scratch_array(shape: tuple[int, ...], dtype: type[Number]) -> npt.NDArray[Number]:
    """An array to be written: in memory, or in a scratch file if it is large.

    The file is in the directory for temporary files (`TMPDIR`). It has no name, so its space is
    free again as soon as the array is gone. The operating system keeps as much of it in memory as
    there is room for, and a process that maps it needs no memory of its own for it.

    Args:
        shape: the array's shape.
        dtype: the type of its numbers.

    Raises:
        InputError: the disk has no room for the file.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= MAX_BYTES_IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="visrec-") as file:
        with scratch_errors(f"a scratch file of {size / 1e9:,.1f} GB, for {shape[0]:,} items,"):
            # On a disk that turns out to be full, a write to the map would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
        mapped: np.memmap[Any, Any] = np.memmap(file, dtype, "r+", shape=shape)
    return np.asarray(mapped)


@contextmanager
def scratch_errors(what: str, *others: type[Exception]) -> Iterator[None]:
    """Explains that a temporary file cannot be written: the full disk is that of `TMPDIR`.

    Args:
        what: the file, in words.
        others: errors with which the writing fails, besides those of the operating system.

    Raises:
        InputError: names the directory.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"Found no room for {what} in {tempfile.gettempdir()} ({reason}); expected a disk with "
            "as much free. Set TMPDIR to a directory on one, on every node."
        ) from error


def copy_to_scratch(source: SupportsRead, copy: FileIO, what: str) -> None:
    """Copies a stream to a temporary file, a few megabytes at a time.

    Args:
        source: what is read.
        copy: the file, open without a buffer: a full disk would leave that to be written when the
            file is closed.
        what: as of `scratch_errors`.

    Raises:
        InputError: the disk has no room.
    """
    while block := source.read(_COPIED_BYTES):
        with scratch_errors(what):
            while block:
                block = block[copy.write(block) :]


def row_blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover n rows."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
