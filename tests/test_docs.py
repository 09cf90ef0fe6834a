"""The reference is made from the code alone, and the checks see what is broken."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import build

    return build


def test_every_setting_command_error_and_package_has_its_place(build: ModuleType) -> None:
    from dspy_toolkit import errors
    from dspy_toolkit.settings import Section, Settings

    made = build.pages(ROOT)
    for name, field in Settings.model_fields.items():
        section = field.annotation if isinstance(field.annotation, type) else None
        inner = section.model_fields if section and issubclass(section, Section) else {"": None}
        for key in inner:
            assert f"DSPY_TOOLKIT_{name.upper()}{f'__{key.upper()}' if key else ''}`" in made["settings.md"]
    for command in ("doctor", "history", "predict", "programs", "programs list", "programs show", "programs rollback"):
        assert f"## `dspy-toolkit {command}`\n\n```text\nUsage: dspy-toolkit {command}" in made["cli.md"]
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.ToolkitError):
            assert f"## `{name}`" in made["errors.md"]
    assert "def load_version(settings: Settings, reference: str) ->" in made["dspy_toolkit.registry.md"]
    for flow in ("optimize_program", "compare_optimizers", "benchmark_machine"):
        assert f"## `{flow}`\n\n```sh\npython -m flows.{flow} --help" in made["flows.md"]
    assert "- `dry_run`: stop before anything is compiled" in made["flows.md"]
    for metric in ("exact_match", "judge", "weighted", "token_f1"):
        assert f"## `{metric}`" in made["metrics.md"]
    assert "| `request` | input | `str` | what a user asks" in made["projects.md"]
    for route in ("POST /v1/programs/{name}/predict", "GET /v1/programs", "POST /v1/chat/completions", "GET /healthz"):
        assert f"## `{route}`\n\n" in made["routes.md"]
    assert all(f"({name})" in made["README.md"] for name in made if name != "README.md")
    assert made == build.pages(ROOT)


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
