"""The peak of this process's memory over a block of code, as Linux counts it; and a full disk."""

import ctypes
import gc
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa


@dataclass
class Peak:
    """Bytes resident before the block, and at most within it."""

    before: int = 0
    most: int = 0

    @property
    def grown(self) -> int:
        return self.most - self.before


def _status(name: str) -> int:
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def private_memory() -> int:
    """Bytes resident that are not of a file and not shared."""
    return _status("RssAnon")


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures a block; its numbers are there when it ends.

    What was freed before goes back to Linux first: a block that took it would not be counted.
    """
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    peak = Peak(before=_status("VmRSS"))
    yield peak
    peak.most = _status("VmHWM")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets this process write files up to a size alone, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
