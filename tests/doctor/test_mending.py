"""What the doctor mends, one agreed repair after the other, and that it leaves everything else as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.doctor import Repair, mend, repairs
from dspy_toolkit.durable import is_private
from dspy_toolkit.errors import ModelNotFound
from dspy_toolkit.lm.models import gguf
from dspy_toolkit.settings import Settings
from tests.doctor.faults import LEFT, break_home


@pytest.fixture
def broken(home: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """A home with one fault of each kind."""
    break_home(home, tmp_path / "locks", monkeypatch)
    return home


def test_each_fault_is_found_and_mended_and_nothing_else_changes(broken: Settings, tmp_path: Path) -> None:
    folder = broken.path()
    found = list(repairs(broken))
    assert [repair.name for repair in found] == ["home", "cache", "left", "lock"]
    assert not is_private(folder)  # looking changes nothing
    for repair in found:
        repair.do()
    assert is_private(folder)
    names = {path.relative_to(folder).as_posix().partition(".damaged")[0] for path in folder.rglob("*")}
    assert {"cache/001/cache.db", f"reports/{LEFT}", f"prefect/{LEFT}", "splits/mine.partial", "mlflow.db"} <= names
    assert f"splits/{LEFT}" not in names
    assert not (folder / "cache" / "000").exists()
    assert [path.name.partition("-")[0][:11] for path in (tmp_path / "locks").iterdir()] == ["cpu.damaged"]
    assert list(repairs(broken)) == []


def test_what_is_not_agreed_stays_as_it_is(broken: Settings) -> None:
    asked: list[str] = []

    def agreed(repair: Repair) -> bool:
        asked.append(repair.name)
        return repair.name in ("cache", "lock")

    told: list[Repair] = []
    done = mend(broken, agreed, told.append)
    assert asked == ["home", "cache", "left", "lock"]
    assert [repair.name for repair in done] == ["cache", "lock"] and told == done
    assert not is_private(broken.path())
    assert (broken.path() / "splits" / LEFT).exists()
    assert [repair.name for repair in repairs(broken)] == ["home", "left"]


def test_a_missing_model_is_fetched(home: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[str] = []

    def missing() -> Path:
        if fetched:
            return tmp_path
        raise ModelNotFound(
            "The embedded model is not in this environment: no x. Run `dspy-toolkit fetch-model` (98 MB)."
        )

    monkeypatch.setattr(gguf, "find_gguf", missing)
    monkeypatch.setattr(gguf, "fetch_gguf", lambda: fetched.append("model"))
    (repair,) = [each for each in repairs(home) if each.name == "model"]
    assert repair.what == "The embedded model is not in this environment: no x. Fetch it (98 MB)"
    repair.do()
    assert fetched == ["model"]
    assert "model" not in [each.name for each in repairs(home)]
    elsewhere = home.model_copy(update={"lm": home.lm.model_copy(update={"model": "openai/gpt-4o"})})
    fetched.clear()
    assert "model" not in [each.name for each in repairs(elsewhere)]


def test_what_was_mended_before_one_that_cannot_be_is_told(broken: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Path:
        raise ModelNotFound("The embedded model is not here: no network.")

    monkeypatch.setattr(gguf, "find_gguf", refused)
    monkeypatch.setattr(gguf, "fetch_gguf", refused)
    told: list[Repair] = []
    with pytest.raises(ModelNotFound, match="no network"):
        mend(broken, lambda repair: True, told.append)
    assert [repair.name for repair in told] == ["home", "cache", "left", "lock"]
    assert is_private(broken.path())
