"""A Prefect server for the session, and a project whose fake model is better with demonstrations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.settings import Settings, load_settings
from dspy_toolkit.testing import FakeEngine


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    from prefect.logging.configuration import setup_logging
    from prefect.testing.utilities import prefect_test_harness

    import flows  # noqa: F401  (points Prefect at the tests' home before it is imported)

    setup_logging()  # else by the first flow of the process, in the middle of a test: it takes away what catches the log
    with prefect_test_harness(server_startup_timeout=180):
        yield


def answer(request: GenerationRequest) -> dict[str, str]:
    """A model that counts: with demonstrations in the prompt it sees the digit, without it always says `person`."""
    asked = request.messages[0].content.partition("Your output fields are:")[2].partition("All interactions")[0]
    for field in ("better_instruction", "proposed_instruction", "new_instruction", *ABOUT_THE_TASK):
        if f"`{field}`" in asked:
            return {field: "no"}
    question = request.messages[-1].content
    taught = len(request.messages) > 2
    return {"label": "number" if taught and any(sign.isdigit() for sign in question) else "person"}


ABOUT_THE_TASK = ("summary", "observations", "module_description", "program_description")
"""What MIPROv2's proposer asks first."""


@dataclass
class Playground:
    """A TOML project over a CSV, a home, and the fake behind the home's model."""

    location: str
    rows: Path
    engine: FakeEngine

    @property
    def settings(self) -> Settings:
        return load_settings()


NAMES = ["Ada", "Blaise", "Carl", "Dora", "Emmy", "Fermat", "Gauss", "Hilbert", "Ivan", "Jacobi", "Kepler", "Lagrange"]
VERBS = ["met", "taught", "admired", "wrote to"]


def write_questions(folder: Path) -> Path:
    """Write the project and its rows; the TOML file."""
    rows = folder / "questions.csv"
    lines = ["text,label"]
    for index, name in enumerate(NAMES):
        for turn, verb in enumerate(VERBS):
            other = NAMES[(index + turn + 1) % len(NAMES)]
            lines.append(f"Who {verb} {name} before {other} did?,person")
            lines.append(f"How often has {other} {verb} {name} since {1600 + 10 * index + turn}?,number")
    rows.write_text("\n".join(lines) + "\n")
    project = folder / "questions.toml"
    project.write_text(
        """
name = "questions"
summary = "Classify a question by the type of its answer"
signature = 'text: str -> label: Literal["number", "person"]'
instructions = "Classify the question by the type of its answer."

[dataset]
source = "questions.csv"
inputs = ["text"]
outputs = ["label"]
"""
    )
    return project


@pytest.fixture
def playground(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Playground]:
    import shutil

    from dspy_toolkit.lm.connection import serve_engine

    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(empty_mlflow, home / "mlflow.db")
    engine = FakeEngine(answer)
    for name, value in {"HOME": str(home), "LM__MODEL": engine.model, "OBSERVE__PROGRESS": "false"}.items():
        monkeypatch.setenv(f"DSPY_TOOLKIT_{name}", value)
    monkeypatch.setenv("PREFECT_RESULTS_LOCAL_STORAGE_PATH", os.path.join(home, "results"))
    serve_engine(engine)
    project = write_questions(tmp_path)
    yield Playground(str(project), tmp_path / "questions.csv", engine)
    engine.close()  # not all engines: the session's real one serves on
