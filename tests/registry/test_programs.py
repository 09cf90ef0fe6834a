"""A saved program comes back as it was, for the project as it is now; or says why it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import ProjectError, RegistryError
from dspy_toolkit.metrics import resolve_metric
from dspy_toolkit.pipeline.source import find_start
from dspy_toolkit.project import Project, load_project
from dspy_toolkit.project.states import predictor_states
from dspy_toolkit.registry import Manifest, promote
from dspy_toolkit.registry.programs import load_program, load_state
from dspy_toolkit.registry.references import lasting_location, project_name
from dspy_toolkit.registry.versions import load_version
from dspy_toolkit.settings import RegistrySettings, Settings
from dspy_toolkit.store import Store
from tests.conftest import QUESTIONS

DEMO = {"augmented": True, "text": "Who wrote Emma?", "label": "person"}


def write_version(folder: Path, state: dict[str, Any], manifest: Manifest) -> Path:
    """A saved program as a folder, as it may come from anywhere."""
    folder.mkdir()
    data = json.dumps(state, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    (folder / "program.json").write_bytes(data)
    manifest = manifest.model_copy(update={"program_sha256": hashlib.sha256(data).hexdigest()})
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def test_a_saved_program_comes_back_with_its_instructions_and_demos(home: Settings, save_questions) -> None:
    save_questions("Be brief.")
    loaded = load_program(home, "questions@1")
    assert isinstance(loaded.program, dspy.Predict)
    assert loaded.program.signature.instructions == "Be brief."
    assert [dict(demo) for demo in loaded.program.demos] == [DEMO]
    assert loaded.manifest is not None and loaded.manifest.optimizer == "bootstrap"
    assert loaded.project.dataset.inputs == ("text",)


def test_a_project_means_its_champion_or_else_its_own_program(home: Settings, save_questions, questions: Path) -> None:
    assert load_program(home, str(questions)).manifest is None
    promote(home, "questions", save_questions("Be brief."))
    for reference in (str(questions), "questions", "questions@champion"):
        loaded = load_program(home, reference)
        assert loaded.manifest is not None
        assert loaded.program.predictors()[0].signature.instructions == "Be brief."


def test_nothing_is_made_by_looking(questions: Path, tmp_path: Path) -> None:
    load_program(Settings(home=tmp_path / "none"), str(questions))
    assert not (tmp_path / "none").exists()


def test_a_project_without_a_champion_says_what_it_has(home: Settings, save_questions) -> None:
    save_questions()
    with pytest.raises(RegistryError, match="Nothing of questions is promoted yet; it has 1"):
        load_program(home, "questions")


def test_a_typo_names_the_nearest_project(home: Settings) -> None:
    with pytest.raises(ProjectError, match=r"no project 'ruoter'. Did you mean router\?"):
        load_program(home, "ruoter")


def test_a_project_that_moved_is_found_where_the_caller_says(home: Settings, save_questions, questions: Path) -> None:
    save_questions()
    moved = shutil.move(questions, questions.with_name("moved.toml"))
    with pytest.raises(ProjectError, match="--project LOCATION"):
        load_program(home, "questions@1")
    assert load_program(home, "questions@1", str(moved)).program.demos


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module `trap`, `trap.py` and `trap.toml` in the working folder that write a file; whether they have."""
    sprung = tmp_path / "sprung"
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "trap.py").write_text(f"open({str(sprung)!r}, 'w')")
    (folder / "trap.toml").write_text(QUESTIONS.replace("[dataset]", 'metric = "trap:metric"\n[dataset]'))
    (folder / "trap_package").mkdir()
    (folder / "trap_package" / "__init__.py").write_text(f"open({str(sprung)!r}, 'w')")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return sprung.exists


HERE = Project(
    name="direct",
    summary="A program from Python",
    program=lambda: dspy.Predict("text -> label"),
    metric=resolve_metric("exact_match", Path()),
    dataset=DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",)),
)
"""A project that has no place of its own."""

TRAPS = (
    *("trap.py", "./trap.py:project", "trap:project", "trap.toml", "./trap.toml", "trap", "trap_package:x"),
    *("trap_package", "../elsewhere/trap.py", "file:///trap.py"),
)


@pytest.mark.parametrize("name", TRAPS)
def test_what_a_folder_from_elsewhere_names_is_not_run(
    name: str, home: Settings, save_questions, questions: Path, trap: Callable[[], bool], tmp_path: Path
) -> None:
    save_questions()
    state, manifest = load_version(home, "questions@1")
    hostile = manifest.model_copy(update={"project": name, "location": "./trap.py:project"})
    folder = write_version(tmp_path / "downloaded@3", state, hostile)
    for reference in (str(folder), os.path.relpath(folder)):
        with pytest.raises(ProjectError, match="--project LOCATION"):
            load_program(home, reference)
        with pytest.raises(ProjectError, match="--project LOCATION"):
            find_start(reference, HERE, home, Store(home.objects))
        assert predictor_states(load_state(home, reference)[0])
    assert not trap()
    assert load_program(home, str(folder), str(questions)).program.demos


def test_a_shared_registry_is_believed_about_names_only(
    home: Settings, save_questions, questions: Path, trap: Callable[[], bool]
) -> None:
    save_questions(location="./trap.py:project")
    shared = home.model_copy(update={"registry": RegistrySettings(tracking_uri=home.tracking_uri)})
    with pytest.raises(ProjectError, match="--project LOCATION"):
        load_program(shared, "questions@1")
    assert not trap()
    located = shared.model_copy(update={"projects": {"questions": {"location": str(questions)}}})
    assert load_program(located, "questions@1").program.demos
    assert load_program(shared, str(questions)).manifest is None
    promote(home, "questions", 1)
    assert load_program(shared, str(questions)).program.demos


def test_renamed_fields_are_renamed_in_the_demos(home: Settings, save_questions, questions: Path) -> None:
    save_questions()
    text = questions.read_text().replace("text: str -> label", "question: str -> kind")
    questions.write_text(text.replace('["text"]', '["question"]').replace('["label"]', '["kind"]'))
    with pytest.raises(RegistryError, match="saved with label, text, and the project now has kind, question"):
        load_program(home, "questions@1")
    renamed = questions.with_name("renamed.py")
    renamed.write_text(
        "from dataclasses import replace\n"
        "from dspy_toolkit.project import load_project\n"
        f"found = load_project({str(questions)!r})\n"
        "project = replace(found, renames={'text': 'question', 'label': 'kind'})\n"
        "del found\n"
    )
    program = load_program(home, "questions@1", f"{renamed}:project").program
    assert [dict(demo) for demo in program.demos] == [
        {"augmented": True, "question": DEMO["text"], "kind": DEMO["label"]}
    ]


def test_a_program_of_another_shape_is_refused(home: Settings, save_questions, questions: Path) -> None:
    save_questions()
    questions.write_text(questions.read_text().replace("[dataset]", 'module = "chain_of_thought"\n[dataset]'))
    with pytest.raises(RegistryError, match="does not fit its project any more"):
        load_program(home, "questions@1")


def test_changed_types_are_said_and_used(
    home: Settings, save_questions: Callable[..., int], questions: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_questions()
    questions.write_text(questions.read_text().replace('"person"]', '"person", "place"]'))
    program = load_program(home, "questions@1").program
    assert "types of the fields have changed" in caplog.text
    assert "place" in str(program.signature.output_fields["label"].annotation)


def test_the_lm_inside_a_state_is_not_used(home: Settings, save_questions, questions: Path, tmp_path: Path) -> None:
    """A state may come from anywhere; which LM answers is for the settings, or the project's code, to say."""
    save_questions()
    state, manifest = load_version(home, "questions@1")
    state["lm"] = dspy.LM("openai/somebody-elses").dump_state()
    program = load_project(str(questions)).build()
    program.load_state(state)
    assert program.lm is not None  # what DSPy itself would do
    folder = write_version(tmp_path / "saved", state, manifest)
    assert load_program(home, str(folder), str(questions)).program.lm is None


def test_a_state_can_be_read_when_its_project_is_gone(home: Settings, save_questions, questions: Path) -> None:
    save_questions("Be brief.")
    questions.unlink()
    state, manifest = load_state(home, "questions@1")
    assert manifest is not None
    assert predictor_states(state)[""]["signature"]["instructions"] == "Be brief."


def test_a_module_has_a_state_for_each_predictor() -> None:
    state = dspy.ChainOfThought("question -> answer").dump_state()
    assert list(predictor_states(state)) == ["predict"]


@pytest.mark.parametrize("name", ["router", "package.module:project"])
def test_a_name_stays_a_location(name: str) -> None:
    assert lasting_location(name) == name


def test_a_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lasting_location("x.toml") == str(tmp_path / "x.toml")
    assert lasting_location("sub/x.py:project") == str(tmp_path / "sub/x.py:project")


def test_the_name_of_a_project_at_a_location(questions: Path) -> None:
    assert project_name("router") == "router"
    assert project_name(str(questions)) == "questions"
