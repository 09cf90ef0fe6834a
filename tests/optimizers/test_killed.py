"""A process that is killed in the middle of compiling loses what was under way, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from toys import Toy, by_instruction, choice, engine_of

SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from toys import Toy, by_instruction, choice
toy = Toy(Path(sys.argv[2]))
toy.knows = by_instruction
toy.before = lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == 40 else None
toy.compile(choice("gepa", 100), toy.connect(model="mlx/fake@killed"))
"""


def test_sigkill(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", SCRIPT, here, str(tmp_path)], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    def compiled(folder: Path) -> tuple[object, int]:
        toy = Toy(folder)
        toy.knows = by_instruction
        connection = toy.connect(model="mlx/fake@killed")
        found = toy.compile(choice("gepa", 100), connection)
        return (found.program, found.trials, found.lm_calls, found.changed), len(engine_of(connection).requests)

    resumed, few = compiled(tmp_path)
    undisturbed, all_ = compiled(tmp_path / "other")
    assert resumed == undisturbed
    assert all_ > 45
    assert few <= all_ - 39 + 8
