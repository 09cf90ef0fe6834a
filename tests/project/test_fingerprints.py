"""Fingerprints change with what a part depends on, and with nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dspy_toolkit.errors import DatasetError, ModelNotFound
from dspy_toolkit.project import ChampionPart, ProjectRef, load_project, resolve
from dspy_toolkit.settings import Settings


def read(location: str, settings: Settings | None = None, model: str = "mlx/m@1") -> ProjectRef:
    return resolve(
        load_project(location), settings or Settings(), model=model, reflection_model="mlx/m@1", champion=ChampionPart()
    )


def test_resolving_twice_gives_the_same(toml: Callable[..., str]) -> None:
    location = toml()
    first = read(location)
    assert read(location) == first
    assert ProjectRef.model_validate_json(first.model_dump_json()) == first


def test_a_byte_of_data_changes_the_data_part_alone(toml: Callable[..., str]) -> None:
    before = read(toml())
    after = read(toml(data="text,label\nWho!,human\nWhat?,entity\n"))
    assert after.data.fingerprint != before.data.fingerprint
    assert after.program == before.program


@pytest.mark.parametrize(
    "settings",
    [
        Settings(data={"near_duplicate": 0.9}),
        Settings(data={"drop_bad_rows": True}),
    ],
)
def test_a_data_setting_changes_the_data_part_alone(toml: Callable[..., str], settings: Settings) -> None:
    before, after = read(toml()), read(toml(), settings)
    assert after.data != before.data
    assert after.program == before.program


@pytest.mark.parametrize(
    "settings",
    [
        Settings(lm={"temperature": 0.5}),
        Settings(lm={"max_tokens": 99}),
        Settings(optimize={"seed": 1}),
    ],
)
def test_a_setting_that_matters_changes_the_program_part_alone(toml: Callable[..., str], settings: Settings) -> None:
    before, after = read(toml()), read(toml(), settings)
    assert after.program.fingerprint != before.program.fingerprint
    assert after.data == before.data


def test_a_setting_that_does_not_matter_changes_nothing(toml: Callable[..., str]) -> None:
    lm = {"batch_size": 2, "queue_size": 3, "timeout": 5, "api_key": "secret"}
    settings = Settings(lm=lm, optimize={"threads": 3}, home=Path("elsewhere"))
    assert read(toml(), settings) == read(toml())


def test_another_model_changes_the_program_part_alone(toml: Callable[..., str]) -> None:
    before, after = read(toml()), read(toml(), model="mlx/m@2")
    assert after.program.fingerprint != before.program.fingerprint
    assert after.data == before.data


@pytest.mark.parametrize(
    ("old", "new", "data_too"),
    [
        ("by the type of its answer.", "by its answer.", False),
        ('"human"]', '"person"]', True),
        ('inputs = ["text"]', 'inputs = ["text"]\nseed = 3', True),
    ],
)
def test_an_edit_of_the_toml_changes_what_depends_on_it(
    toml: Callable[..., str], old: str, new: str, data_too: bool
) -> None:
    before, after = read(toml()), read(toml((old, new)))
    assert after.program.fingerprint != before.program.fingerprint
    assert (after.data.fingerprint != before.data.fingerprint) is data_too


@pytest.mark.parametrize(
    "metric",
    [
        '"token_f1"',
        '{ name = "token_f1", fields = ["label"] }',
        '{ name = "judge", rubric = "Kind?" }',
        '{ name = "judge", rubric = "Kind?", model = "openai/x" }',
    ],
)
def test_another_metric_changes_the_program_part_alone(toml: Callable[..., str], metric: str) -> None:
    before, after = read(toml()), read(toml(("[dataset]", f"metric = {metric}\n[dataset]")))
    assert after.program.fingerprint != before.program.fingerprint
    assert after.data == before.data


def test_the_weights_of_a_judge_count(
    toml: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_toolkit.lm import connection

    location = toml(("[dataset]", 'metric = { name = "judge", rubric = "Kind?", model = "mlx/big" }\n[dataset]'))
    with pytest.raises(ModelNotFound, match="big"):
        read(location, Settings(home=tmp_path / "home"))
    prints = []
    for weights in ("1", "2", "1"):
        monkeypatch.setattr(connection, "full_name", lambda model, settings, weights=weights: f"{model}@{weights}")
        prints.append(read(location).program.fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_fingerprints_hold_contents_and_no_paths(toml: Callable[..., str], tmp_path: Path) -> None:
    here, there = read(toml()), read(toml(folder="elsewhere"))
    assert here.location != there.location
    assert here.data.fingerprint == there.data.fingerprint
    assert here.program.fingerprint == there.program.fingerprint
    absolute = read(toml(('"questions.csv"', f'"{tmp_path}/project/questions.csv"')))
    assert absolute.data.fingerprint == here.data.fingerprint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("example.label == prediction.label", "example.label is prediction.label"),
        ("ChainOfThought", "Predict"),
        ("Answer it.", "Answer it!"),
        ("LIMIT = 3", "LIMIT = 4"),
    ],
)
def test_an_edit_of_a_python_project_changes_the_program_part_alone(
    tmp_path: Path, old: str, new: str, python_text: str
) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,true\n")
    location = f"{tmp_path}/mine.py:project"
    refs = []
    for text in (python_text, python_text.replace(old, new), python_text):
        (tmp_path / "mine.py").write_text(text)
        refs.append(read(location))
    assert refs[0] == refs[2]
    assert refs[0].data == refs[1].data
    assert refs[0].program.fingerprint != refs[1].program.fingerprint


def test_an_edit_beside_a_python_project_is_seen(tmp_path: Path, python_text: str) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,true\n")
    (tmp_path / "mine.py").write_text("from beside_mine import TWO\n" + python_text)
    refs = []
    for text in ("TWO = 2\n", "TWO = 3\n"):
        (tmp_path / "beside_mine.py").write_text(text)
        refs.append(read(f"{tmp_path}/mine.py:project"))
    assert refs[0].program.fingerprint != refs[1].program.fingerprint


def test_fingerprints_are_the_same_in_every_process(toml: Callable[..., str], tmp_path: Path, python_text: str) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,true\n")
    (tmp_path / "mine.py").write_text(python_text)
    program = (
        "import sys; from dspy_toolkit.project import *; from dspy_toolkit.settings import Settings\n"
        "for location in sys.argv[1:]:\n"
        "    print(resolve(load_project(location), Settings(), model='mlx/m@1', reflection_model='mlx/m@1',\n"
        "                  champion=ChampionPart()).model_dump_json())\n"
    )
    locations = [toml(), f"{tmp_path}/mine.py:project"]
    expected = "\n".join(read(location).model_dump_json() for location in locations)
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program, *locations],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert run.stdout.strip() == expected


def test_a_missing_data_file_is_named_with_the_nearest(toml: Callable[..., str]) -> None:
    location = toml(('"questions.csv"', '"question.csv"'))
    with pytest.raises(DatasetError, match=r"question\.csv\. Did you mean questions\.csv"):
        read(location)
