"""One service as a process: started apart from the shell, known by a file, healthy when it answers, stopped with its children.

The file `HOME/services/NAME.json` has the process's id and when it started: an id alone may belong to somebody else by now, and
only what was started here is stopped.

Not covered: starting a service again that has died; `make up` does, and so do the units in deployments/units.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments.places import MARK
from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import SettingsError

STOP_SECONDS = 15.0
"""After SIGTERM; then SIGKILL."""
SAME_SECONDS = 1.0
"""Two readings of when a process started differ by less."""
LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Service:
    """What is started, and how one sees that it is well."""

    name: str
    command: Sequence[str]
    address: str
    """For people; empty where nobody can look at it."""
    healthy: Callable[[], bool]
    folder: Path
    """Where its file and its log are."""

    @property
    def file(self) -> Path:
        """Its process."""
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / f"{self.name}.log"

    def process(self) -> psutil.Process | None:
        """The process that was started, if it still runs."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            found = psutil.Process(kept["pid"])
            if abs(found.create_time() - kept["started"]) > SAME_SECONDS or found.status() == psutil.STATUS_ZOMBIE:
                return None
        except (FileNotFoundError, psutil.Error):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{self.file} cannot be read: {error}. Remove it, and see that its process has ended."
            ) from None
        return found

    def start(self, environment: Mapping[str, str], working_folder: Path) -> None:
        """Start it, unless it runs."""
        if self.process() is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the shell is not for it, and it outlives the shell.
            started = subprocess.Popen(
                self.command,
                cwd=working_folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # It outlives this process, which will not wait for it; Python warns of one that nobody has waited for.
        started.returncode = 0
        kept = {"pid": started.pid, "started": psutil.Process(started.pid).create_time(), "command": list(self.command)}
        write_file(self.file, json.dumps(kept).encode())

    def wait(self, until: float) -> None:
        """Wait until it is healthy; `until` is a time of `time.monotonic`.

        Raises:
            SettingsError: it has ended, or takes longer; the end of its log is in the message.
        """
        while not self.healthy():
            if self.process() is None:
                raise SettingsError(f"{self.name} has ended.{self.last_words()}")
            if time.monotonic() > until:
                raise SettingsError(f"{self.name} does not answer at {self.address or 'all'} yet.{self.last_words()}")
            time.sleep(LOOK_SECONDS)

    def last_words(self, lines: int = 8) -> str:
        """The end of its log, and where the whole of it is."""
        said = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:] if self.log.exists() else []
        return "".join(f"\n  {line}" for line in said) + f"\nThe whole log: {self.log}"

    def stop(self) -> bool:
        """End it and what it started; whether there was anything to end."""
        found = self.process()
        if found is not None:
            end_all(family(found), first=found)
        self.file.unlink(missing_ok=True)
        return found is not None


def stop_all(services: Iterable[Service]) -> list[str]:
    """End several at once; the names of those that there were to end."""
    chosen = list(services)
    with ThreadPoolExecutor(max(1, len(chosen))) as threads:
        ended = list(threads.map(Service.stop, chosen))
    return [service.name for service, was in zip(chosen, ended, strict=True) if was]


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that come from it."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return [process]


def end_all(processes: Sequence[psutil.Process], first: psutil.Process | None = None) -> None:
    """SIGTERM, then SIGKILL for those that stay. `first` is asked alone before, so that it can end its own children."""
    for asked in ([first] if first is not None else [], processes):
        for each in asked:
            with suppress(psutil.Error):
                each.terminate()
        left = wait_for(asked)
    for each in left:
        with suppress(psutil.Error):
            each.kill()
    wait_for(processes)


def wait_for(processes: Sequence[psutil.Process], seconds: float | None = None) -> list[psutil.Process]:
    """Those that still run after so long. One that is over and that its parent has not looked at yet has ended."""
    until = time.monotonic() + (STOP_SECONDS if seconds is None else seconds)
    while (left := [each for each in processes if _runs(each)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def marked(home: Path) -> list[psutil.Process]:
    """The processes that carry this home's mark: services, and the runs that a worker started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # another user's, or over by now
            if process.pid != os.getpid() and process.environ().get(MARK) == str(home):
                found.append(process)
    return found
