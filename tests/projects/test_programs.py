"""The programs: signatures that validate, whatever the model says; a metric that counts fields and what they lead to."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any, get_args

import dspy
import pytest

from dspy_toolkit.advising.program import advice_metric
from dspy_toolkit.project.signatures import fields_of
from tests.projects.built_in import ADVISORS

SIGNATURES = {
    "lora": ("LoRAOptimizationSignature", "LoRATrainingSignature"),
    "diffusion": ("DiffusionOptimizationSignature", "SamplingScheduleSignature"),
    "clip": ("CLIPDomainAdaptationSignature", "ContrastiveLossSignature"),
    "federated": ("FederatedLearningSignature", "ClientUpdateSignature"),
}


def project_of(name: str) -> Any:
    return import_module(f"dspy_toolkit.projects.{name}.definition").project


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_have_the_situations_fields_as_choices(name: str) -> None:
    module = import_module(f"dspy_toolkit.projects.{name}.signatures")
    reading, choosing = (getattr(module, signature) for signature in SIGNATURES[name])
    assert reading.__name__ == SIGNATURES[name][0]
    assert set(reading.input_fields) == {"request"}
    assert set(reading.output_fields) == set(ADVISORS[name].situation.model_fields)
    assert all("unknown" in get_args(field.annotation) for field in reading.output_fields.values())
    assert set(choosing.output_fields) == {"configuration", "explanation"}


@pytest.mark.parametrize("name", SIGNATURES)
def test_projects_fit_their_rows(name: str) -> None:
    project = project_of(name)
    program = project.build()
    assert len(program.predictors()) == 1, "a program of one step can be fine-tuned"
    assert set(project.dataset.columns) <= fields_of(program).keys()
    assert project.data_path.is_file()
    assert [path.name for path in project.declared_files.values()] == ["runs.parquet"]


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_program_answers_with_a_valid_configuration(name: str) -> None:
    program = project_of(name).build()
    answer = dict.fromkeys(ADVISORS[name].situation.model_fields, "unknown")
    with dspy.context(lm=dspy.utils.DummyLM([answer]), adapter=dspy.ChatAdapter()):
        said = program(request="anything")
    assert said.configuration.to_yaml()
    assert "Expected" in said.explanation


def test_a_models_words_stand_only_where_their_numbers_do() -> None:
    from dspy_toolkit.projects.federated.program import make_program

    fields = {"clients": "dozens", "skew": "strong", "devices": "reliable", "rounds": "many", "privacy": "unknown"}
    plain = make_program()
    with dspy.context(lm=dspy.utils.DummyLM([fields])):
        alone = plain(request="x")
    invented = {
        "configuration": alone.configuration.model_copy(update={"rounds": 999}).model_dump_json(),
        "explanation": "777 rounds.",
    }
    with dspy.context(lm=dspy.utils.DummyLM([fields, invented])):
        said = make_program(explain=True)(request="x")
    assert said.configuration == alone.configuration, "what is not among the candidates is not taken"
    assert said.explanation == alone.explanation


def metric_of(name: str) -> Any:
    return advice_metric(lambda: ADVISORS[name])


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_truth_scores_high_and_nothing_scores_lower(name: str) -> None:
    advisor, metric = ADVISORS[name], metric_of(name)
    levels = {field: advisor.situation.levels(field)[0] for field in advisor.situation.model_fields}
    example = dspy.Example(request="x", **levels).with_inputs("request")
    right, empty = metric(example, SimpleNamespace(**levels)), metric(example, SimpleNamespace())
    assert right.measures["fields"] == 1 and empty.measures["fields"] == 0
    assert 0 <= empty.value < right.value <= 1
    assert right.measures["regret"] >= 0
    assert advisor.unit in right.feedback and "not 'unknown'" in empty.feedback


def test_what_breaks_a_constraint_scores_nothing() -> None:
    metric = metric_of("diffusion")
    meant = dspy.Example(request="x", images="photos", schedule="linear", speed="fast", repeatable="yes")
    score = metric(meant, SimpleNamespace(images="photos", schedule="linear", speed="quality", repeatable="yes"))
    assert score.value == 0
    assert "Not allowed" in score.feedback
