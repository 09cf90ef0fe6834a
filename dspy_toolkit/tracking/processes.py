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
from dspy_toolkit.locks import Taken, take

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

PROCESS_TAG = "process"

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
    """The files of processes that have ended, each locked while the caller looks after its runs and removes it."""
    folder = settings.path("processes")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            taken = take(path)
        except FileNotFoundError:  # another process has looked after it
            continue
        if taken is not None:
            try:
                yield path
            finally:
                taken.release()
