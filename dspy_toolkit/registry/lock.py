"""One writer for each home: whoever saves or promotes a version holds this lock.

Homes that share one MLflow server do not see each other's lock (`turns`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.locks import held

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings


def registry_lock(
    settings: Settings, seconds: float | None = None, name: str = "registry.lock"
) -> AbstractContextManager[None]:
    """Hold the home's registry, over threads and processes; wait for at most `seconds`.

    Args:
        name: another lock of the home, for code that takes this one inside it.

    Raises:
        RegistryError: it was held all that time (retryable), or the home cannot be written.
    """
    return held(settings.path(name), seconds, RegistryError)
