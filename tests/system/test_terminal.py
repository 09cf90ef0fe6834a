"""The flow at a terminal, as a person uses it: every optimizer, typing the wrong thing, Ctrl-C, two at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOW = [sys.executable, "-m", "flows.optimize_program"]

pytestmark = pytest.mark.timeout(900)


def optimize(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FLOW, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False
    )


@pytest.mark.soak
@pytest.mark.parametrize("optimizer", ["mipro", "gepa"])
def test_a_project_without_python_runs_with_the_optimizers_that_write_instructions(
    fresh_home: dict[str, str], films: Path, optimizer: str
) -> None:
    # BootstrapFewShot runs in the other tests of this folder; these two also run on the real model in tests/optimizers.
    done = optimize(fresh_home, "--project", str(films), "--optimizer", optimizer, "--budget", "light")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"films · {optimizer} · mlx/smollm2-135m" in done.stdout
    assert any(outcome in done.stdout for outcome in ("promoted: ", "refused: ", "unchanged: "))
    assert "Next:" in done.stdout


@pytest.mark.system
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--project", "rooter"], 1, "Did you mean router?"),
        (["--project", "nowhere/x.toml"], 1, "nowhere"),
        (["--project", "router", "--optimizer", "mirpo"], 2, "mipro"),
        (["--project", "router", "--budget", "huge"], 2, "light"),
    ],
)
def test_the_wrong_thing_typed_is_one_clear_error(
    fresh_home: dict[str, str], arguments: list[str], code: int, words: str
) -> None:
    done = optimize(fresh_home, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.system
def test_a_home_that_cannot_be_written_is_one_clear_error(fresh_home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = optimize(fresh_home | {"DSPY_TOOLKIT_HOME": str(tmp_path / "file" / "home")}, "--project", "router")
    assert done.returncode == 1
    assert "Cannot write" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.system
def test_ctrl_c_while_compiling_is_obeyed_and_the_next_run_goes_on(
    fresh_home: dict[str, str], films: Path, tmp_path: Path
) -> None:
    asked = ["--project", str(films), "--optimizer", "bootstrap", "--budget", "60"]
    log_path = tmp_path / "log"
    with log_path.open("w") as log:
        # A session of its own, whose members all get the signal, as at a terminal.
        process = subprocess.Popen(
            [*FLOW, *asked], env=fresh_home, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            began = time.monotonic()
            while "compile" not in log_path.read_text():
                assert process.poll() is None, log_path.read_text()
                assert time.monotonic() - began < 500
                time.sleep(0.2)
            import os

            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) == 130, log_path.read_text()
        finally:
            if process.poll() is None:
                process.kill()
    printed = log_path.read_text()
    assert "Interrupted" in printed
    assert "Traceback" not in printed
    done = optimize(fresh_home, *asked)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.soak
def test_two_runs_at_once_on_one_home_both_end_well(fresh_home: dict[str, str], films: Path) -> None:
    command = [*FLOW, "--project", str(films), "--optimizer", "bootstrap"]
    both = [
        subprocess.Popen(command, env=fresh_home, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=800)
        assert "Traceback" not in err, err
        assert process.returncode == 0 or "Error: " in err, out + err
    from dspy_toolkit.registry import champion
    from dspy_toolkit.settings import load_settings

    assert champion(load_settings(home=fresh_home["DSPY_TOOLKIT_HOME"]), "films").version is not None
