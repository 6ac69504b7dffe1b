"""Instruction sets that C++ sources are compiled for, and how: when the wheel is built, or later.

setup.py runs this file by itself, so it imports nothing but the standard library.
"""

import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread")


@dataclass(frozen=True)
class Isa:
    """An instruction set.

    Attributes:
        name: as `VISREC_ISA` and the summary of a job name it.
        machine: the architecture that has it, as `platform.machine()` says.
        needs: what the processor's flags in /proc/cpuinfo must include.
        flags: the compiler's.
    """

    name: str
    machine: str
    needs: frozenset[str]
    flags: tuple[str, ...]

    def library_name(self, source: Path) -> str:
        """The file name of a source's library; it changes with source, headers and flags."""
        key = repr((_with_headers(source), FLAGS, self.flags)).encode()
        return f"{source.stem}-{self.name}-{hashlib.sha256(key).hexdigest()[:16]}.so"


def _with_headers(source: Path) -> list[str]:
    """The text of a source and of the headers that it includes by relative paths."""
    text = source.read_text()
    names = re.findall(r'^#include "(.+)"', text, re.MULTILINE)
    return [text, *(part for name in names for part in _with_headers(source.parent / name))]


_V3 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
# The fastest first.
ISAS = (
    Isa("avx512vnni", "x86_64", _V4 | {"avx512_vnni"}, ("-march=x86-64-v4", "-mavx512vnni")),
    Isa("avxvnni", "x86_64", _V3 | {"avx_vnni"}, ("-march=x86-64-v3", "-mavxvnni")),
    Isa("avx512", "x86_64", _V4, ("-march=x86-64-v4",)),
    Isa("avx2", "x86_64", _V3, ("-march=x86-64-v3",)),
    Isa("neon", "aarch64", frozenset({"asimddp"}), ("-march=armv8.2-a+dotprod",)),
)


def of_machine(flags: frozenset[str] | None = None) -> list[Isa]:
    """The instruction sets of this architecture, the fastest first.

    Args:
        flags: a processor's flags; with them, only the sets that this processor has.
    """
    mine = [isa for isa in ISAS if isa.machine == platform.machine()]
    return mine if flags is None else [isa for isa in mine if isa.needs <= flags]


def compiler() -> str | None:
    """The path of a C++ compiler."""
    return next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)


def build(compiler_path: str, source: Path, isa: Isa, target: Path) -> None:
    """Compiles to a temporary file and renames it, so that concurrent builds do not interfere.

    Raises:
        subprocess.CalledProcessError: the source does not compile, or not for this instruction set.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        library = Path(folder) / target.name
        command = [compiler_path, *FLAGS, *isa.flags, "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        library.replace(target)
