"""The settings from the command line: shown with where they come from, changed in a file, and never half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspy_toolkit.settings import load_settings


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSPY_TOOLKIT_LM__LEASE", raising=False)


def test_settings_are_shown_with_their_source(command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dspy-toolkit.toml").write_text('[lm]\nmodel = "openai/gpt-4o"\napi_key = "sk-very-secret-1234"\n')
    monkeypatch.setenv("DSPY_TOOLKIT_OPTIMIZE__SEED", "7")
    shown = json.loads(command("config", "show", "--json").out)
    assert shown["lm.model"] == {"value": "openai/gpt-4o", "from": "dspy-toolkit.toml"}
    assert shown["optimize.seed"] == {"value": "7", "from": "environment (DSPY_TOOLKIT_OPTIMIZE__SEED)"}
    assert shown["optimize.budget"] == {"value": "light", "from": "default"}
    everything = command("config", "show")
    assert "sk-very-secret-1234" not in everything.out + json.dumps(shown)
    assert list(json.loads(command("config", "show", "lm.model", "--json").out)) == ["lm.model"]
    assert "Did you mean lm.model" in command("config", "show", "lm.modell").err


def test_a_setting_is_changed_and_the_rest_of_the_file_stays(command) -> None:
    file = Path("dspy-toolkit.toml")
    file.write_text("# ours\n[lm]\nmodel = 'mlx/smollm2-135m'  # small\nbatch_size = 4\n")
    ended = command("config", "set", "lm.batch_size", "8")
    assert ended.out == "lm.batch_size is 8 in dspy-toolkit.toml now; it was 4.\n", ended.err
    assert file.read_text() == "# ours\n[lm]\nmodel = 'mlx/smollm2-135m'  # small\nbatch_size = 8\n"
    assert command("config", "set", "lm.model", "openai/gpt-4o").code == 0
    assert command("config", "set", "projects.router.optimize.budget", "medium").code == 0
    assert command("config", "set", "lm.fallbacks", '["openai/a", "openai/b"]').code == 0
    settings = load_settings()
    assert (settings.lm.model, settings.lm.batch_size, settings.lm.fallbacks) == (
        "openai/gpt-4o",
        8,
        ("openai/a", "openai/b"),
    )
    assert settings.for_project("router").optimize.budget == "medium"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lm.modell", "x", "lm.modell is not a setting. Did you mean model?"),
        ("optimize.budget", "huge", "There is no budget 'huge'"),
        ("lm.batch_size", "many", "batch_size"),
        ("projects.router.lmm.model", "x", "cannot hold 'lmm'"),
        ("lm", "x", "lm"),
        ("lm..model", "x", "is not a setting"),
        ("lm.api_key", "sk-1", "Set DSPY_TOOLKIT_LM__API_KEY instead"),
        ("registry.tracking_uri", "http://x", "Set DSPY_TOOLKIT_REGISTRY__TRACKING_URI instead"),
        ("home.x", "1", "home is a value"),
    ],
)
def test_what_does_not_fit_is_not_written(command, name: str, value: str, said: str) -> None:
    file = Path("dspy-toolkit.toml")
    file.write_text('home = "here"\n')
    ended = command("config", "set", name, value)
    assert ended.code == 1 and said in ended.err, ended.err
    assert file.read_text() == 'home = "here"\n'


def test_a_file_is_checked_by_itself(command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("good.toml").write_text("[optimize]\nseed = 3\n")
    Path("bad.toml").write_text("[optimize]\nsede = 3\n")
    Path("torn.toml").write_text("[optimize\n")
    monkeypatch.setenv("DSPY_TOOLKIT_OPTIMIZE__SEED", "none of it")
    assert command("config", "check", "good.toml").out == "good.toml: nothing is wrong.\n"
    wrong = command("config", "check", "bad.toml")
    assert wrong.code == 1 and "bad.toml: optimize.sede is not a setting. Did you mean seed?" in wrong.err
    assert command("config", "check", "torn.toml").code == 1
    assert command("config", "check", "none.toml").code == 1
    told = command("config", "check", "--json")
    assert told.code == 1 and "seed" in json.loads(told.out)["fault"]
