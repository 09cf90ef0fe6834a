from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.registry import Manifest, save_version
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking import runs as tracking

Save = Callable[..., int]


@pytest.fixture
def other(tmp_path: Path, empty_mlflow: Path) -> Settings:
    """Another home."""
    settings = Settings(home=tmp_path / "another home")
    settings.path().mkdir()
    shutil.copy(empty_mlflow, settings.path("mlflow.db"))
    return settings


@pytest.fixture
def save(home: Settings) -> Save:
    """Save a version whose program is `{"text": text}`, on a run of its own unless one is given."""

    def save(text: str, project: str = "router", run_id: str | None = None, **fields: Any) -> int:
        manifest = Manifest(
            **{"project": project, "optimizer": "bootstrap", "model": "mlx/tiny", "metric": "exact_match"}
            | {"signature_fields": {"request": "str", "project": "str"}, "signature_sha256": "0" * 64}
            | fields
        )
        run_id = run_id or tracking.open_run(home, project, f"optimize {project}")
        return save_version(home, project, {"text": text}, manifest, run_id)

    return save
