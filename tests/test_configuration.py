"""The settings as functions: shown with where they come from, changed in a file, checked; a file that would be wrong is not written."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.configuration import Changed, SettingInForce, change_setting, check_settings, settings_in_force
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.settings import load_settings


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, and no setting of the machine's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSPY_TOOLKIT_LM__LEASE", raising=False)
    return tmp_path


def test_every_setting_has_its_value_and_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dspy-toolkit.toml").write_text("[optimize]\nseed = 3\n[projects.router.lm]\nmax_tokens = 9\n")
    monkeypatch.setenv("DSPY_TOOLKIT_LM__API_KEY", "sk-very-secret-1234")
    found = settings_in_force(load_settings())
    assert SettingInForce("optimize.seed", "3", "dspy-toolkit.toml") in found
    assert SettingInForce("projects.router.lm.max_tokens", "9", "dspy-toolkit.toml") in found
    assert SettingInForce("lm.batch_size", "16", "") in found
    (key,) = [line for line in found if line.name == "lm.api_key"]
    assert key.source == "environment (DSPY_TOOLKIT_LM__API_KEY)" and "secret" not in key.value


def test_one_setting_or_one_section_is_picked_by_its_name() -> None:
    settings = load_settings()
    assert [line.name for line in settings_in_force(settings, "lm.model")] == ["lm.model"]
    section = [line.name for line in settings_in_force(settings, "lm")]
    assert section[0] == "lm.model" and all(name.startswith("lm.") for name in section)
    with pytest.raises(SettingsError, match="lm.modell is not a setting. Did you mean lm.model"):
        settings_in_force(settings, "lm.modell")


def test_a_setting_is_changed_in_the_file_that_is_named(folder: Path) -> None:
    file = folder / "there" / "other.toml"
    file.parent.mkdir()
    assert change_setting("lm.batch_size", "4", file) == Changed(value=4, before=None)
    assert change_setting("lm.batch_size", "8", file) == Changed(value=8, before=4)
    assert check_settings(file).lm.batch_size == 8
    assert not Path("dspy-toolkit.toml").exists()
    assert change_setting("lm.model", "openai/gpt-4o") == Changed(value="openai/gpt-4o", before=None)
    assert load_settings().lm.model == "openai/gpt-4o"
    before = file.read_bytes()
    with pytest.raises(SettingsError, match=r"other\.toml: lm\.batch_size"):
        change_setting("lm.batch_size", "0", file)
    assert file.read_bytes() == before


def test_a_file_is_checked_by_itself_and_without_one_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("good.toml").write_text("[optimize]\nseed = 3\n")
    Path("bad.toml").write_text("[optimize]\nsede = 3\n")
    monkeypatch.setenv("DSPY_TOOLKIT_OPTIMIZE__SEED", "7")
    assert check_settings(Path("good.toml")).optimize.seed == 3
    assert check_settings().optimize.seed == 7
    with pytest.raises(SettingsError, match="bad.toml: optimize.sede is not a setting. Did you mean seed"):
        check_settings(Path("bad.toml"))
    with pytest.raises(SettingsError, match="none.toml cannot be read"):
        check_settings(Path("none.toml"))
