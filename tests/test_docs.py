"""The reference is made from the code alone, and the checks see what is broken."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from prefect import Flow

from dspy_toolkit import errors
from dspy_toolkit.cli import app
from dspy_toolkit.metrics import judge, pairwise, weighted
from dspy_toolkit.metrics.naming import BUILT_IN
from dspy_toolkit.serving.app import create_app
from dspy_toolkit.settings import Section, Settings
from tests.cli.test_json_everywhere import commands

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def build() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        yield importlib.import_module("build")


@pytest.fixture(scope="module")
def made(build: ModuleType) -> dict[str, str]:
    return build.pages(ROOT)


def section(page: str, name: str) -> str:
    """What a page says below the heading of `name`."""
    parts = re.split(r"^## ", page, flags=re.MULTILINE)
    (found,) = [part for part in parts if part.startswith(f"`{name}`\n")]
    return found


def test_every_setting_command_error_and_package_has_its_place(made: dict[str, str], build: ModuleType) -> None:
    for name, field in Settings.model_fields.items():
        inner = field.annotation.model_fields if _is_section(field.annotation) else {"": None}
        for key in inner:
            assert f"DSPY_TOOLKIT_{name.upper()}{f'__{key.upper()}' if key else ''}`" in made["settings.md"]
    for command, _ in commands(app):
        assert f"Usage: dspy-toolkit {command}" in section(made["cli.md"], f"dspy-toolkit {command}"), command
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.ToolkitError):
            assert section(made["errors.md"], name).strip().count("\n") > 1, name
    assert "def load_version(settings: Settings, reference: str) ->" in made["dspy_toolkit.registry.md"]
    assert all(f"({name})" in made["README.md"] for name in made if name != "README.md")
    assert made == build.pages(ROOT)


def test_every_flow_has_a_section_with_a_text_for_each_parameter(made: dict[str, str]) -> None:
    files = sorted((ROOT / "flows").glob("*.py"))
    found = {
        value.fn.__name__: value.fn
        for module in (importlib.import_module(f"flows.{path.stem}") for path in files if path.stem != "__init__")
        for value in vars(module).values()
        if isinstance(value, Flow) and value.fn.__module__ == module.__name__
    }
    assert {"optimize_program", "compare_optimizers", "monitor_program", "score_candidate"} <= found.keys()
    for name, function in found.items():
        said = section(made["flows.md"], name)
        for parameter in inspect.signature(function).parameters:
            assert re.search(rf"^- `{parameter}`: \S", said, re.MULTILINE), (name, parameter)
    assert "python -m flows.optimize_program --help" in section(made["flows.md"], "optimize_program")
    assert "python -m" not in section(made["flows.md"], "score_candidate"), "there is no such command"


def test_every_metric_that_a_project_may_name_has_a_section_with_its_options(made: dict[str, str]) -> None:
    functions = BUILT_IN | {"judge": judge, "pairwise": pairwise, "weighted": weighted}
    assert {f"{name}(" for name in functions} <= set(re.findall(r"^\w+\(", made["metrics.md"], re.MULTILINE))
    for name, function in functions.items():
        said = section(made["metrics.md"], name)
        own = [each for each in inspect.signature(function).parameters if each not in ("example", "prediction")]
        assert not [each for each in own if not re.search(rf"^- `{each}`: \S", said, re.MULTILINE)], name


def test_every_route_of_the_app_has_a_section_that_says_something(made: dict[str, str]) -> None:
    routes = [each for each in iter_route_contexts(create_app(Settings()).routes) if each.path != "/openapi.json"]
    known = [f"{method} {each.path}" for each in routes for method in sorted(set(each.methods or ()) - {"HEAD"})]
    assert {"GET /healthz", "POST /v1/programs/{name}/predict"} <= set(known)
    for route in known:
        assert section(made["routes.md"], route).strip().count("\n") > 0, route


def test_every_built_in_project_has_a_section_with_its_program_its_metric_and_all_its_fields(
    made: dict[str, str],
) -> None:
    installed = entry_points(group="dspy_toolkit.projects")
    assert {"router", "lora", "diffusion", "clip", "federated"} <= installed.names
    for entry in installed:
        project, said = entry.load(), section(made["projects.md"], entry.name)
        program = project.build()
        assert f"| program | `{type(program).__name__}` of `{type(program).__module__}` |" in said
        metric = re.findall(r"^\| metric \| \[`(\w+)`\]\(metrics\.md#\1\) \|$", said, re.MULTILINE)
        assert section(made["metrics.md"], *metric)
        for predictor in program.predictors():
            fields = predictor.signature.input_fields, predictor.signature.output_fields
            for role, names in zip(("input", "output"), fields, strict=True):
                for name in names:
                    assert f"| `{name}` | {role} | " in said, (entry.name, name)


def test_every_command_and_tool_is_in_the_skill_and_every_page_in_llms_txt(build: ModuleType) -> None:
    made = build.doors(ROOT)
    for name in ("programs reprove", "projects new", "mcp", "gate power", "predict"):
        assert f"- `dspy-toolkit {name}`: " in made["SKILL.md"]
    for name in ("show_program", "optimize", "doctor"):
        assert f"- `{name}`: " in made["SKILL.md"]
    for page in ["README.md", *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))]:
        assert f"]({page})" in made["llms.txt"]
    assert build.stale_doors(ROOT) == {}


def test_a_skill_that_differs_is_stale(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A thing\n\n![picture](x.png)\n\nIt does [this](y.md). And more.\n")
    (tmp_path / "SKILL.md").write_text("edited")
    assert set(build.stale_doors(tmp_path)) == {"SKILL.md", "llms.txt"}
    assert "- [A thing](README.md): It does this." in build.doors(tmp_path)["llms.txt"]


def test_a_page_that_differs_is_stale_until_it_is_written(build: ModuleType, tmp_path: Path) -> None:
    made = {"a.md": "A\n", "b.md": "B\n"}
    assert build.write(tmp_path, made) == build.write(tmp_path, {}) == [build.REFERENCE / name for name in made]
    build.write(tmp_path, made)
    assert build.stale(tmp_path, made) == []
    (tmp_path / build.REFERENCE / "a.md").write_text("edited")
    (tmp_path / build.REFERENCE / "old.md").write_text("nothing makes it")
    assert [path.name for path in build.stale(tmp_path, made)] == ["a.md", "old.md"]
    build.write(tmp_path, made)
    assert sorted(path.name for path in (tmp_path / build.REFERENCE).iterdir()) == ["a.md", "b.md"]


def test_dead_links_and_broken_examples_are_named_with_their_line(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text("[up](../README.md) [section](#here) [away](https://example.com)\n")
    (tmp_path / "README.md").write_text(
        "[guide](docs/guide.md#part) and\n[gone](docs/gone.md)\n\n"
        "```python\nx = 1\ny = = 2\n```\n\n"
        "```toml\nx = = 1\n[link](nowhere.md)\n```\n\n"
        "1. in a list\n\n   ```python\n   print(1)\n   ```\n"
    )
    assert build.problems(tmp_path) == [
        "README.md, line 2: the link to docs/gone.md leads nowhere. Correct it.",
        "README.md, line 6: the example does not compile: invalid syntax. Correct it.",
    ]


def test_every_drill_has_a_row_and_every_row_a_drill(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests" / "drills").mkdir(parents=True)
    (tmp_path / "tests" / "drills" / "test_files.py").write_text('@pytest.mark.drill(7, "empty")\n')
    (tmp_path / "docs" / "reliability.md").write_text("| 8 | a bit | seen | 1 s |\n")
    assert build.problems(tmp_path) == [
        "docs/reliability.md: drill 7 has no row. Run `make drills`.",
        "docs/reliability.md: drill 8 has a row and is not there. Run `make drills`.",
    ]


def test_an_unknown_argument_is_refused(build: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--chek"]) == 2
    assert "'--chek'" in capsys.readouterr().err


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
