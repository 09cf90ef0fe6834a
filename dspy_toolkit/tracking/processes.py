"""Which process opened an MLflow run, and whether it is still there to close it.

A process that opens runs keeps an empty file in `HOME/processes` locked as long as it lives, and names it in a tag of every
run. The operating system gives the lock back when the process ends, whatever ended it: a file that can be locked belongs to
a process that is gone. A process number would not tell: numbers are given again, and containers that share a home count
each for itself. A run of another home, on this machine or elsewhere, names no file of this one and is left alone.

Not covered: what becomes of the runs that were left open (`dspy_toolkit.registry.unfinished`).
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import RegistryError
from dspy_toolkit.locks import Taken, held, take

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

PROCESS_TAG = "process"
PATIENCE_SECONDS = 120.0
"""Recording a promotion that was cut off takes some seconds, on a busy machine some more."""

_guard = threading.Lock()
_own: dict[Path, Taken] = {}


def this_process(settings: Settings) -> str:
    """The name of this process in its home: `HOST-NUMBER-…`. Its file is made and locked by the first call.

    Raises:
        RegistryError: the home cannot be written.
    """
    folder = settings.path("processes")
    with _guard:
        own = _own.get(folder)
        # Somebody may have removed the home, and another process may tidy the file up before it is locked here.
        while own is None or not own.lasting():
            path = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            write_file(path, b"", RegistryError)
            own = take(path)
        _own[folder] = own
    return own.path.name


def processes_gone(settings: Settings) -> Generator[Path]:
    """The files of processes that have ended, each locked while the caller looks after its runs and removes it.

    One caller after another: each looks after runs of its own project alone, and finds what the one before has left.

    Raises:
        RegistryError: another caller was at it for all of PATIENCE_SECONDS (retryable), or the home cannot be written.
    """
    folder = settings.path("processes")
    if not folder.is_dir():
        return
    with held(settings.path("processes.lock"), PATIENCE_SECONDS, RegistryError):
        for path in sorted(folder.iterdir()):
            try:
                taken = take(path)
            except FileNotFoundError:  # somebody tidies up by hand
                continue
            if taken is not None:
                try:
                    yield path
                finally:
                    taken.release()
