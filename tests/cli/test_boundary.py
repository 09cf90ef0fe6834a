"""Every way in which a command may end, seen from outside."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from dspy_toolkit.cli.boundary import boundary, message_of, show_lines, show_log
from dspy_toolkit.errors import DatasetError, EngineFailed
from dspy_toolkit.settings import ObserveSettings, Settings


def ending(error: BaseException) -> int:
    with pytest.raises(SystemExit) as ended, boundary():
        raise error
    return ended.value.code  # type: ignore[return-value]


def test_an_error_of_the_toolkit_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(DatasetError("No rows. Add some.")) == 1
    assert capsys.readouterr() == ("", "Error: No rows. Add some.\n")


def test_an_error_is_found_under_what_others_wrapped_around_it(capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = RuntimeError("litellm.APIError: something")
    wrapped.__cause__ = EngineFailed("The engine failed.")
    assert ending(wrapped) == 1
    assert capsys.readouterr().err == "Error: The engine failed.\n"


def test_a_full_disk_is_explained() -> None:
    assert message_of(OSError(errno.ENOSPC, "No space left on device")) == (
        f"[Errno {errno.ENOSPC}] No space left on device. Free some space."
    )


def test_a_defect_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(ValueError("no escape: \x1b[2J")) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.endswith("ValueError: no escape: \\x1b[2J\n")


def test_an_exit_code_passes_through() -> None:
    assert ending(SystemExit(2)) == 2
    assert ending(KeyboardInterrupt()) == 130


def test_it_is_a_decorator_too(capsys: pytest.CaptureFixture[str]) -> None:
    @boundary()
    def fails() -> None:
        raise DatasetError("No rows.")

    with pytest.raises(SystemExit):
        fails()
    assert capsys.readouterr().err == "Error: No rows.\n"


def test_a_log_of_whole_lines_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_log(Settings(observe=ObserveSettings(log_level="INFO")))
    lines, words = logging.getLogger("dspy_toolkit.lines"), logging.getLogger("dspy_toolkit.words")
    try:
        for _ in range(2):  # once is enough
            show_lines("dspy_toolkit.lines")
        lines.info("%s", '{"a": "\x1b[2J"}')
        lines.debug("%s", '{"not": "asked for"}')
        words.info("In words.")
    finally:
        lines.handlers.clear()
        lines.propagate = True
    assert capsys.readouterr().err == '{"a": "\\x1b[2J"}\nInfo: In words.\n'


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from dspy_toolkit.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload]


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    heavy = ["mlx", "mlx_lm", "mlflow", "litellm", "transformers", "dspy", "pandas", "scipy", "matplotlib", "prefect"]
    code = f"""
import sys
from dspy_toolkit.cli import main
try:
    main([])
except SystemExit as ended:
    assert not ended.code, ended.code
print(sorted(set({heavy}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Usage: dspy-toolkit COMMAND" in done.stdout


def test_a_usage_error_ends_with_2() -> None:
    done = run("programs", "lst")
    assert done.returncode == 2
    assert done.stdout == ""
    assert 'Did you mean "list"' in done.stderr and "Run `dspy-toolkit programs --help`." in done.stderr


def test_a_wrong_setting_ends_with_1_and_no_traceback(tmp_path) -> None:
    done = run("programs", "list", env={**os.environ, "DSPY_TOOLKIT_LM__BATCH_SIZE": "0"}, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: lm.batch_size") and "Traceback" not in done.stderr


def test_a_reader_that_went_away_is_no_error() -> None:
    code = "from dspy_toolkit.cli import main; main(['--help'])"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_went_away_later_is_no_error() -> None:
    code = (
        "from dspy_toolkit.cli.boundary import boundary\n"
        "with boundary():\n    for number in range(1_000_000):\n        print(number)"
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"{sys.executable}" -c "$0" | head -1', code],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0\n", b"")


def test_ctrl_c_is_quiet_and_ends_with_130() -> None:
    code = (
        "from dspy_toolkit.cli.boundary import boundary\nimport signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background starts with it ignored
        "with boundary():\n    print('ready', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == b""
        assert time.monotonic() - began < 30
