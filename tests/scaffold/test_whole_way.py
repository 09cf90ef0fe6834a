"""A new project, promoted, exported, imported elsewhere and used; with a fake model that learns from demonstrations."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.pipeline.release import release_baseline
from dspy_toolkit.registry import champions
from dspy_toolkit.registry.exports import export_bundle
from dspy_toolkit.registry.importing import import_program
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.registry.verdicts import promote_by_verdict
from dspy_toolkit.scaffold import new_project
from dspy_toolkit.settings import LMSettings, Settings
from dspy_toolkit.store import Store
from dspy_toolkit.testing import fake_connection
from tests.optimizers.benches import Bench
from tests.optimizers.toys import asked_field, field_in


class Fresh(Bench):
    """A new project in place of the toy."""

    def __init__(self, home: Settings, folder: Path) -> None:
        made = new_project("triage", "classify", folder)
        with (made.folder / "rows.csv").open(newline="", encoding="utf-8") as file:
            self.topics = {row["message"]: row["topic"] for row in csv.DictReader(file)}
        settings = home.model_copy(update={"lm": LMSettings(model="openai/toy")})
        self.toy: Any = SimpleNamespace(settings=settings, store=Store(settings.objects))
        self.connection = fake_connection(self.reply, settings)
        self.location = str(made.project)

    def reply(self, request: GenerationRequest) -> dict[str, str]:
        if field := asked_field(request):
            return {field: "Look again."}
        shown = len(request.messages) > 2
        return {"topic": self.topics[field_in("message", request.messages[-1].content)] if shown else "account"}


def test_a_new_project_is_promoted_exported_imported_elsewhere_and_used(
    home: Settings, tmp_path: Path, empty_mlflow: Path
) -> None:
    bench = Fresh(home, tmp_path)
    release_baseline(bench.context(), bench.resolve())
    run, _ = bench.whole(optimizer="labelled", budget="120")
    assert (run.decision.outcome, run.decision.version) == ("promoted", 2), run.decision.reason

    bundle = tmp_path / "triage.bundle"
    export_bundle(home, "triage@champion", bundle)
    other = Settings(home=tmp_path / "elsewhere")
    other.path().mkdir()
    shutil.copy(empty_mlflow, other.path("mlflow.db"))
    made = import_program(other, bundle, bench.location)
    assert (made.project, made.version) == ("triage", 1)
    # The verdict came with it, and nothing is live here that it would have to be compared with.
    promoted = promote_by_verdict(other, "triage@1")
    assert promoted.verdict is not None and promoted.verdict.outcome == "promoted"
    assert [version.version for version in champions(other, "triage")] == [1]

    program = load_program(other, "triage", bench.location).program
    message = next(text for text, topic in bench.topics.items() if topic == "technical")
    with bench.connection.context():
        assert program(message=message).topic == "technical"
