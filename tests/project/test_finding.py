"""Finding a project by name, file or module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dspy_toolkit.errors import ProjectError, SettingsError
from dspy_toolkit.project import finding, load_named, load_project, project_names, register
from dspy_toolkit.settings import Settings, load_settings


def refused(location: str, settings: Settings | None = None) -> str:
    with pytest.raises(ProjectError) as caught:
        load_project(location, settings)
    return str(caught.value)


def test_a_python_file_gives_its_project(tmp_path: Path, python_text: str) -> None:
    (tmp_path / "mine.py").write_text(python_text)
    for location in (f"{tmp_path}/mine.py:project", f"{tmp_path}/mine.py"):
        project = load_project(location)
        assert project.name == "mine"
        assert project.renames == {"verdict": "label"}
        assert project.location == location
        assert project.data_path == tmp_path / "rows.csv"
        assert next(iter(project.build().named_predictors()))[0] == "answer.predict"


def test_a_module_gives_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_text: str) -> None:
    package = tmp_path / "some_package_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(python_text)
    monkeypatch.syspath_prepend(tmp_path)
    project = load_project("some_package_of_mine.mine:project")
    assert project.folder == package
    assert "class Program" in project.code


def test_two_files_of_one_name_are_two_modules(tmp_path: Path, python_text: str) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(python_text.replace('"mine"', f'"{name}"'))
    assert [load_project(f"{tmp_path}/{name}/mine.py:project").name for name in ("one", "two")] == ["one", "two"]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("mine.py:projct", "has no projct. Did you mean project?"),
        ("mine.py:LIMIT", "LIMIT, which is 3, not a Project. Known: project."),
        ("mine.py:metric.deep", "has no metric.deep"),
        ("mime.py:project", "mime.py. Did you mean mine.py?"),
        ("no/where.py:project", "does not exist"),
        ("broken.py:project", "broken.py cannot be imported: ZeroDivisionError: division by zero (broken.py, line 3)"),
        ("two.py", "holds 2 projects"),
        ("mine.tom", "There is no file"),
        ("mine.tml.toml", "There is no file"),
        ("mine", "There is no project"),
    ],
)
def test_a_location_without_a_project_is_explained(tmp_path: Path, location: str, says: str, python_text: str) -> None:
    (tmp_path / "mine.py").write_text(python_text)
    (tmp_path / "two.py").write_text(python_text + "other = project\n")
    (tmp_path / "broken.py").write_text("import dspy\n\nx = 1 / 0\n")
    assert says in refused(location if location == "mine" else f"{tmp_path}/{location}")


def test_other_locations_that_lead_nowhere() -> None:
    assert "path/to/file.py:attr" in refused("")
    assert "path/to/file.py:attr" in refused(":project")
    assert "There is no module dspy_toolkitt" in refused("dspy_toolkitt.project:project")


def test_a_module_of_the_working_folder_is_found(tmp_path: Path, python_text: str) -> None:
    (tmp_path / "mine_here.py").write_text(python_text)
    program = "from dspy_toolkit.project import load_project; print(load_project('mine_here:project').folder)"
    # -P keeps Python from putting the working folder on the path, as a console script does.
    command = [sys.executable, "-P", "-c", program]
    run = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == str(tmp_path)


def test_finding_imports_nothing_heavy() -> None:
    program = (
        "import sys, dspy_toolkit.project, dspy_toolkit.metrics, dspy_toolkit.project.signatures\n"
        "print(sorted({'dspy', 'pandas', 'litellm', 'mlx', 'mlflow', 'scipy', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_registered_projects_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_text: str
) -> None:
    monkeypatch.setattr(finding, "_registered", {})
    (tmp_path / "mine.py").write_text(python_text)
    register(load_project(f"{tmp_path}/mine.py:project"))
    assert load_project("mine").location == "mine"
    assert load_project("mine").folder == tmp_path
    assert {"mine", "router"} <= set(project_names())
    assert "Did you mean router?" in refused("ruoter")
    assert "Did you mean mine?" in refused("minee")


def test_the_settings_give_a_name_a_location(tmp_path: Path, python_text: str) -> None:
    (tmp_path / "mine.py").write_text(python_text)
    settings = load_settings(projects={"mine": {"location": f"{tmp_path}/mine.py:project", "lm": {"max_tokens": 7}}})
    assert load_project("mine", settings).folder == load_named("mine", settings).folder == tmp_path
    assert "mine" in project_names(settings)
    assert settings.for_project("mine").lm.max_tokens == 7
    assert "Did you mean mine?" in refused("minee", settings)
    other = load_settings(projects={"router": {"location": f"{tmp_path}/mine.py:project"}})
    assert "[projects.router] location leads to a project called 'mine'" in refused("router", other)
    with pytest.raises(SettingsError, match="location is 3"):
        load_settings(projects={"mine": {"location": 3}})


@pytest.mark.parametrize("name", ["mine.py", "mine.py:project", "./mine.toml", "mine:project", "json", ""])
def test_a_name_is_no_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_text: str) -> None:
    (tmp_path / "mine.py").write_text(python_text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProjectError, match="There is no project"):
        load_named(name)
