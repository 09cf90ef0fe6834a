"""What the system tests share: a small project over rows outside the repository, and a home with the converted model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

FILMS = [
    "Harbour Lights",
    "The Long Ladder",
    "Salt",
    "Nine Umbrellas",
    "A Quiet Engine",
    "Marble Street",
    "Orchard",
    "Zero",
]
PRAISE = ["wonderful from the first minute", "I laughed until I cried", "what acting, what music", "see it twice"]
BLAME = ["dull to the very end", "I walked out after an hour", "nobody in it can act", "a waste of an evening"]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """The TOML file of a project with 64 short rows."""
    folder = tmp_path / "a project"
    folder.mkdir()
    rows = ["text,label"]
    for film in FILMS:
        rows += [f'"{film}: {words}.",good' for words in PRAISE]
        rows += [f'"{film}? {words}.",bad' for words in BLAME]
    (folder / "films.csv").write_text("\n".join(rows) + "\n")
    project = folder / "films.toml"
    project.write_text(
        """
name = "films"
summary = "Tell whether a review is good or bad"
signature = 'text: str -> label: Literal["good", "bad"]'
instructions = "Is the review good or bad?"

[dataset]
source = "films.csv"
inputs = ["text"]
outputs = ["label"]
"""
    )
    return project


@pytest.fixture
def fresh_home(tmp_path: Path, model_home: Path) -> dict[str, str]:
    """An environment with a home of its own, in which only the model is there already."""
    home = tmp_path / "home"
    shutil.copytree(model_home / "models", home / "models")
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return mine | {"DSPY_TOOLKIT_HOME": str(home)}
