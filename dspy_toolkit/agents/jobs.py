"""Optimizations that an agent has started: one at a time, each a process of its own, all together within a number of LM calls.

What a job may ask beside its budget is charged before it begins, with the budget, and none of it is given back.

A job goes on when the server ends, as one that was started by hand would; what it made is in MLflow.

Not covered: what an optimization does (the flow `optimize_program`). It needs a clone, where the flows are.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from dspy_toolkit.durable import make_home
from dspy_toolkit.errors import OptimizerError, ProjectError
from dspy_toolkit.printable import printable
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

Start = Callable[[Sequence[str], IO[bytes]], "subprocess.Popen[bytes]"]
SHOWN = 4000
"""Characters of the end of a job's output that are shown."""


class Job(Frozen):
    """One optimization."""

    id: str
    project: str
    lm_calls: int
    """That it may spend on searching."""
    calls_beside: int
    """That the probe and the comparisons may take besides."""
    state: Literal["running", "done", "failed"]
    said: str
    """The end of what it has printed."""


class Jobs:
    """The jobs of one server, and what is left for more."""

    def __init__(self, settings: Settings, most_calls: int, start: Start | None = None) -> None:
        """Args:
        settings: whose home holds what jobs print.
        most_calls: LM calls that all jobs together may be granted, those beside their budgets included.
        start: starts a command whose output goes to a file; a process of this machine by default.
        """
        self._settings, self._start = settings, start or _start
        self._left = most_calls
        self._running: dict[str, tuple[str, int, int, subprocess.Popen[bytes], Path]] = {}
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """LM calls that may still be granted."""
        return self._left

    def optimize(self, project: str, lm_calls: int, calls_beside: int, optimizer: str = "") -> Job:
        """Start an optimization.

        Args:
            project: its name.
            lm_calls: its budget.
            calls_beside: what it may ask that is not in the budget (`beside`).
            optimizer: the project's or the settings' by default.

        Raises:
            OptimizerError: another one is running, or more is asked for than is left.
            ProjectError: the flows are not here.
        """
        with self._lock:
            if running := [key for key, (*_, process, _) in self._running.items() if process.poll() is None]:
                raise OptimizerError(f"The job {running[0]} is running. Wait until it has ended, then ask again.")
            room = self._left - calls_beside
            if not 1 <= lm_calls <= room:
                raise OptimizerError(
                    f"{lm_calls} LM calls were asked for, the probe and the comparisons of {project} may take {calls_beside} more, and "
                    f"{self._left} are left of what this server may spend. {f'Ask for 1 to {room}, or let' if room > 0 else 'Let'} a "
                    "person allow more with --most-calls."
                )
            key = uuid.uuid4().hex[:12]
            make_home(self._settings.path())
            log = self._settings.path("jobs", f"{key}.log")
            log.parent.mkdir(exist_ok=True)
            command = ["-m", "flows.optimize_program", "--project", project, "--budget", str(lm_calls)]
            command += ["--optimizer", optimizer] if optimizer else []
            with log.open("wb") as out:
                process = self._start([sys.executable, *command], out)
            self._left -= lm_calls + calls_beside
            self._running[key] = project, lm_calls, calls_beside, process, log
        return self.job(key)

    def job(self, key: str) -> Job:
        """How a job stands. Raises OptimizerError where this server has started none of that id."""
        if key not in self._running:
            known = ", ".join(self._running) or "none"
            raise OptimizerError(f"This server has started no job {key!r}; it has started {known}.")
        project, lm_calls, calls_beside, process, log = self._running[key]
        code = process.poll()
        said = printable(log.read_text(encoding="utf-8", errors="replace"))[-SHOWN:]
        state = "running" if code is None else "failed" if code else "done"
        return Job(id=key, project=project, lm_calls=lm_calls, calls_beside=calls_beside, state=state, said=said)


def _start(command: Sequence[str], out: IO[bytes]) -> subprocess.Popen[bytes]:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if importlib.util.find_spec("flows") is None:
        raise ProjectError(
            "The flows are not here, so nothing can be optimized. Start the server in a clone of the toolkit."
        )
    return subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
    )
