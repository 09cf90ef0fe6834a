"""Fingerprints change with what a part depends on, and with nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

from dspy_toolkit.datasets import read_file
from dspy_toolkit.errors import DatasetError, ModelNotFound, ProjectError
from dspy_toolkit.project import DataPart, ProgramPart, data_part, load_project, program_part, refuse_changed
from dspy_toolkit.settings import Settings


class Parts(NamedTuple):
    """What a project's results depend on."""

    data: DataPart
    program: ProgramPart


def read(location: str, settings: Settings | None = None, model: str = "acme/small") -> Parts:
    project, settings = load_project(location), settings or Settings(lm={"model": model})
    content = read_file(project.data_path)
    return Parts(data_part(project, settings, content), program_part(project, settings))


def test_reading_twice_gives_the_same(toml: Callable[..., str]) -> None:
    location = toml()
    first = read(location)
    assert read(location) == first
    assert ProgramPart.model_validate_json(first.program.model_dump_json()) == first.program


def test_what_changed_is_named(toml: Callable[..., str]) -> None:
    before = read(toml())
    changed = toml(("by the type of its answer.", "by its answer."), ("[dataset]", 'metric = "token_f1"\n[dataset]'))
    with pytest.raises(ProjectError, match=r"^The metric and the program of questions changed since this run began\."):
        refuse_changed(before.program, lambda: read(changed).program)
    refuse_changed(before.program, lambda: read(toml()).program)
    toml(data="text,label\nWho!,human\n")
    with pytest.raises(ProjectError, match=r"^The data of questions changed since this run began\. Run it again\.$"):
        refuse_changed(before.data, lambda: read(changed).data)


def test_what_differs_each_time_is_no_change(tmp_path: Path, python_text: str) -> None:
    """A program that is made by chance."""
    (tmp_path / "rows.csv").write_text("text,label\na,true\n")
    chance = "ChainOfThought(Answer); self.chance = dspy.Predict(Answer.with_instructions(str(id(self))))"
    text = python_text.replace("ChainOfThought(Answer)", chance).replace("import dspy", "import dspy, uuid", 1)
    text = text.replace("str(id(self))", "uuid.uuid4().hex")
    (tmp_path / "mine.py").write_text(text)
    location = f"{tmp_path}/mine.py:project"
    before = read(location).program
    assert read(location).program.fingerprint != before.fingerprint
    refuse_changed(before, lambda: read(location).program)
    with pytest.raises(ProjectError, match="The models of mine changed"):
        refuse_changed(before, lambda: read(location, model="acme/big").program)


def test_a_byte_of_data_changes_the_data_part_alone(toml: Callable[..., str]) -> None:
    before = read(toml())
    after = read(toml(data="text,label\nWho!,human\nWhat?,entity\n"))
    assert after.data.fingerprint != before.data.fingerprint
    assert after.program == before.program


def test_another_model_changes_the_program_part_alone(toml: Callable[..., str]) -> None:
    before, after = read(toml()), read(toml(), model="acme/big")
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
    assert here.data.location != there.data.location
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
        "import sys\nfrom tests.project.test_fingerprints import read\n"
        "for location in sys.argv[1:]:\n    print(*(part.model_dump_json() for part in read(location)))\n"
    )
    locations = [toml(), f"{tmp_path}/mine.py:project"]
    expected = "\n".join(" ".join(part.model_dump_json() for part in read(location)) for location in locations)
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
    with pytest.raises(DatasetError, match=r"question\.csv does not exist\. Did you mean questions\.csv"):
        read(location)


def test_a_declared_file_changes_the_program_part_alone(toml: Callable[..., str], tmp_path: Path) -> None:
    rules = tmp_path / "project" / "rules"
    location = toml(("[dataset]", 'files = ["rules/*.md", "word list.txt"]\n[dataset]'))
    rules.mkdir()
    (rules / "a.md").write_text("Be kind.")
    (tmp_path / "project" / "word list.txt").write_text("yes\nno\n")
    refs = [read(location)]
    (rules / "a.md").write_text("Be just.")
    refs.append(read(location))
    (rules / "b.md").touch()
    refs.append(read(location))
    (tmp_path / "project" / "word list.txt").write_text("yes\n")
    refs.append(read(location))
    (rules / "notes.txt").touch()
    assert read(location) == refs[-1]
    assert len({ref.program.fingerprint for ref in refs}) == len(refs)
    assert len({ref.data.fingerprint for ref in refs}) == 1


@pytest.mark.parametrize("entry", ["rules/a.md", "rules/*.md", "/nowhere/at/all"])
def test_a_declared_file_that_is_not_there_is_named(toml: Callable[..., str], entry: str) -> None:
    location = toml(("[dataset]", f'files = ["{entry}"]\n[dataset]'))
    with pytest.raises(ProjectError, match=f"files has {re.escape(repr(entry))}. There is no file"):
        read(location)


def test_a_declared_folder_is_all_of_its_files(toml: Callable[..., str], tmp_path: Path) -> None:
    location = toml(("[dataset]", 'files = ["rules"]\n[dataset]'))
    (tmp_path / "project" / "rules" / "deep").mkdir(parents=True)
    for name in ("deep/b.md", "a.md"):
        (tmp_path / "project" / "rules" / name).touch()
    assert list(load_project(location).declared_files) == ["rules/a.md", "rules/deep/b.md"]


def test_a_file_that_a_file_imports_is_imported_again_when_it_changed(tmp_path: Path, python_text: str) -> None:
    """What runs is what the fingerprint says, also two imports away."""
    (tmp_path / "rows.csv").write_text("text,label\na,true\n")
    (tmp_path / "number_one.py").write_text("from number_two import TWO\n")
    main = "import number_one\n" + python_text.replace('summary="Mine"', 'summary=f"{number_one.TWO}"')
    (tmp_path / "mine.py").write_text(main)
    seen = []
    for number in (2, 3, 3):
        (tmp_path / "number_two.py").write_text(f"TWO = {number}\n")
        location = f"{tmp_path}/mine.py:project"
        seen.append((load_project(location).summary, read(location).program.fingerprint))
    assert [summary for summary, _ in seen] == ["2", "3", "3"]
    assert seen[0] != seen[1] == seen[2]


def test_a_module_of_another_folder_is_not_taken_for_one_of_its_name(tmp_path: Path, python_text: str) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name.py").write_text(f"NAME = '{folder}'\n")
        (tmp_path / folder / "mine.py").write_text("import same_name\n" + python_text)
    load_project(f"{tmp_path}/one/mine.py:project")
    with pytest.raises(ProjectError, match=r"mine.py imports .*two/same_name.py, but this process has imported .*one/"):
        load_project(f"{tmp_path}/two/mine.py:project")


def test_a_module_that_changed_since_it_was_imported_stands_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that Python imported by itself, and that somebody still holds."""
    import importlib

    from dspy_toolkit.user_sources import text_of

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "held_metric.py").write_text("def held(example, prediction):\n    return 1\n")
    held = importlib.import_module("held_metric").held
    assert "return 1" in text_of(held)
    (tmp_path / "held_metric.py").write_text("def held(example, prediction):\n    return 0\n")
    with pytest.raises(ProjectError, match="held_metric has changed since this process imported it. Run it again"):
        text_of(held)


def test_an_editable_install_is_followed_and_an_installed_package_has_its_version(
    tmp_path: Path, python_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,true\n")
    (tmp_path / "elsewhere" / "our_library").mkdir(parents=True)
    library = tmp_path / "elsewhere" / "our_library" / "__init__.py"
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    (tmp_path / "mine.py").write_text("import jinja2.nodes, our_library, yaml\n" + python_text)
    seen = []
    for text in ("", "LIMIT = 4\n"):
        library.write_text(text)
        seen.append(read(f"{tmp_path}/mine.py:project").program.fingerprint)
    assert seen[0] != seen[1]
    code = load_project(f"{tmp_path}/mine.py:project").code
    assert f"# jinja2 {version('jinja2')}" in code
    assert f"# yaml PyYAML {version('PyYAML')}" in code


def test_packages_in_a_folder_that_an_installer_filled_are_installed_packages(
    tmp_path: Path, python_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own site folder, or `pip install --target` on PYTHONPATH: otherwise the sources of DSPy are read each time."""
    from dspy_toolkit.user_sources import is_user_code

    (tmp_path / "rows.csv").write_text("text,label\na,true\n")
    target = tmp_path / "target"
    (target / "their_library").mkdir(parents=True)
    (target / "their_library" / "__init__.py").write_text("SECRET_SAUCE = 1\n")
    (target / "their_library-1.2.dist-info").mkdir()
    (target / "their_library-1.2.dist-info" / "METADATA").write_text("Name: their-library\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(target)
    (tmp_path / "mine.py").write_text("import their_library\n" + python_text)
    assert not is_user_code(target / "their_library" / "__init__.py")
    assert is_user_code(tmp_path / "mine.py")
    assert "SECRET_SAUCE" not in load_project(f"{tmp_path}/mine.py:project").code
