"""How many cores this process may use: in a container or a Slurm step, few of those of the host."""

import math
import os
from pathlib import Path


def usable_cores(root: str = "/") -> int:
    """The cores of this process's affinity, as far as the CPU quotas of its control groups
    (cgroup v2) allow.

    Args:
        root: the directory with proc and sys.
    """
    quotas = [float(len(os.sched_getaffinity(0)))]
    for file in _quota_files(Path(root)):
        quota, _, period = file.read_text().strip().partition(" ")
        if quota != "max":
            quotas.append(int(quota) / int(period))
    return max(1, math.ceil(min(quotas)))


def _quota_files(root: Path) -> list[Path]:
    """The quotas of the process's control group and of those around it."""
    groups = root / "proc/self/cgroup"
    lines = groups.read_text().splitlines() if groups.is_file() else []
    group = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    mounted = root / "sys/fs/cgroup"
    inner = mounted / group.strip("/")
    folders = [inner, *inner.parents]
    files = [folder / "cpu.max" for folder in folders[: folders.index(mounted) + 1]]
    return [file for file in files if file.is_file()]
