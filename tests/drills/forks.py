"""Optimizations in processes of their own, forked from one that has imported everything: a start takes no time.

`Forks` is the side of the tests; `python -m tests.drills.forks` the process that forks. It reads a case a line and answers
with how the forked process ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_toolkit.settings import OptimizeSettings

ROOT = Path(__file__).parents[2]
MODEL = "mlx/fake@drilled"


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    signal: int
    code: int
    seconds: float
    said: str
    """What it printed, and logged."""
    writes: int
    """Steps of durable writes that it came to."""
    end: dict[str, Any] | None
    """`optimization.end_of` its home, when it came to an end by itself."""


CALLS = "compile_lm_calls"
THREADS = OptimizeSettings().threads


def differences(found: dict[str, Any] | None, wanted: dict[str, Any] | None) -> dict[str, Any]:
    """What is not the same in two ends of runs, each as (found, wanted); the numbers one by one.

    What was under way when a run was disturbed is asked again and counted again: of a search's calls, one a thread.
    """
    one, other = ({**(end or {}), **(end or {}).get("numbers", {})} for end in (found, wanted))
    names = (one.keys() | other.keys()) - {"numbers"}
    if 0 <= one.get(CALLS, 0) - other.get(CALLS, 0) <= THREADS:
        names -= {CALLS, "compile_prompt_tokens"}
    return {name: (one.get(name), other.get(name)) for name in sorted(names) if one.get(name) != other.get(name)}


class Forks:
    """One process that forks, for one case at a time."""

    def __enter__(self) -> Forks:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.drills.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(self, project: Path, home: Path, **fault: Any) -> Ended:
        """Optimize `project` in `home`, with a fault as `optimization.faulty` takes it.

        Args:
            fault: also `kill_after`, seconds; `user`, whose process it is; `convert`, to convert the embedded model first;
                `look`, to look at the home and do nothing; `named`, what the project is called if not questions.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"project": str(project), "home": str(home), **fault}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return Ended(**json.loads(line))


def in_turns(cases: list[Any], each: Callable[[Forks, Any], Any], side_by_side: int = 2) -> list[Any]:
    """`each(forks, case)` for all cases, in their order, some side by side."""
    from concurrent.futures import ThreadPoolExecutor

    own = threading.local()
    started: list[Forks] = []

    def begin() -> None:
        own.forks = Forks()
        started.append(own.forks)
        own.forks.__enter__()

    pool = ThreadPoolExecutor(side_by_side, initializer=begin)
    try:
        return list(pool.map(lambda case: each(own.forks, case), cases))
    finally:
        pool.shutdown(cancel_futures=True)
        for forks in started:
            forks.__exit__()


def _child(case: dict[str, Any], out: int) -> None:
    import logging

    from dspy_toolkit.cli.boundary import boundary
    from dspy_toolkit.lm.connection import serve_engine
    from dspy_toolkit.lm.models.weights import find_weights
    from dspy_toolkit.settings import load_settings
    from dspy_toolkit.testing import FakeEngine
    from flows.terminal import interruptible
    from tests.drills import optimization
    from tests.flows.conftest import answer

    os.dup2(out, 1)
    os.dup2(out, 2)
    if (user := case.get("user")) is not None:
        os.setgid(user)
        os.setuid(user)
    settings = {"HOME": case["home"], "LM__MODEL": MODEL, "LM__LEASE": "share", "OBSERVE__PROGRESS": "false"}
    os.environ.update({f"DSPY_TOOLKIT_{name}": value for name, value in settings.items()})
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", force=True)
    if not case.get("look"):
        serve_engine(FakeEngine(optimization.before_asking(answer, case), model=MODEL))
        with boundary(), interruptible(), optimization.faulty(case) as reached:
            if case.get("convert"):
                find_weights("mlx/smollm2-135m", load_settings().path())
            optimization.optimize(case["project"], reached)
    print("END " + json.dumps(optimization.end_of(load_settings(), case.get("named", "questions"))), flush=True)


def _forked(case: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _child(case, out.fileno())
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        deadline = started + case.get("kill_after", 1e9)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() >= deadline:
                os.kill(child, signal.SIGKILL)
                deadline = 1e12
            time.sleep(0.002)
        seconds = time.monotonic() - started
        out.seek(0)
        lines = out.read().decode(errors="replace").splitlines()
    found = [json.loads(line[4:]) for line in lines if line.startswith("END ")]
    writes = [int(line[7:]) for line in lines if line.startswith("WRITES ")]
    return {
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1,
        "seconds": seconds,
        "said": "\n".join(line for line in lines if not line.startswith(("END ", "WRITES "))),
        "writes": writes[0] if writes else 0,
        "end": found[0] if found else None,
    }


def _preload() -> None:
    """Import what a run imports, once. What that is, a first run tells: many modules are imported when they are needed."""
    import diskcache

    class Few(diskcache.FanoutCache):
        """DSPy's cache in 2 databases in place of 16, which take a while to make in each home."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"shards": 2})

    diskcache.FanoutCache = Few
    from tests.flows.conftest import write_questions

    with tempfile.TemporaryDirectory() as folder:
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reads)
            out = os.open(os.devnull, os.O_WRONLY)
            with suppress(SystemExit):
                _child({"project": str(write_questions(Path(folder))), "home": f"{folder}/home"}, out)
            with os.fdopen(writes, "w") as modules:
                json.dump(list(sys.modules), modules)
            os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as told:
            names = json.load(told)
        os.waitpid(child, 0)
    for name in names:
        # Some are names that only their makers can import.
        with suppress(ImportError, AttributeError):
            importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError("A forked process would lack the threads of this one.")


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)
    _preload()
    with os.fdopen(answers, "w") as said:
        for line in sys.stdin:
            print(json.dumps(_forked(json.loads(line))), file=said, flush=True)
