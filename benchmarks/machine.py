"""What a measurement was taken on, and writing it down."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("dspy-toolkit", "dspy", "mlx", "mlx-lm", "prefect", "mlflow")


def describe() -> dict[str, Any]:
    """The machine, the time, and the versions that matter."""
    from dspy_toolkit.lm.models.hardware import inspect_hardware

    hardware = inspect_hardware()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        **hardware.model_dump(include={"system", "chip", "cores", "memory_bytes", "device"}),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # prefect is an extra
        return None


def write(path: Path | None, benchmark: str, results: dict[str, Any]) -> None:
    """Write `results` with the machine beside them as JSON to `path`, if there is one."""
    if path is None:
        return
    report = {"benchmark": benchmark, "machine": describe(), "results": results}
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {path}", file=sys.stderr)
