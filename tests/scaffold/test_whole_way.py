"""A new project of every template, optimized; one of them promoted, exported, imported elsewhere and used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspy_toolkit.datasets import read_rows
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.pipeline.release import release_baseline
from dspy_toolkit.project import load_project
from dspy_toolkit.registry import champions
from dspy_toolkit.registry.exports import export_bundle
from dspy_toolkit.registry.importing import import_program
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.registry.verdicts import promote_by_verdict
from dspy_toolkit.scaffold import TEMPLATES, from_evals, new_project
from dspy_toolkit.scaffold.writing import NewProject
from dspy_toolkit.settings import LMSettings, Settings
from dspy_toolkit.store import Store
from dspy_toolkit.testing import fake_connection
from tests.optimizers.benches import Bench
from tests.optimizers.toys import asked_field, field_in
from tests.samples import sample

ADVICE = {"reasoning": "So it is.", "advice": {"batch": 16, "workers": 4}}
"""The template `advise` has no answers in its rows, so its model always says this."""


class Fresh(Bench):
    """A new project in place of the toy. Its model gives a row's answer when it is shown how, else that of the first row."""

    def __init__(self, home: Settings, made: NewProject) -> None:
        project = load_project(str(made.project))
        rows = read_rows(project.data_path).to_dict("records")
        self.key, outputs = project.dataset.inputs[0], project.dataset.outputs
        fields = project.build().predictors()[0].signature.output_fields
        self.answers = {
            row[self.key]: {name: row[name] for name in outputs if name in fields} or ADVICE for row in rows
        }
        # One thread: the advising projects compute, and many would wait for each other.
        changed = {"lm": LMSettings(model="openai/toy"), "optimize": home.optimize.model_copy(update={"threads": 1})}
        settings = home.model_copy(update=changed)
        self.toy: Any = SimpleNamespace(settings=settings, store=Store(settings.objects))
        self.connection = fake_connection(self.reply, settings)
        self.location = str(made.project)

    def reply(self, request: GenerationRequest) -> dict[str, Any]:
        if field := asked_field(request):
            return {field: "Look again."}
        first = next(iter(self.answers.values()))
        shown = len(request.messages) > 2
        return self.answers.get(field_in(self.key, request.messages[-1].content), first) if shown else first


@pytest.mark.parametrize("template", sample(TEMPLATES, "classify", "advise"))
def test_a_new_project_of_every_template_goes_through_a_whole_optimization(
    template: str, home: Settings, tmp_path: Path
) -> None:
    bench = Fresh(home, new_project("fresh", template, tmp_path))
    # A template without answers has nothing to show but what the model itself did well.
    run, _ = bench.whole(optimizer="bootstrap" if template == "advise" else "labelled", budget="120")
    expected = "unchanged" if template == "advise" else "promoted"
    assert run.decision.outcome == expected, run.decision.reason


def test_so_does_a_project_of_samples_with_several_right_answers(home: Settings, tmp_path: Path) -> None:
    samples = [{"input": f"How much is {n} and {n}?", "ideal": [str(2 * n), f"twice {n}"]} for n in range(60)]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    bench = Fresh(home, from_evals("fresh", tmp_path / "samples.jsonl", tmp_path))
    run, _ = bench.whole(optimizer="labelled", budget="120")
    assert run.decision.outcome == "promoted", run.decision.reason


def test_a_new_project_is_promoted_exported_imported_elsewhere_and_used(
    home: Settings, tmp_path: Path, empty_mlflow: Path
) -> None:
    bench = Fresh(home, new_project("triage", "classify", tmp_path))
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
    message = next(text for text, said in bench.answers.items() if said["topic"] == "technical")
    with bench.connection.context():
        assert program(message=message).topic == "technical"
