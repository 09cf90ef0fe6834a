"""A process that is killed while it compiles loses what was under way, and nothing else.

Each case is a process of its own, forked from one that has imported everything: killed at some call to the model, then run
again in the same home. On a deterministic model the second comes to the end of one that was never disturbed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import dspy, gepa, litellm, llguidance, optuna  # once, not in every child
from tests.optimizers.toys import Toy, by_demos, by_instruction, choice, profile
import dspy_toolkit.optimizers.compile

KNOWS = {"mipro": by_instruction, "gepa": by_instruction}
LM_CALLS = 300
UNDER_WAY = 2  # what is under way is lost: as many calls as there are threads, of a search of about a hundred calls

def compiled(name, folder, point):
    toy = Toy(Path(folder))
    toy.knows = KNOWS.get(name, by_demos)
    toy.before = lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == point else None
    calls = {"race": 600}.get(name, LM_CALLS)
    connection = toy.connect(model="mlx/fake@killed")
    found = toy.compile(choice(name, calls), connection, threads=UNDER_WAY)
    trials = [trial.model_dump(exclude={"seconds"}) for trial in found.trials]
    return {"program": str(found.program), "trials": trials, "calls": found.usage.lm_calls, "changed": found.changed,
            "generators": [each.model_dump() for each in found.generators], "computed": toy.kinds.total()}

def forked(name, folder, point):
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        text = json.dumps(compiled(name, folder, point)).encode()
        with os.fdopen(writes, "wb") as out:
            out.write(text)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return (json.loads(text) if text else None), (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)

for name, folder, point in json.loads(sys.argv[1]):
    found, signalled = forked(name, folder, point)
    print(json.dumps({"found": found, "signal": signalled}), flush=True)
"""


def run(cases: list[tuple[str, str, int | None]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases)], capture_output=True, text=True, timeout=550, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"found"')]


def compare(name: str, whole: dict[str, Any], point: int, killed: dict[str, Any], resumed: dict[str, Any]) -> None:
    assert (killed["found"], killed["signal"]) == (None, 9), (name, point)
    found = resumed["found"]
    for key in ("program", "trials", "calls", "changed", "generators"):
        assert found[key] == whole[key], (name, key, point)
    # `point` calls were made before, the last of them for nothing; those that were under way were not kept.
    assert point + found["computed"] <= 1.05 * whole["computed"], (name, point)


NAMES = ("labelled", "bootstrap", "random", "mipro", "gepa", "race")


@pytest.mark.soak
def test_sigkill(tmp_path: Path) -> None:
    """Once; all six at ten points are below."""
    folder = str(tmp_path / "home")
    whole, killed, resumed = run(
        [("mipro", str(tmp_path / "never"), None), ("mipro", folder, 60), ("mipro", folder, None)]
    )
    assert whole["found"]["changed"]
    assert whole["found"]["computed"] > 75
    compare("mipro", whole["found"], 60, killed, resumed)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_sigkill_at_ten_points(name: str, tmp_path: Path) -> None:
    ((whole),) = run([(name, str(tmp_path / "never"), None)])
    at = random.Random(name).sample(range(2, whole["found"]["computed"]), 10)
    cases: list[tuple[str, str, int | None]] = []
    for point in at:
        cases += [(name, str(tmp_path / str(point)), point), (name, str(tmp_path / str(point)), None)]
    results = run(cases)
    for point, killed, resumed in zip(at, results[::2], results[1::2], strict=True):
        compare(name, whole["found"], point, killed, resumed)
