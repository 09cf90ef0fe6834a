"""A process is gone when nothing holds its file any more."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.locks import held
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.processes import processes_gone, this_process

OPEN = """
import sys
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.processes import this_process
print(this_process(Settings(home=sys.argv[1])), flush=True)
sys.stdin.read()
"""


def gone(settings: Settings) -> list[str]:
    return [path.name for path in processes_gone(settings)]


def test_a_process_is_gone_when_it_was_killed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    assert gone(settings) == [] and not settings.path().exists()
    command = [sys.executable, "-c", OPEN, str(settings.home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        assert f"-{other.pid}-" in name
        assert gone(settings) == []
        other.kill()
        other.wait()
        with ThreadPoolExecutor(1) as another:
            for path in processes_gone(settings):
                assert path.name == name
                waiting = another.submit(gone, settings)
                with pytest.raises(TimeoutError):
                    waiting.result(0.3)  # one looks after it, and nobody else meanwhile
            assert waiting.result(30) == [name], "who waited finds what was left"
        assert gone(settings) == [name]


def test_who_looks_after_them_for_too_long_keeps_nobody_waiting_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspy_toolkit.tracking.processes.PATIENCE_SECONDS", 0.2)
    settings = Settings(home=tmp_path)
    this_process(settings)
    with held(settings.path("processes.lock")), pytest.raises(RegistryError, match=r"processes\.lock") as caught:
        gone(settings)
    assert caught.value.retryable


def test_this_process_has_one_name_and_is_not_gone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    name = this_process(settings)
    assert this_process(settings) == name and gone(settings) == []
    shutil.rmtree(tmp_path / "processes")
    again = this_process(settings)
    assert again != name and [path.name for path in (tmp_path / "processes").iterdir()] == [again]
