"""What this machine has: chip, cores, memory, accelerators.

Read fresh at each call; nothing is remembered. A container's limits count, not the host's: of all control groups around
this process, the one that leaves the least. MPS is reported when the machine can have it, without importing torch.

How Metal and CUDA report their memory is known from records of their answers (`tests/lm/models/test_hardware.py`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dspy_toolkit.store import Frozen

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


class Hardware(Frozen):
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
    working_set_bytes: int | None = None
    """What the accelerator may hold at once: the working set that Metal recommends (a part of the machine's memory),
    the memory of a CUDA device. None on the CPU."""
    working_set_free_bytes: int | None = None
    """What is free of it now."""

    @property
    def loadable_bytes(self) -> int:
        """What a model and everything beside it may take now."""
        return _loadable(self.device, self.available_bytes, self.working_set_free_bytes)


def inspect_hardware() -> Hardware:
    """What this machine has. Imports mlx, after the BLAS, so the first call takes a moment."""
    from dspy_toolkit.lm.models.blas import preload

    preload()
    import mlx.core as mx

    total, available, limited_by = machine_memory()
    metal = mx.metal.is_available()
    cuda = mx.default_device().type == mx.gpu and not metal
    working_set, free = working_set_memory(mx.device_info(), held_bytes()) if metal or cuda else (None, None)
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
        working_set_bytes=working_set,
        working_set_free_bytes=free,
    )


def pretend_gpu(hardware: Hardware) -> Hardware:
    """The same machine, for engines that are to take a GPU's ways on it: for tests and benchmarks on machines without one.

    Weights stay in their precision, nothing goes through NumPy, steps run ahead of their tokens. MLX computes on the CPU.
    """
    return hardware.model_copy(update={"device": "cuda"})


def machine_memory() -> tuple[int, int, str]:
    """(total, available, limited by `machine` or `cgroup`), in bytes, for this process. Takes some 0.1 ms."""
    import psutil

    memory = psutil.virtual_memory()
    total, available, limited_by = memory.total, memory.available, "machine"
    for group in own_cgroups(CGROUP, OWN_CGROUPS):
        limit, used = cgroup_memory(group)
        if limit is not None and limit < memory.total:
            total, limited_by = min(total, limit), "cgroup"
            available = min(available, max(limit - used, 0))
    return total, available, limited_by


def pressure_level() -> int | None:
    """What macOS says of the whole machine's memory: 1 normal, 2 warning, 4 critical; None where it says nothing.

    It counts what is compressed and swapped, which the bytes that are available do not tell. Takes some microseconds.
    """
    if sys.platform != "darwin":
        return None
    level, length = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    name = b"kern.memorystatus_vm_pressure_level"
    failed = ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(level), ctypes.byref(length), None, 0)
    return None if failed else level.value


def loadable_memory(device: str) -> int:
    """Bytes that may still be taken on `device` (`metal`, `cuda`, `cpu`) now; cheap enough for once a second."""
    free = None
    if device != "cpu":
        import mlx.core as mx

        _, free = working_set_memory(mx.device_info(), held_bytes())
    return _loadable(device, machine_memory()[1], free)


def _loadable(device: str, available: int, free: int | None) -> int:
    if free is None:
        return available
    # A CUDA device has memory of its own; Metal's working set is a part of the machine's.
    return free if device == "cuda" else min(free, available)


def held_bytes() -> int:
    """What MLX holds in this process, freed buffers included."""
    import mlx.core as mx

    return mx.get_active_memory() + mx.get_cache_memory()


def working_set_memory(info: Mapping[str, Any], held_bytes: int) -> tuple[int | None, int | None]:
    """(working set, free of it) in bytes, from `mx.device_info()` of an accelerator; None where it gives none.

    Args:
        info: Metal's has `max_recommended_working_set_size`; CUDA's has `total_memory` and `free_memory`.
        held_bytes: what MLX holds in this process already; Metal does not subtract it.
    """
    if (recommended := info.get("max_recommended_working_set_size")) is not None:
        return int(recommended), max(int(recommended) - held_bytes, 0)
    if (total := info.get("total_memory")) is not None:
        return int(total), int(info.get("free_memory", total))
    return None, None


def own_cgroups(root: Path, listing: Path) -> Iterator[Path]:
    """Folders to look for limits in: the control groups of this process and all above them, up to `root`.

    Args:
        root: where the groups are mounted.
        listing: `/proc/self/cgroup`, in lines of `number:controllers:path`; in a container the path is often just `/`.
    """
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        lines = []
    found = [root]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):  # version 2's only one, version 1's of memory
            continue
        top = root / controllers
        group = top / path.strip("/")
        found += [parent for parent in (group, *group.parents) if parent.is_relative_to(top)]
    yield from dict.fromkeys(found)


def cgroup_memory(root: Path) -> tuple[int | None, int]:
    """(limit, used) in bytes of a control group (version 2, then 1); the limit is None where there is none.

    As Kubernetes counts, the file cache that the kernel would drop first (`inactive_file`) is not used memory.

    Args:
        root: the group's folder, or version 1's folder of all controllers.
    """
    for folder, limit_file, used_file, cache in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
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


def torch_installed() -> bool:
    """Whether torch and transformers are there, without importing them."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
