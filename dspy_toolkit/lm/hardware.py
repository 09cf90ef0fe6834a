"""What this machine has: chip, cores, memory, accelerators.

Read fresh at each call; nothing is remembered. A container's limits count, not the host's. MPS is reported when the machine
can have it, without importing torch.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

from dspy_toolkit.store import Value

CGROUP = Path("/sys/fs/cgroup")


class Hardware(Value):
    """One machine, as this process may use it."""

    system: str
    chip: str
    cores: int
    """CPU cores that this process may use."""
    memory_bytes: int
    """Memory that this process may use: the machine's, or the container's limit."""
    available_bytes: int
    """What is free of it now."""
    memory_limited_by: str
    """`machine` or `cgroup`."""
    metal: bool
    cuda: bool
    mps: bool
    """An Apple GPU is there and torch is installed."""
    device: str
    """What MLX will use: `metal`, `cuda` or `cpu`."""


def inspect_hardware() -> Hardware:
    """Look at this machine. Imports mlx (after the BLAS is in place), so the first call takes a moment."""
    from dspy_toolkit.lm.blas import preload

    preload()
    import mlx.core as mx
    import psutil

    memory = psutil.virtual_memory()
    total, available, limited_by = memory.total, memory.available, "machine"
    limit, used = cgroup_memory(CGROUP)
    if limit is not None and limit < total:
        total, limited_by = limit, "cgroup"
        available = min(available, max(limit - used, 0))
    metal = mx.metal.is_available()
    cuda = mx.default_device().type == mx.gpu and not metal
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        chip=chip_name(),
        cores=usable_cores(CGROUP),
        memory_bytes=total,
        available_bytes=available,
        memory_limited_by=limited_by,
        metal=metal,
        cuda=cuda,
        mps=sys.platform == "darwin" and importlib.util.find_spec("torch") is not None,
        device="metal" if metal else "cuda" if cuda else "cpu",
    )


def cgroup_memory(root: Path) -> tuple[int | None, int]:
    """(limit, used) in bytes under a cgroup (version 2, then 1); the limit is None where there is none.

    Used memory leaves out the file cache that the kernel would drop first (`inactive_file`), as Kubernetes counts it.
    """
    for folder, limit_file, used_file, cache in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _read_number(folder / limit_file)
        if limit is not None:
            used = _read_number(folder / used_file) or 0
            return limit, max(used - _read_statistic(folder / "memory.stat", cache), 0)
    return None, 0


def usable_cores(root: Path) -> int:
    """Cores by affinity, or fewer when a cgroup quota allows fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return cores


def chip_name() -> str:
    """The processor's name as the system gives it, else its architecture."""
    if sys.platform == "darwin":
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _read_statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
