"""C++ source files, compiled for this processor on first use and cached."""

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
def compile_and_load(source: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """The library of a source file; if it is not available, None and the reason.

    Args:
        source: C++ with `extern "C"` functions; it uses #error to refuse processors that it
            does not support.
    """
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        return None, "no C++ compiler (g++)"
    key = (source.read_text(), compiler, _FLAGS, _processor_flags())
    name = f"{source.stem}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):
        return None, "no home directory to cache it in; set HOME or XDG_CACHE_HOME"
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
    """Compiles to a temporary file and renames it, so that concurrent builds do not interfere.

    Raises:
        subprocess.CalledProcessError: the source does not compile, or not for this processor.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        library = Path(folder) / target.name
        command = [compiler, *_FLAGS, "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        library.replace(target)


def _processor_flags() -> str:
    """The processor's instruction sets: different machines may share a home directory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def pointers(*arrays: npt.NDArray[np.generic] | None) -> list[ctypes.c_void_p]:
    """The addresses of contiguous arrays; null for None."""
    return [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in arrays]
