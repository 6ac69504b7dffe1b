"""The kernel for NEON, compiled for ARM and run by an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest

from visrec.isas import FLAGS, ISAS
from visrec.retrieval.kernel import _SOURCE

_COMPILER, _EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.mark.skipif(
    not (shutil.which(_COMPILER) and shutil.which(_EMULATOR)),
    reason=f"needs {_COMPILER} and {_EMULATOR}: install g++-aarch64-linux-gnu and qemu-user",
)
def test_neon_kernel_finds_what_sums_in_integers_find(tmp_path: Path) -> None:
    (isa,) = (isa for isa in ISAS if isa.name == "neon")
    flags = [*FLAGS, *isa.flags]
    flags[flags.index("-shared")] = "-static"
    source, program = Path(__file__).with_name("neon.cpp"), tmp_path / "neon"
    subprocess.run(
        [_COMPILER, *flags, f"-I{_SOURCE.parent}", "-o", program, source], check=True, timeout=300
    )
    found = subprocess.run([_EMULATOR, program], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
