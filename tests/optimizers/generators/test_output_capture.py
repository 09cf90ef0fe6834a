"""An optimizer's noise stays off the terminal; everything else is as it was."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

from dspy_toolkit.optimizers.generators.output_capture import capture_disabled, capture_output


@pytest.fixture
def optimizer_log() -> logging.Logger:
    import dspy  # noqa: F401  (it makes the handler)

    return logging.getLogger("dspy.teleprompt.some")


def test_prints_and_logs_become_debug_lines(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, optimizer_log: logging.Logger
) -> None:
    caplog.set_level(logging.DEBUG, "dspy_toolkit.optimizers.generators.output_capture")
    with capture_output():
        print("Bootstrapping set 1/4")
        sys.stderr.write("\r  10%|#   |\n")
        optimizer_log.error("Failed to run")
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == ["Bootstrapping set 1/4", "10%|#   |", "dspy.teleprompt.some: Failed to run"]


def test_streams_and_handlers_are_as_they_were_even_after_an_error(optimizer_log: logging.Logger) -> None:
    def state() -> tuple[object, ...]:
        handlers = [handler for name in ("dspy", "gepa", "optuna") for handler in logging.getLogger(name).handlers]
        return sys.stdout, sys.stderr, [(handler, list(handler.filters)) for handler in handlers]

    before = state()
    with pytest.raises(KeyboardInterrupt), capture_output():
        assert sys.stdout is not before[0]
        raise KeyboardInterrupt
    assert state() == before


def test_other_threads_and_progress_still_print(capsys: pytest.CaptureFixture[str]) -> None:
    with capture_output():
        other = threading.Thread(target=print, args=("from another thread",))
        other.start()
        other.join()
        with capture_disabled():
            print("from a progress display")
        print("from the optimizer")
        assert sys.stdout.isatty() is False
    assert capsys.readouterr().out == "from another thread\nfrom a progress display\n"


def test_two_at_once_that_end_in_either_order(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    first, second = capture_output(), capture_output()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with second:
            inside.set()
            leave.wait(10)
            print("silent")

    thread = threading.Thread(target=hold)
    with first:
        thread.start()
        inside.wait(10)
    assert sys.stdout is not before
    leave.set()
    thread.join()
    assert sys.stdout is before
    print("heard")
    assert capsys.readouterr().out == "heard\n"


def test_a_log_that_prints_says_each_line_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, optimizer_log: logging.Logger
) -> None:
    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(f"log: {record.getMessage()}", file=sys.stderr)

    logger = logging.getLogger("dspy_toolkit.optimizers.generators.output_capture")
    monkeypatch.setattr(logger, "handlers", [Printing()])
    monkeypatch.setattr(logger, "propagate", False)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with capture_output():
            print("Bootstrapping set 1/4")
            optimizer_log.error("Failed to run")
    finally:
        logger.setLevel(level)
    assert capsys.readouterr().err.splitlines() == [
        "log: Bootstrapping set 1/4",
        "log: dspy.teleprompt.some: Failed to run",
    ]
