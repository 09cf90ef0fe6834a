"""What a machine says of itself, with folders in place of the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.lm import hardware
from dspy_toolkit.lm.hardware import cgroup_memory, inspect_hardware, usable_cores


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
