"""The TOML that the pages show is read: a settings file by the settings, a project's file as a project."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.project import load_project
from dspy_toolkit.settings import Settings, load_settings
from tests.documentation.shell import ROOT, all_sections

EXAMPLES = [(str(section), text) for section in all_sections(ROOT) for text in section.toml]


def kind_of(content: dict[str, Any]) -> str:
    if "signature" in content:
        return "project"
    return "settings" if content.keys() <= Settings.model_fields.keys() else "part of a project"


@pytest.mark.parametrize(("where", "text"), EXAMPLES)
def test_an_example_is_read(where: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tomllib.loads(text)
    monkeypatch.chdir(tmp_path)
    if kind_of(content) == "settings":
        monkeypatch.delenv("DSPY_TOOLKIT_HOME", raising=False)
        Path("dspy-toolkit.toml").write_text(text)
        loaded = load_settings().model_dump(mode="json")
        for name, given in content.items():
            found = loaded[name]
            assert found == given or (isinstance(given, dict) and given.items() <= found.items())
    elif kind_of(content) == "project":
        Path("questions.toml").write_text(text)
        Path("questions.csv").write_text("text,label\nWho wrote Emma?,human\n")
        project = load_project("questions.toml")
        assert (project.name, project.summary) == (content["name"], content["summary"])
        assert project.build().signature.instructions == content["instructions"]
    else:
        assert content.keys() <= {"metric"}, f"{where}: neither settings nor a project"


def test_every_kind_has_an_example() -> None:
    assert {kind_of(tomllib.loads(text)) for _, text in EXAMPLES} == {"project", "settings", "part of a project"}
