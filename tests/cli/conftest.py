"""The command line, run in this process."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from dspy_toolkit.cli import main
from dspy_toolkit.settings import Settings


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A command has its process to itself and sends the toolkit's log to stderr; the next test's log is not a command's."""
    logger = logging.getLogger("dspy_toolkit")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate = propagate
    logger.handlers[:] = handlers
    logging.setLogRecordFactory(logging.LogRecord)


@pytest.fixture
def command(home: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `dspy-toolkit` with the given arguments, on the home of the test, at a terminal of 80 columns."""
    monkeypatch.setenv("DSPY_TOOLKIT_HOME", str(home.path()))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.chdir(home.path())

    def command(*arguments: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return command
