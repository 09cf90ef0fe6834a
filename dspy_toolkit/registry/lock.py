"""One writer a home: whoever saves or promotes a version holds this lock.

MLflow has no compare-and-set, so two promotions at once would each write over what the other read. Homes that share
one MLflow server do not see each other's lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dspy_toolkit.errors import RegistryError

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

LOCK_SECONDS = 60.0


@contextmanager
def registry_lock(settings: Settings, seconds: float = LOCK_SECONDS, name: str = "registry.lock") -> Iterator[None]:
    """Hold the home's registry, over threads and processes; wait for at most `seconds`.

    Args:
        name: of another lock of the home, for what takes this one within.

    Raises:
        RegistryError: somebody else held it all that time (retryable), or the home cannot be written.
    """
    from filelock import FileLock, Timeout

    file = settings.path(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A lock object of its own for every caller: one shared object would let two threads in together.
        lock = FileLock(file, timeout=seconds, is_singleton=False)
        lock.acquire()
    except Timeout:
        busy = RegistryError(f"Another process has held {file} for {seconds:g} s. Wait for it, then run again.")
        busy.retryable = True
        raise busy from None
    except OSError as error:
        raise RegistryError(
            f"Cannot write {file}: {error}. Set DSPY_TOOLKIT_HOME to a folder that can be written."
        ) from error
    try:
        yield
    finally:
        lock.release()
