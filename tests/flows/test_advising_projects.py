"""The four projects that advise, through the whole flow with a model that reads well once it was shown how; then advice by what won."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.project import load_project
from dspy_toolkit.testing import FakeEngine


def reader_of(name: str) -> Any:
    """A model that knows what each description means, and says so when its prompt has demonstrations."""
    project = load_project(name)
    fields = project.dataset.outputs
    known = {
        row["request"]: {field: row[field] for field in fields}
        for row in map(json.loads, project.data_path.read_text(encoding="utf-8").splitlines())
    }

    def answer(request: GenerationRequest) -> dict[str, str]:
        asked = request.messages[-1].content
        meant = [text for text in known if text in asked]
        taught = len(request.messages) > 2
        if taught and meant:
            return known[max(meant, key=len)]
        return dict.fromkeys(fields, "unknown")

    return answer


@pytest.fixture
def home(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(empty_mlflow, home / "mlflow.db")
    monkeypatch.setenv("DSPY_TOOLKIT_HOME", str(home))
    monkeypatch.setenv("DSPY_TOOLKIT_OBSERVE__PROGRESS", "false")
    monkeypatch.setenv("PREFECT_RESULTS_LOCAL_STORAGE_PATH", os.path.join(home, "results"))
    return home


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("name", ["federated", "lora", "diffusion", "clip"])
@pytest.mark.soak
def test_a_project_is_optimized_and_then_reads_for_advice(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_toolkit.advising import advise
    from dspy_toolkit.lm.connection import serve_engine
    from flows.optimize_program import optimize_program

    engine = FakeEngine(reader_of(name))
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", engine.model)
    serve_engine(engine)
    try:
        decision = optimize_program(project=name, optimizer="labelled", budget="200")
        # How sure the gate can be is the rows' doing; that the candidate was better is the model's.
        assert decision.outcome == "promoted" or "better than the champion: +" in decision.reason, decision.reason
        project = load_project(name)
        row = json.loads(project.data_path.read_text(encoding="utf-8").splitlines()[0])
        advice = advise(name, row["request"])
        if decision.outcome == "promoted":
            assert "promoted program" in advice.read_by
            assert advice.situation.model_dump() == {field: row[field] for field in project.dataset.outputs}
        else:
            assert "keyword rules" in advice.read_by, "a baseline is not asked"
        assert advice.configuration.to_yaml()
    finally:
        engine.close()
