"""The settings: what overrides what, what old and unknown names are told, and that no key is shown or handed on."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import SettingsError
from dspy_toolkit.lm.roles import Role, RoleModel, role_model
from dspy_toolkit.settings import Settings, load_settings

KEY = "sk-planted-0123"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str) -> None:
    Path("dspy-toolkit.toml").write_text(text)


def access(role: RoleModel) -> tuple[str, str | None, str | None]:
    return role.model, role.api_base, role.api_key.get_secret_value() if role.api_key else None


def test_defaults_of_the_roles() -> None:
    settings = Settings()
    roles: tuple[Role, ...] = ("lm", "reflection", "teacher", "judge")
    found = {role: role_model(settings, role) for role in roles}
    assert {role.model for role in found.values()} == {"mlx/smollm2-135m"}
    assert [(role.temperature, role.max_tokens, role.timeout) for role in found.values()] == [
        (0.0, 256, 600),
        (1.0, 16_000, 600),
        (0.0, 256, 600),  # the task's, whose replies a cache may have
        (0.0, 1_000, 600),
    ]
    assert role_model(load_settings(lm={"timeout": 7}), "judge").timeout == 7
    # Where the teacher is another model, its limit is its own.
    assert role_model(Settings(teacher={"model": "openai/t"}), "teacher").max_tokens == 1_000  # pyright: ignore[reportArgumentType]


TASK = {"model": "openai/task", "api_key": "task-key", "api_base": "http://task/v1"}


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ({}, ("openai/task", "http://task/v1", "task-key")),
        ({"model": "openai/task"}, ("openai/task", "http://task/v1", "task-key")),
        ({"api_key": "own"}, ("openai/task", "http://task/v1", "own")),
        ({"api_base": "http://other/v1"}, ("openai/task", "http://other/v1", None)),
        ({"api_base": "http://other/v1", "api_key": "own"}, ("openai/task", "http://other/v1", "own")),
        ({"model": "openai/larger"}, ("openai/larger", None, None)),
        ({"model": "anthropic/c", "api_key": "own"}, ("anthropic/c", None, "own")),
    ],
)
@pytest.mark.parametrize("role", ["reflection", "teacher", "judge"])
def test_a_key_goes_to_its_sections_model_at_its_address(role: Role, section: dict[str, Any], given: Any) -> None:
    assert access(role_model(load_settings(**{"lm": TASK, role: section}), role)) == given


def test_a_judge_that_a_metric_names_has_the_key_of_the_section_about_it() -> None:
    settings = load_settings(lm=TASK, judge={"model": "openai/judge", "api_key": "judge-key"})
    assert access(role_model(settings, "judge", "openai/judge")) == ("openai/judge", None, "judge-key")
    assert access(role_model(settings, "judge", "openai/task")) == ("openai/task", "http://task/v1", "task-key")
    assert access(role_model(settings, "judge", "openai/other")) == ("openai/other", None, None)


def test_a_key_does_not_follow_when_something_stronger_names_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        "[lm]\nmodel = 'openai/a'\napi_key = 'k'\napi_base = 'http://a/v1'\n"
        "[projects.same.lm]\nmodel = 'openai/b'\n"
        "[projects.other.lm]\nmodel = 'anthropic/b'\n"
        "[projects.elsewhere.lm]\napi_base = 'http://b/v1'\n"
    )
    settings = load_settings()
    assert access(role_model(settings.for_project("same"), "lm")) == ("openai/b", "http://a/v1", "k")
    assert access(role_model(settings.for_project("other"), "lm")) == ("anthropic/b", None, None)
    assert access(role_model(settings.for_project("elsewhere"), "lm")) == ("openai/a", "http://b/v1", None)
    assert access(role_model(load_settings(lm={"model": "anthropic/b"}), "lm")) == ("anthropic/b", None, None)
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", "anthropic/b")
    assert access(role_model(load_settings(), "lm")) == ("anthropic/b", None, None)
    monkeypatch.setenv("DSPY_TOOLKIT_LM__API_KEY", "its own")
    assert access(role_model(load_settings(), "lm")) == ("anthropic/b", None, "its own")


def test_no_key_is_in_a_repr_or_a_dump() -> None:
    write(
        f"[lm]\napi_key = '{KEY}'\n[projects.router.judge]\napi_key = '{KEY}'\n[projects.router.lm]\nmax_tokens = 9\n"
    )
    settings = load_settings(reflection={"api_key": KEY})
    project = settings.for_project("router")
    for each in (settings, project, role_model(settings, "reflection"), role_model(project, "judge")):
        assert KEY not in repr(each) and KEY not in str(each)
    for each in (settings, project):
        assert KEY not in str(each.model_dump()) and KEY not in each.model_dump_json()
    assert access(role_model(project, "judge"))[2] == KEY and project.lm.max_tokens == 9


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LM", f'{{"api_key": "{KEY}"'),
        ("LM", f'"{KEY}"'),
        ("LM", f'["{KEY}"]'),
        ("LM", f'{{"api_key": ["{KEY}"]}}'),
        ("LM", f'{{"apikey": "{KEY}"}}'),
        ("LM__API_BASE", f"http://me:{KEY}@host/v1"),
        ("LM__API_BASE", KEY),
        ("PROJECTS", f'{{"router": "{KEY}"}}'),
        ("PROJECTS", f'{{"router": {{"lm": {{"max_tokens": {{"api_key": "{KEY}"}}}}}}}}'),
        ("PROJECTS", f'{{"router": {{"lm": "{KEY}"}}}}'),
    ],
)
def test_a_malformed_variable_is_not_echoed_with_its_secret(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"DSPY_TOOLKIT_{variable}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_value_that_is_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MAX_TOKENS", "many")
    with pytest.raises(SettingsError, match=r"lm\.max_tokens: .*\(it is 'many'\)"):
        load_settings()


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        (
            "[lm]\nreflection_model = 'openai/x'",
            r"lm\.reflection_model is no longer a setting: write \[reflection\] model",
        ),
        (
            "[projects.a.lm]\nreflection_model = 'openai/x'",
            r"\[projects\.a\.lm\] reflection_model .*\[reflection\] model",
        ),
        ("[lm]\ndeadline_seconds = 5", r"lm\.deadline_seconds is no longer a setting: write \[lm\] timeout"),
        ("[reflexion]\nmodel = 'x'", "reflexion is not a setting. Did you mean reflection"),
        ("[judge]\nmaximum = 5", r"judge\.maximum is not a setting"),
        ("[serve]\nport = 1", "serve is not a setting"),
    ],
)
def test_an_old_or_unknown_name_is_told_what_to_write(toml: str, says: str) -> None:
    write(toml)
    with pytest.raises(SettingsError, match=says):
        load_settings()


def test_the_old_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_TOOLKIT_LM__REFLECTION_MODEL", "openai/x")
    with pytest.raises(SettingsError, match=r"no longer a setting: write \[reflection\] model"):
        load_settings()


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_TOOLKIT_HOEM", "x")
    with pytest.raises(SettingsError, match="DSPY_TOOLKIT_HOEM is not a setting. Did you mean home"):
        load_settings()


@pytest.mark.parametrize("name", ["what?", "a%20b", "$HOME"])
def test_a_home_that_a_database_would_take_for_another_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="choose another name"):
        load_settings(home=tmp_path / name)
    assert load_settings(home=tmp_path / "a::b #1").path("x") == tmp_path.resolve() / "a::b #1" / "x"
