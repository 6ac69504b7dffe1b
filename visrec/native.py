"""C++ beside Python: a source file compiled for this processor on first use, and then kept."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")


@cache
def compiled(source: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """The library of one source file, or None and why there is none.

    Args:
        source: C++ whose functions are `extern "C"`; it stops with #error what it is not for.
    """
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        return None, "no C++ compiler (g++)"
    provenance = (source.read_text(), compiler, _FLAGS, _processor())
    name = f"{source.stem}-{hashlib.sha256(repr(provenance).encode()).hexdigest()[:16]}.so"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):
        return None, "no home directory to keep it in; set HOME or XDG_CACHE_HOME"
    folder = Path(cache) / "visrec"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / name).exists():
            _build(compiler, source, folder / name)
        return ctypes.CDLL(str(folder / name)), None
    except subprocess.CalledProcessError as error:
        reasons = [line for line in error.stderr.splitlines() if "error" in line]
        return None, (reasons or [str(error)])[0].partition("error")[2].strip(": #")
    except OSError as error:
        return None, str(error)


def _build(compiler: str, source: Path, target: Path) -> None:
    """Compiles to a file of its own, which then takes the name: whoever else builds does no harm.

    Raises:
        subprocess.CalledProcessError: the source is not for this processor.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [compiler, *_FLAGS, "-o", str(made), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(target)


def _processor() -> str:
    """What the processor can do, where the system tells; a home may be shared by different ones."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def pointers(*arrays: npt.NDArray[np.generic] | None) -> list[ctypes.c_void_p]:
    """The addresses of contiguous arrays, null for None."""
    return [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in arrays]
