"""Reading a project from TOML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dspy
import pytest

from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.metrics import exact_match, name_of
from dspy_toolkit.project import load_project


def refused(location: str) -> str:
    with pytest.raises(ProjectError) as caught:
        load_project(location)
    return str(caught.value)


def test_a_toml_project_is_whole(toml: Callable[..., str]) -> None:
    location = toml()
    project = load_project(location)
    assert (project.name, project.optimizer, project.budget) == ("questions", "auto", None)
    assert project.metric is exact_match
    assert project.location == location
    assert project.data_path == Path(location).with_name("questions.csv")
    program = project.build()
    assert isinstance(program, dspy.Predict)
    assert program.signature.instructions == "Classify the question by the type of its answer."
    assert project.build() is not program


def test_every_key_of_the_toml_is_read(toml: Callable[..., str]) -> None:
    location = toml(
        (
            "[dataset]",
            'module = "chain_of_thought"\nmetric = "own:half"\noptimizer = "gepa"\nbudget = "heavy"\n[dataset]',
        ),
        (
            'outputs = ["label"]\n',
            (
                'outputs = ["label"]\nstratify = "label"\ngroup = "who"\nseed = 7\n'
                "[dataset.fractions]\ntrain = 0.5\nval = 0.25\nsealed = 0.25\n"
            ),
        ),
    )
    Path(location).with_name("own.py").write_text("def half(example, prediction):\n    return 0.5\n")
    project = load_project(location)
    assert isinstance(project.build(), dspy.ChainOfThought)
    assert project.metric(None, None) == 0.5
    assert (project.optimizer, project.budget) == ("gepa", "heavy")
    assert project.dataset == DatasetSpec(
        source="questions.csv",
        inputs=("text",),
        outputs=("label",),
        fractions=Fractions(train=0.5, val=0.25, sealed=0.25),
        stratify="label",
        group="who",
        seed=7,
    )


def test_a_metric_may_be_a_table(toml: Callable[..., str]) -> None:
    inline = load_project(toml(("[dataset]", 'metric = { name = "token_f1", fields = ["label"] }\n[dataset]')))
    assert name_of(inline.metric) == "token_f1(fields=('label',))"
    table = (
        '[metric]\nname = "weighted"\n'
        'of = [\n  { name = "token_f1", weight = 3 },\n  "exact_match",\n]\n'
        'require = ["own_rule:short"]\n[dataset]'
    )
    location = toml(("[dataset]", table), folder="composed")
    Path(location).with_name("own_rule.py").write_text("def short(example, prediction):\n    return 1\n")
    assert name_of(load_project(location).metric) == "weighted(3 token_f1, 1 exact_match; requires own_rule:short)"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("summary =", "sumary =", "unknown key sumary. Did you mean summary?"),
        ("source =", "sorce =", "unknown key dataset.sorce. Did you mean source?"),
        ("source =", "sorce =", "dataset.source is missing"),
        ('name = "questions"\n', "", "name is missing"),
        ('"questions"\n', '"My Questions"\n', "project name 'My Questions' cannot be used"),
        ('"questions"\n', "3\n", "name is 3"),
        ("[dataset]", 'module = "react"\n[dataset]', "module is 'react'"),
        ("[dataset]", 'optimizer = "gepaa"\n[dataset]', "optimizer is 'gepaa'"),
        ("[dataset]", 'budget = "huge"\n[dataset]', "budget is 'huge'"),
        ("[dataset]", 'metric = "exactmatch"\n[dataset]', "Did you mean exact_match?"),
        ("[dataset]", 'metric = "nowhere:f"\n[dataset]', "There is no module nowhere"),
        ("[dataset]", "metric = 3\n[dataset]", "metric is 3. Write a name, or a table"),
        ("[dataset]", 'metric = { nam = "token_f1" }\n[dataset]', "has no name"),
        ("[dataset]", 'metric = { name = "token_f1", field = ["label"] }\n[dataset]', "Did you mean fields?"),
        (
            "[dataset]",
            'metric = { name = "token_f1", fields = ["lable"] }\n[dataset]',
            "fields of token_f1 has 'lable', which is not in dataset.outputs. Did you mean label?",
        ),
        ('["text"]', '"text"', "dataset.inputs is 'text'. Write a list"),
        ('["text"]', '["txt"]', "dataset.inputs has 'txt', which is no input of the signature. Did you mean text?"),
        ('["label"]', '["lable"]', "dataset.outputs has 'lable', which is no output of the signature."),
        ('["label"]', '["text"]', "text more than once"),
        ('["label"]', "[]", "dataset.outputs is empty"),
        ("text: str ->", "text: str, topic: str ->", "the signature's input 'topic' has no column"),
        ("text: str ->", "text: strr ->", "Did you mean str?"),
        ('summary = "', "summary = ", "line 2, column"),
        ("inputs =", "inputs", "line 7, column"),
        ('outputs = ["label"]\n', 'outputs = ["label"', "line 8"),
        ('outputs = ["label"]\n', 'outputs = ["label"]\n[dataset.fractions]\ntrian = 1\n', "Did you mean train?"),
        (
            'outputs = ["label"]\n',
            'outputs = ["label"]\nfractions = {train = 0.5, val = 0.3, sealed = 0.3}\n',
            "sum to 1.1",
        ),
    ],
)
def test_a_fault_in_the_toml_is_explained_with_its_file(
    toml: Callable[..., str], old: str, new: str, says: str
) -> None:
    message = refused(toml((old, new)))
    assert says in message
    assert all("questions.toml" in line for line in message.splitlines())


def test_a_toml_file_that_is_not_text_is_refused(toml: Callable[..., str]) -> None:
    location = toml()
    Path(location).write_bytes(b"name = \xff")
    assert "UTF-8" in refused(location)
