"""What a machine says of itself, with folders in place of the kernel's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.lm.models import hardware
from dspy_toolkit.lm.models.hardware import (
    cgroup_memory,
    inspect_hardware,
    own_cgroups,
    usable_cores,
    working_set_memory,
)


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine() -> None:
    found = inspect_hardware()
    assert found.cores >= 1
    assert 2**28 < found.available_bytes <= found.memory_bytes
    assert found.device in ("metal", "cuda", "cpu")
    assert found.chip
    assert found.metal == (found.device == "metal")


def test_cgroup_version_2(tmp_path: Path) -> None:
    write(tmp_path, memory_DOT_max="2000\n", memory_DOT_current="1500\n")
    assert cgroup_memory(tmp_path) == (2000, 1500)
    write(tmp_path, memory_DOT_stat="anon 300\ninactive_file 1100\nactive_file 100\n")
    assert cgroup_memory(tmp_path) == (2000, 400)


def test_cgroup_version_1(tmp_path: Path) -> None:
    write(tmp_path, memory__memory_DOT_limit_in_bytes="900", memory__memory_DOT_usage_in_bytes="800")
    write(tmp_path, memory__memory_DOT_stat="inactive_file 1\ntotal_inactive_file 500\n")
    assert cgroup_memory(tmp_path) == (900, 300)


@pytest.mark.parametrize("text", ["max\n", "", "-1"])
def test_no_limit(tmp_path: Path, text: str) -> None:
    assert cgroup_memory(write(tmp_path, memory_DOT_max=text)) == (None, 0)


def test_the_limit_counts_not_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, memory_DOT_max=str(2**28), memory_DOT_current=str(2**27))
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    found = inspect_hardware()
    assert (found.memory_bytes, found.available_bytes) == (2**28, 2**27)
    assert found.memory_limited_by == "cgroup"
    write(tmp_path, memory_DOT_max=str(2**60))
    assert inspect_hardware().memory_limited_by == "machine"


@pytest.mark.parametrize(("text", "most"), [("150000 100000", 2), ("100000 100000", 1), ("10000 100000", 1)])
def test_a_quota_of_cores(tmp_path: Path, text: str, most: int) -> None:
    assert 1 <= usable_cores(write(tmp_path, cpu_DOT_max=text)) <= most


@pytest.mark.parametrize("text", ["max 100000", "", "half", "some 100000", "5 0"])
def test_no_quota_that_can_be_understood(tmp_path: Path, text: str) -> None:
    assert usable_cores(write(tmp_path, cpu_DOT_max=text)) == usable_cores(tmp_path / "nothing")


def test_a_group_above_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `systemd-run -p MemoryMax=…`: the limit is on the unit, and the process may be in a group below it."""
    root, listing = tmp_path / "cgroup", tmp_path / "listing"
    listing.write_text("0::/user.slice/unit.scope/inner\n")
    write(root, user_DOT_slice__unit_DOT_scope__memory_DOT_max=str(2**29))
    write(root, user_DOT_slice__unit_DOT_scope__memory_DOT_current=str(2**28))
    write(root, user_DOT_slice__unit_DOT_scope__inner__memory_DOT_max="max")
    monkeypatch.setattr(hardware, "CGROUP", root)
    monkeypatch.setattr(hardware, "OWN_CGROUPS", listing)
    assert hardware.machine_memory() == (2**29, 2**28, "cgroup")
    # One that leaves less decides, whichever is the smaller.
    write(root, user_DOT_slice__memory_DOT_max=str(2**30), user_DOT_slice__memory_DOT_current=str(2**30 - 2**20))
    assert hardware.machine_memory() == (2**29, 2**20, "cgroup")
    assert hardware.loadable_memory("cpu") == 2**20


def test_where_limits_are_looked_for(tmp_path: Path) -> None:
    listing = tmp_path / "listing"
    listing.write_text("4:memory:/a/b\n3:cpuset:/c\n0::/\nnonsense\n")
    assert list(own_cgroups(tmp_path, listing)) == [tmp_path, *(tmp_path / "memory" / p for p in ("a/b", "a", ""))]
    assert list(own_cgroups(tmp_path, tmp_path / "nothing")) == [tmp_path]


@pytest.mark.parametrize(
    ("info", "held", "expected"),
    [
        # An M4 Pro with 48 GB: all that it reports.
        (
            {
                "resource_limit": 499000,
                "max_buffer_length": 30150672384,
                "architecture": "applegpu_g16s",
                "memory_size": 51539607552,
                "max_recommended_working_set_size": 40200896512,
                "device_name": "Apple M4 Pro",
            },
            896512,
            (40200896512, 40200000000),
        ),
        ({"memory_size": 8 * 2**30, "max_recommended_working_set_size": 5726633984}, 2**33, (5726633984, 0)),
        # A CUDA device says what is free, whoever took the rest.
        (
            {"architecture": "sm_90", "total_memory": 85520809984, "free_memory": 1000, "uuid": "GPU-0"},
            5,
            (85520809984, 1000),
        ),
        ({"architecture": "x86_64", "device_name": "Intel(R) Xeon(R) Processor"}, 5, (None, None)),
    ],
)
def test_what_an_accelerator_says_of_its_memory(
    info: dict[str, Any], held: int, expected: tuple[int | None, int | None]
) -> None:
    assert working_set_memory(info, held) == expected


@pytest.mark.parametrize(
    ("device", "available", "free", "expected"),
    [("cpu", 7, None, 7), ("metal", 7, 5, 5), ("metal", 3, 5, 3), ("cuda", 3, 5, 5)],
)
def test_what_a_model_may_take(device: str, available: int, free: int | None, expected: int) -> None:
    here = inspect_hardware().model_copy(
        update={"device": device, "available_bytes": available, "working_set_free_bytes": free}
    )
    assert here.loadable_bytes == expected
