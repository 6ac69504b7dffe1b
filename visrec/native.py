"""C++ sources as libraries: built with the wheel, or compiled on first use and cached."""

import ctypes
import os
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visrec.isas import Isa, build, compiler, of_machine

# Names one instruction set, for tests and benchmarks: no other is used. `none` is in no processor.
ISA_VARIABLE = "VISREC_ISA"


def usable_isas() -> list[Isa]:
    """The instruction sets of this processor, the fastest first."""
    isas, wanted = of_machine(processor_flags()), os.environ.get(ISA_VARIABLE)
    return [isa for isa in isas if isa.name == wanted] if wanted else isas


def compile_and_load(source: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """The library of a source file; if it is not available, None and the reason.

    It is the library of the fastest instruction set that loads: one may have been built with the
    package or not, and a compiler may know it or not. The reason is that of the fastest set.

    Args:
        source: C++ with `extern "C"` functions; it uses #error to refuse instruction sets that it
            does not support.
    """
    isa = loaded_isa(source)
    if isa is not None:
        return _load(source, isa)
    if isas := usable_isas():
        return _load(source, isas[0])
    names = os.environ.get(ISA_VARIABLE) or ", ".join(isa.name for isa in of_machine())
    return None, f"this processor has none of {names or 'our sets'}"


def loaded_isa(source: Path) -> Isa | None:
    """The instruction set of the library that `compile_and_load` loads; None if it loads none."""
    return next((isa for isa in usable_isas() if _load(source, isa)[0] is not None), None)


@cache
def _load(source: Path, isa: Isa) -> tuple[ctypes.CDLL | None, str | None]:
    name = isa.library_name(source)
    # A library that came with the package may be for another C library: then it is compiled here.
    with suppress(OSError):
        return ctypes.CDLL(str(source.with_name(name))), None
    cache_dir = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache_dir.startswith("~"):
        return None, "no home directory to cache it in; set HOME or XDG_CACHE_HOME"
    cached = Path(cache_dir) / "visrec" / name
    try:
        if not cached.exists():
            if (compiler_path := compiler()) is None:
                return None, "it was not built with the package, and there is no C++ compiler (g++)"
            build(compiler_path, source, isa, cached)
        return ctypes.CDLL(str(cached)), None
    except subprocess.CalledProcessError as error:
        return None, _first_compiler_error(error.stderr) or str(error)
    except OSError as error:
        return None, str(error)


def _first_compiler_error(stderr: str) -> str:
    """The first error that a compiler reports; empty if it reports none.

    A compiler writes `file.cpp:3:2: error: #error needs AVX2`. Of this, only the text after the
    word is of use to a reader.
    """
    lines = (line for line in stderr.splitlines() if "error" in line)
    return next(lines, "").partition("error")[2].strip(": #")


@cache
def processor_flags() -> frozenset[str]:
    """What /proc/cpuinfo says of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(named, "").partition(":")[2].split())


def require_rows(row_V: npt.NDArray[np.integer], count: int, least: int = 0) -> None:
    """Refuses rows that an array does not have, because C++ would read the memory beside it.

    Args:
        row_V: rows of an array, of any shape.
        count: how many rows the array has.
        least: the lowest number that is allowed; -1 where that stands for no row.

    Raises:
        IndexError: one of them is not in it.
    """
    if not row_V.size:
        return
    lowest, highest = row_V.min(), row_V.max()
    if lowest < least or highest >= count:
        raise IndexError(
            f"Found rows from {lowest} to {highest}; expected rows below {count}, none below "
            f"{least}."
        )


def pointers(*arrays: npt.NDArray[np.generic] | None) -> list[ctypes.c_void_p]:
    """The addresses of contiguous arrays; null for None."""
    return [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in arrays]
