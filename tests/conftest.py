from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dspy_toolkit.settings import Settings


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them: making one takes seconds, copying one does not."""
    from dspy_toolkit.mlflow_client import connect

    home = Settings(home=tmp_path_factory.mktemp("mlflow"))
    connect(home)
    return home.path("mlflow.db")


@pytest.fixture
def home(tmp_path: Path, empty_mlflow: Path) -> Settings:
    """Settings of a fresh home, with a space in its name, whose MLflow database is made."""
    settings = Settings(home=tmp_path / "a home")
    settings.path().mkdir()
    shutil.copy(empty_mlflow, settings.path("mlflow.db"))
    return settings
